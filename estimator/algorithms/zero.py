"""ZeRO: optimizer states, gradients and weights divided over data-parallel devices."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="ZeRO (zero redundancy optimizer)",
    paper="Rajbhandari et al. 2019, arXiv 1910.02054",
    summary="Stops each chip from keeping its own copy of the training state, so that larger models fit.",
    replaces=("data_parallelism",),
    paper_class="unlocking",
    kind="parallelism",
    aliases=("fsdp", "zero3", "zero_redundancy_optimizer"),
    unlocking=(
        "No compute-equivalent gain: plain data parallelism runs out of memory on the models that need it,"
        " so no baseline exists that reaches the same loss with another amount of compute. It unlocks models"
        " whose weights, gradients and optimizer states together exceed the memory of one device."
    ),
    costs=(
        "FLOPs and parameters: unchanged. Bytes: optimizer states, then gradients, then weights are held"
        " once in all instead of once per device; dividing the weights too adds communication."
    ),
    gaps=(
        "no training arm: it computes the same function on more devices.",
        "no kernel: communication between devices is not timed.",
    ),
)
