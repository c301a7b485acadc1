"""Sliding-window attention: each token sees the last `window` tokens."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Sliding-window attention",
    paper="Beltagy et al. 2020, arXiv 2004.05150; Jiang et al. 2023, arXiv 2310.06825",
    summary="Lets each word look back over a fixed number of words only, so that long texts cost less.",
    replaces=("dense_attention",),
    paper_class="not_studied",
    kind="attention",
    saves_only=True,
    aliases=("local_attention", "sliding_window_attention", "swa", "window_attention"),
    stack="modern",
    arm={"pattern": "window"},  # this is the intervention
    costs=(
        "FLOPs: each query scores at most window keys instead of every earlier one, so the score term stops"
        " growing with seq_len. Parameters: unchanged. KV cache: at most window tokens per layer."
    ),
    gaps=("no kernel: attention over a window is not timed.",),
)
