"""Root-mean-square normalisation in place of LayerNorm."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Root-mean-square normalisation (RMSNorm)",
    paper="Zhang and Sennrich 2019, arXiv 1910.07467",
    summary="Keeps the numbers inside a model at a steady size with a simpler rule than layer normalisation.",
    replaces=("layernorm", "no_norm", "post_layernorm"),
    paper_class="not_studied",
    kind="normalisation",
    aliases=("rms", "rms_norm"),
    stack="bare",
    arm={"norm": "rms"},  # this is the intervention
    baseline_arm={"norm": "layer"},
    costs=(
        "FLOPs: no matmul changes; element-wise work counts as 0, and the mean is not subtracted."
        " Parameters: one scale of width d_model per normalisation and no shift. Bytes: as LayerNorm, with"
        " one statistic per token instead of two."
    ),
    gaps=("no kernel: normalisation is not timed on its own.",),
)
