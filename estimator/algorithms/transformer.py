"""The Transformer in place of a recurrent network."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Transformer",
    paper="Vaswani et al. 2017, arXiv 1706.03762",
    summary="Lets a model look at all earlier words at once instead of reading them one after another.",
    replaces=("lstm",),
    paper_class="dependent",
    kind="architecture",
    aliases=("transformers", "self_attention"),
    stack="bare",
    baseline_arm={"kind": "lstm"},  # this is the intervention, undone: the stack itself is a Transformer
    costs=(
        "FLOPs per token: attention and feed-forward matmuls of each layer, and scores that grow with"
        " seq_len, in place of the LSTM's matmuls for its four gates, which do not. Parameters: the weights"
        " of these matmuls, and a table of positions. All tokens of a sequence are computed at once, where"
        " an LSTM takes seq_len steps in order. Bytes: decoding reads a KV cache that grows with the"
        " context; an LSTM reads a state of fixed size."
    ),
    gaps=(
        "no kernel: an LSTM is not timed; in time its steps, one after another, are modelled.",
        "The bare stack has no normalisation, which the paper's Transformer has.",
    ),
)
