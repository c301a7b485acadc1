"""Mixture of experts in place of the dense feed-forward layer."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Mixture of experts",
    paper="Shazeer et al. 2017, arXiv 1701.06538; Fedus et al. 2021, arXiv 2101.03961",
    summary="Splits each layer into many specialists and uses only a few of them for each word.",
    replaces=("dense",),
    paper_class="dependent",
    kind="sparsity",
    aliases=("mixture_of_experts", "experts", "sparse_moe", "switch", "switch_transformer"),
    stack="modern",
    arm={"feed_forward": "moe", "expert_activation": "swiglu"},  # this is the intervention
    costs=(
        "FLOPs per token: top_k experts of width d_expert, the shared experts, and a router of d_model x"
        " n_experts. Parameters: the total grows with n_experts, those active for a token with top_k. Bytes:"
        " weights of all visited experts are read, so a small batch is bound by memory; tokens are moved to"
        " their experts and back."
    ),
    kernels=("moe_dispatch",),
    kernel_baselines=("grouped_mm", "dense_ffn"),
)
