"""Multi-head latent attention: keys and values rebuilt from one compressed vector."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Multi-head latent attention",
    paper="DeepSeek-AI 2024, arXiv 2405.04434",
    summary="Keeps a compressed memory of earlier words, so that long texts need less memory to continue.",
    replaces=("mha",),
    paper_class="not_studied",
    kind="attention",
    aliases=("latent_attention", "multi_head_latent_attention"),
    costs=(
        "KV cache: one latent vector and one rotary key per token and layer, shared by all heads, instead"
        " of 2 x n_heads x head_dim. FLOPs and parameters: key and value projections become a projection"
        " down to the latent and one up to all heads."
    ),
    gaps=(
        "no training arm: the model has no latent attention.",
        "no kernel: no attention kernel reads a latent cache.",
    ),
)
