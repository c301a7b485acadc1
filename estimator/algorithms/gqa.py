"""Grouped-query attention: one key-value head per group of query heads."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Grouped-query attention",
    paper="Ainslie et al. 2023, arXiv 2305.13245",
    summary="Shares each memory of earlier words among a few attention heads, so that answers come faster.",
    replaces=("mha",),
    paper_class="not_studied",
    kind="attention",
    saves_only=True,
    aliases=("grouped_query_attention", "grouped_query"),
    stack="modern",
    arm={"heads": "gqa"},  # this is the intervention
    costs=(
        "KV cache: n_heads / gqa_group key-value heads per token and layer instead of n_heads, which is"
        " what decoding reads. FLOPs and parameters: the key and value projections shrink by gqa_group; the"
        " scores do not change."
    ),
    kernels=("mqa",),
    kernel_baselines=("flash", "sdpa"),
)
