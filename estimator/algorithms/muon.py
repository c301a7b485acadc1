"""Muon: the optimizer that orthogonalises the momentum of each weight matrix."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Muon",
    paper="Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982",
    summary="Spreads each training update evenly over all directions, so that fewer updates are needed.",
    replaces=("adamw",),
    paper_class="not_studied",
    kind="optimizer",
    aliases=("muon_optimizer",),
    stack="modern",
    arm={"optimizer": "muon"},  # this is the intervention
    costs=(
        "FLOPs: Newton-Schulz matmuls on every hidden weight matrix, once per optimizer step, so their"
        " share of a run falls with the tokens per step. Parameters: unchanged. Bytes: one moment per hidden"
        " weight instead of AdamW's two."
    ),
    gaps=("no kernel: the Newton-Schulz matmuls are not timed on their own.",),
)
