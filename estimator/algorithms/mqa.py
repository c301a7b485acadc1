"""Multi-query attention: one key-value head for all query heads."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Multi-query attention",
    paper="Shazeer 2019, arXiv 1911.02150",
    summary="Shares one memory of earlier words among all attention heads, so that answers come faster.",
    replaces=("mha", "gqa"),
    paper_class="dependent",
    kind="attention",
    saves_only=True,
    aliases=("multi_query_attention", "multi_query"),
    stack="bare",
    arm={"heads": "mqa"},  # this is the intervention
    costs=(
        "KV cache: head_dim keys and values per token and layer instead of n_heads x head_dim, which is"
        " what decoding reads. FLOPs and parameters: the key and value projections shrink by n_heads; the"
        " scores do not change. Nothing is added elsewhere to make up for the lost parameters."
    ),
    kernels=("mqa",),
    kernel_baselines=("flash", "sdpa"),
)
