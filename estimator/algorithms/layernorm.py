"""Layer normalisation before each block, in place of none."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Layer normalisation (LayerNorm)",
    paper="Ba, Kiros and Hinton 2016, arXiv 1607.06450",
    summary="Keeps the numbers inside a model at a steady size, so that it trains stably and faster.",
    replaces=("no_norm",),
    paper_class="independent",
    kind="normalisation",
    aliases=("ln", "layer_norm", "layer_normalisation", "layer_normalization"),
    stack="bare",
    arm={"norm": "layer"},  # this is the intervention
    costs=(
        "FLOPs: no matmul changes; means, variances and scales are element-wise work and count as 0."
        " Parameters: one scale (and a shift, with biases) of width d_model per normalisation. Bytes: the"
        " activations are read and written once more per normalisation unless it is fused."
    ),
    gaps=("no kernel: normalisation is not timed on its own.",),
)
