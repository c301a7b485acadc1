"""Tensor parallelism: each weight matrix split over several devices."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Tensor parallelism",
    paper="Shoeybi et al. 2019, arXiv 1909.08053",
    summary="Splits every layer over several chips, so that layers too large for one chip can run.",
    replaces=("single_device",),
    paper_class="unlocking",
    kind="parallelism",
    aliases=("megatron", "tensor_parallel", "tp"),
    unlocking=(
        "No compute-equivalent gain: a model that needs it runs on no single device, so no baseline exists"
        " that reaches the same loss with another amount of compute. It unlocks layers whose weights and"
        " activations exceed the memory of one device, at a cost in communication."
    ),
    costs=(
        "FLOPs and parameters: unchanged in total, divided over the devices. Bytes: activations of width"
        " d_model are summed between devices twice per layer in the forward pass and twice in the backward"
        " pass."
    ),
    gaps=(
        "no training arm: it computes the same function on more devices.",
        "no kernel: communication between devices is not timed.",
    ),
)
