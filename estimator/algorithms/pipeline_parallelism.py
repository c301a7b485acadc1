"""Pipeline parallelism: the layers divided into stages on several devices."""

from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Pipeline parallelism",
    paper="Huang et al. 2018, arXiv 1811.06965",
    summary="Puts successive layers of a model on successive chips, like an assembly line.",
    replaces=("single_device",),
    paper_class="unlocking",
    kind="parallelism",
    aliases=("gpipe", "pipeline_parallel", "pp"),
    unlocking=(
        "No compute-equivalent gain: a model that needs it runs on no single device, so no baseline exists"
        " that reaches the same loss with another amount of compute. It unlocks models deeper than one"
        " device can hold, with little communication, at the cost of devices that wait while the pipeline"
        " fills and drains."
    ),
    costs=(
        "FLOPs and parameters: unchanged in total, n_layers divided over the stages. Bytes: activations of"
        " width d_model pass between neighbouring stages, and each stage keeps those of the micro-batches in"
        " flight."
    ),
    gaps=(
        "no training arm: it computes the same function on more devices.",
        "no kernel: communication between devices is not timed.",
    ),
)
