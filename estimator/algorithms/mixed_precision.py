"""Mixed precision: matmuls in 16 bits, the weights that are updated in 32."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Mixed-precision training",
    paper="Micikevicius et al. 2017, arXiv 1710.03740",
    summary="Does most of the arithmetic with shorter numbers, which chips compute several times faster.",
    replaces=("fp32",),
    paper_class="unlocking",
    kind="precision",
    aliases=("amp", "bf16", "fp16", "half_precision"),
    unlocking=(
        "No compute-equivalent gain: a number of operations reaches nearly the same loss in 16 bits as in"
        " 32. It unlocks the fast matrix units of the chip and models about twice as large in the same"
        " activation memory, so that runs become possible which have no 32-bit baseline."
    ),
    costs=(
        "FLOPs: the same count, at the device's 16-bit rate instead of its 32-bit rate. Parameters:"
        " unchanged. Bytes: activations, gradients and the weights in use take half; the weights that are"
        " updated are kept in 32 bits as well."
    ),
    gaps=(
        "no training arm: every run uses the same precision.",
        "no kernel: dtype is a column of the kernel times, not an implementation.",
    ),
)
