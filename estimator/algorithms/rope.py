"""Rotary position embedding in place of learned absolute positions."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Rotary position embedding (RoPE)",
    paper="Su et al. 2021, arXiv 2104.09864",
    summary="Tells a model how far apart two words are, instead of the place of each word in the text.",
    replaces=("learned_positions", "sinusoidal_positions"),
    paper_class="independent",
    kind="position",
    aliases=("rotary", "rotary_embedding", "rotary_position_embedding", "rotary_positions"),
    stack="bare",
    arm={"positions": "rope"},  # this is the intervention
    costs=(
        "FLOPs: no matmul changes; queries and keys are rotated, which is element-wise work and counts as"
        " 0. Parameters: the seq_len x d_model position table goes. Bytes: queries and keys are read and"
        " written once more per layer unless the rotation is fused."
    ),
    gaps=("no kernel: the rotation is not timed on its own.",),
)
