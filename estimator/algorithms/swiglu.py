"""SwiGLU feed-forward layer in place of GELU."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="SwiGLU",
    paper="Shazeer 2020, arXiv 2002.05202",
    summary="Lets each layer scale its own output up or down, at equal size.",
    replaces=("gelu", "relu"),
    paper_class="not_studied",
    kind="activation",
    aliases=("glu", "swi_glu", "swish_glu"),
    stack="bare",
    arm={"feed_forward": "swiglu"},  # this is the intervention
    costs=(
        "FLOPs and parameters: three matmuls of d_model x d_ff instead of two, with d_ff narrowed so that"
        " the total stays the same but for rounding. Bytes: one more activation of width d_ff per token."
    ),
    gaps=("no kernel: the gate is not timed on its own.",),
)
