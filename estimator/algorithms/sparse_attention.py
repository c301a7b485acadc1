"""Sparse attention with a fixed, factorised pattern."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Sparse attention",
    paper="Child et al. 2019, arXiv 1904.10509",
    summary="Lets each word look at a chosen few of the earlier words instead of all of them.",
    replaces=("dense_attention",),
    paper_class="dependent",
    kind="attention",
    saves_only=True,
    aliases=("sparse", "sparse_transformer", "strided_attention", "nsa", "native_sparse_attention"),
    stack="bare",
    arm={"pattern": "strided"},  # this is the intervention
    costs=(
        "FLOPs: in half of the heads each query scores the last stride keys, in the other half every"
        " stride-th key before it, instead of all earlier keys. The executed FLOPs fall only as far as whole"
        " blocks can be skipped; materialised attention skips none. Parameters: unchanged. Bytes: with"
        " blocks skipped, keys and values are read for visited blocks only."
    ),
    kernels=("block_sparse",),
    kernel_baselines=("flash", "sdpa"),
    gaps=(
        "The arm is the strided pattern of Child et al.; attention that learns which keys to read, such as"
        " native sparse attention (Yuan et al. 2025, arXiv 2502.11089), has published rows only.",
    ),
)
