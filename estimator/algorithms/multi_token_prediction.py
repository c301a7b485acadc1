"""Multi-token prediction: extra heads that predict tokens after the next."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Multi-token prediction",
    paper="Gloeckle et al. 2024, arXiv 2404.19737",
    summary="Trains a model to guess several words ahead, which teaches planning and can speed up writing.",
    replaces=("next_token",),
    paper_class="not_studied",
    kind="objective",
    aliases=("mtp", "multi_token"),
    costs=(
        "FLOPs and parameters: for every token predicted beyond the next, one more head and one more pass"
        " through the d_model x vocab_size unembedding. Bytes: one more set of logits per head. Decoding"
        " without the extra heads costs the same as before."
    ),
    gaps=(
        "no training arm: the model predicts the next token only.",
        "no kernel: the extra heads are not timed.",
        "Its gain is mostly reported on tasks and on decoding speed, not on the loss of the next token.",
    ),
)
