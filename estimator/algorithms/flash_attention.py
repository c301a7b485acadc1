"""FlashAttention: exact attention that never writes the score matrix to memory."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="FlashAttention",
    paper="Dao et al. 2022, arXiv 2205.14135",
    summary="Computes the same attention with far less traffic to memory, so that training takes less time.",
    replaces=("materialised_attention",),
    paper_class="independent",
    kind="attention",
    aliases=("fa", "flash", "flash_attn", "flashattention"),
    stack="bare",
    arm={"attention": "flash"},  # this is the intervention
    exact_in_flop=True,
    costs=(
        "FLOPs: the useful ones do not change; the executed ones lose the masked blocks and gain the scores"
        " that the backward pass recomputes. Parameters: unchanged. Bytes: the seq_len x seq_len scores of"
        " each head are not written or read; queries, keys, values and outputs are."
    ),
    kernels=("flash",),
    kernel_baselines=("materialised", "sdpa"),
)
