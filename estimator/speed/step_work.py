"""What one training step asks of one device: matrix products, scores, bytes to memory and over links, memory held.

Counts only; `cegain.speed.step_time` turns them into seconds. A plan says on what a shape is trained, and how.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cegain.kernels import costs
from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape
from cegain.speed.hardware import DEVICES, VALUE_BYTES, Device, Precision

Sharding = Literal["none", "optimizer", "gradients", "full", "hybrid"]
Kernel = Literal["materialised", "flash-triton", "flash1", "flash2", "flash3"]

SHARDINGS: Mapping[str, Sharding] = {
    "none": "none", "ddp": "none", "no_shard": "none", "zero0": "none",
    "optimizer": "optimizer", "zero1": "optimizer",
    "gradients": "gradients", "shard_grad_op": "gradients", "zero2": "gradients",
    "full": "full", "full_shard": "full", "fsdp": "full", "zero3": "full",
    "hybrid": "hybrid", "hybrid_shard": "hybrid", "hsdp": "hybrid",
}  # fmt: skip
"""Names of what data-parallel devices share out (ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054; PyTorch FSDP)."""

TILE = 128
"""Queries and keys per tile of a fused kernel, which computes tiles on the diagonal whole."""
SCORE_BYTES = {"forward": {2: 24, 4: 24}, "backward": {2: 32, 4: 28}}
"""Bytes that materialised attention moves per score, by bytes of a stored value: the tensors [T, T] that the operations
of `cegain.training.models.attention.Scores` read and write, under 16-bit autocast (softmax in fp32) or in fp32. No
dropout."""
PARAMETER_BYTES = 16
"""Weight, gradient and two moments of AdamW in fp32, per parameter (Rajbhandari et al. 2020, section 3.1)."""
OPTIMIZER_TRAFFIC = 30
"""Bytes per parameter of an AdamW step: the three fp32 states read and written, the gradient read, 16-bit weights
written."""
LAUNCHES = {"forward": 14, "backward": 28}
"""Kernels per layer of an eager block."""
MEMORY_SLACK = 1.05
"""A plan is refused beyond this share of the device's memory: the count is no better than that. The measured runs that
the constants come from, whose micro-batches were made as large as they could be, count up to 0.96."""
TOKENS_PER_DEVICE, FIRST_DEVICES, MOST_DEVICES = 2**14, 8, 2**13
"""Of a default plan: tokens in one micro-batch where they fit, devices that it starts from (fewer where a server has
fewer), and devices beyond which none is looked for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a shape is trained. Sizes are per device where they say so, `devices` is all of them."""

    device: Device
    devices: int = 8
    micro_batch: int = 1
    """Sequences per device in one forward and backward pass."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    sharding: Sharding = "full"
    recompute: bool = False
    """Keep block inputs only, and run each block forward again before its backward pass."""
    precision: Precision | None = None
    """None: the device's own. With fp8, the matrix products of blocks; the rest runs in bf16."""
    kernel: Kernel | None = None
    """None: what the shape says, materialised or the Triton flash kernel that the constants were calibrated on (our own
    fused attention where the device's kernel times are known)."""
    gradient_bytes: int = 2
    """Of a gradient while it is reduced."""
    network: float | None = None
    """Bytes/s of a server, one direction; None: the device's."""
    expert_parallel: int = 1
    """Devices that share out the experts of a layer."""

    @property
    def used_precision(self) -> Precision:
        """The precision, given or the device's."""
        return self.precision or self.device.precision

    @property
    def value_bytes(self) -> int:
        """Bytes of a stored activation or of a gathered weight."""
        return VALUE_BYTES[self.used_precision]

    @property
    def on_node(self) -> int:
        """Devices in use on one server."""
        return min(self.devices, self.device.node_devices)

    @property
    def nodes(self) -> float:
        """Servers in use."""
        return self.devices / self.on_node

    @property
    def network_rate(self) -> float:
        """Bytes/s of a server, given or the device's."""
        return self.network or self.device.network

    def kernel_for(self, shape: ModelShape) -> Kernel:
        """The attention kernel, given or the shape's."""
        if self.kernel is not None:
            return self.kernel
        return "materialised" if shape.attention == "materialised" else "flash-triton"


@dataclass(frozen=True, slots=True)
class Work:
    """One micro-batch on one device, forward, backward and what is computed again.

    FLOP: `layers` (blocks without routed experts), `experts`, `vocabulary`, `scores`, `recurrent`.
    Bytes: `scores_moved` (materialised), `recurrent_moved`, `inside` and `across` (collectives within a server, per
    device, and between servers, per server), `exchanged_inside` and `exchanged_across` (tokens to experts, per device).
    Others: `elements` written or read by the operations around matrix products, `logits`, `hops` (ring steps, one after
    the other), `launches`, `time_steps` (of a recurrence, one after the other), `score_width` (of a head).
    """

    tokens: int
    layers: float
    experts: float
    vocabulary: float
    scores: float
    score_width: int
    scores_moved: float
    elements: float
    logits: float
    recurrent: float
    recurrent_moved: float
    time_steps: float
    inside: float
    across: float
    exchanged_inside: float
    exchanged_across: float
    hops: float
    launches: float
    optimizer_bytes: float
    """Of one step."""
    optimizer_flops: float
    """Of one step."""


def work(shape: ModelShape, plan: Plan) -> Work:
    """Count one micro-batch; sizes must be sound (`problems`)."""
    n, layers = plan.micro_batch * shape.seq_len, shape.n_layers
    passes = 3 + plan.recompute
    recurrent = recurrent_moved = time_steps = scores = scores_moved = 0.0
    experts, dense = _block_parameters(shape)
    if shape.kind == "lstm":
        forward = layers * costs.lstm_layer(plan.micro_batch, shape.seq_len, shape.d_model, shape.d_model)
        recurrent, recurrent_moved = passes * forward.flops, passes * forward.bytes * plan.value_bytes / 2
        time_steps = passes * layers * shape.seq_len
        dense = 0
    else:
        materialised = plan.kernel_for(shape) == "materialised"
        pairs = shape.n_heads * shape.seq_len**2
        visited = pairs if materialised else architecture.tile_scores(shape, TILE)
        backward = costs.ATTENTION_BACKWARD_MATMULS if materialised else costs.FLASH_BACKWARD_MATMULS
        products = 2 + backward + 2 * plan.recompute
        scores = plan.micro_batch * layers * visited * 2 * shape.width_per_head * products
        if materialised:
            moved = SCORE_BYTES["forward"][plan.value_bytes] * (1 + plan.recompute)
            moved += SCORE_BYTES["backward"][plan.value_bytes]
            scores_moved = plan.micro_batch * layers * pairs * moved
    inside, across, hops = _collectives(shape, plan)
    exchanged_inside, exchanged_across = _exchange(shape, plan)
    shards = _shards(plan)
    return Work(
        tokens=n,
        layers=2.0 * n * layers * dense * passes,
        experts=2.0 * n * layers * experts * passes,
        vocabulary=3 * 2.0 * n * shape.d_model * shape.vocab_size,
        scores=scores,
        score_width=shape.width_per_head if shape.kind == "transformer" else 1,
        scores_moved=scores_moved,
        elements=float(n) * layers * block_elements(shape) * passes,
        logits=float(n) * shape.vocab_size,
        recurrent=recurrent, recurrent_moved=recurrent_moved, time_steps=time_steps,
        inside=inside, across=across, exchanged_inside=exchanged_inside, exchanged_across=exchanged_across, hops=hops,
        launches=layers * (LAUNCHES["forward"] * (1 + plan.recompute) + LAUNCHES["backward"]),
        optimizer_bytes=OPTIMIZER_TRAFFIC * _held_parameters(shape, plan) / shards,
        optimizer_flops=architecture.optimizer_flops(shape) / plan.devices,
    )  # fmt: skip


def block_elements(shape: ModelShape) -> float:
    """Values that the operations of one block read and write per token, forward: 38 d_model for GPT's block.

    Every norm, product, activation, rotation and residual sum reads its operands and writes its result once, as in an
    eager program; weights and scores are not among them. GPT: norms 4, queries, keys and values 4, attention 4,
    output 2, sums 6, up 5, activation 8, down 5.
    """
    d = shape.d_model
    norm = 0 if shape.norm == "none" else 2 * d
    residual = 3 * d
    if shape.kind == "lstm":
        return norm + residual + 12 * d  # gates of input and state, then the cell
    q, kv = shape.n_heads * shape.width_per_head, 2 * shape.n_kv_heads * shape.width_per_head
    turned = (2 * (q + kv / 2) if shape.positions == "rope" else 0) + (2 * (q + kv / 2) if shape.qk_norm else 0)
    attention = (d + q + kv) + turned + (q + kv + q) + (q + d)
    into, width = costs.feed_forward_matmuls(shape.activation) - 1, _active_width(shape)
    # rows gathered by expert, and summed back
    moved = 2 * shape.top_k * d + (shape.top_k + 1) * d if _has_experts(shape) else 0
    feed_forward = (d + into * width) + (into * width + width) + (width + d) + moved
    return 2 * norm + 2 * residual + attention + feed_forward


def _block_parameters(shape: ModelShape) -> tuple[int, int]:
    """Weights that one token uses in a block: of its routed experts, of everything else."""
    active = sum(m.active * m.d_out * m.d_in for m in architecture.block_matrices(shape))
    routed = shape.top_k * _expert_parameters(shape)
    return routed, active - routed


def _expert_parameters(shape: ModelShape) -> int:
    """Weights of one routed expert; 0 where there is none."""
    if not _has_experts(shape):
        return 0
    return costs.feed_forward_matmuls(shape.activation) * shape.expert_width * shape.d_model


def _has_experts(shape: ModelShape) -> bool:
    return shape.kind != "lstm" and shape.feed_forward == "moe"


def _active_width(shape: ModelShape) -> int:
    """Hidden width that a token meets in a feed-forward layer."""
    if _has_experts(shape):
        return (shape.top_k + shape.n_shared_experts) * shape.expert_width
    return shape.feed_forward_width


def _held_parameters(shape: ModelShape, plan: Plan) -> float:
    """Parameters that a device would hold if data-parallel devices shared nothing."""
    routed = shape.n_layers * shape.n_experts * _expert_parameters(shape)
    return architecture.parameters(shape).total - routed + routed / plan.expert_parallel


def _shards(plan: Plan) -> int:
    """Devices over which the states of the optimizer are shared out."""
    return {"none": 1, "hybrid": plan.on_node}.get(plan.sharding, plan.devices)


def _collectives(shape: ModelShape, plan: Plan) -> tuple[float, float, float]:
    """Bytes inside a server (per device), bytes of a server on the network, and ring steps, of one micro-batch."""
    if plan.devices == 1:
        return 0.0, 0.0, 0.0
    n, g, nodes = _held_parameters(shape, plan), plan.on_node, plan.nodes
    weights, gradients, units = plan.value_bytes, plan.gradient_bytes, shape.n_layers + 1
    inner, outer = (g - 1) / g, (nodes - 1) / nodes
    if plan.sharding == "hybrid":
        per_node = 2 * gradients * n / plan.accumulate
        inside = inner * n * (2 * weights + gradients)
        return inside, outer * per_node, units * (3 * g + 2 * (nodes > 1) * nodes / plan.accumulate)
    # full: gathered for both passes, gradients scattered; gradients: gathered once; else once per step
    moved, collectives = {
        "full": (2 * weights + gradients, 3.0),
        "gradients": (weights + gradients, 2.0),
        "optimizer": ((weights + gradients) / plan.accumulate, 2 / plan.accumulate),
        "none": (2 * gradients / plan.accumulate, 2 / plan.accumulate),
    }[plan.sharding]
    return inner * n * moved, outer * n * moved, units * collectives * plan.devices


def _exchange(shape: ModelShape, plan: Plan) -> tuple[float, float]:
    """Bytes that a device sends to experts and back, inside its server and to others, of one micro-batch.

    A token goes to each of its experts' servers once and is handed on there (DeepSeek-V3, arXiv 2412.19437, section
    3.2.2); dispatch in fp8 takes one byte, everything else 16 bits. The backward pass sends as much again.
    """
    if not _has_experts(shape) or plan.expert_parallel == 1:
        return 0.0, 0.0
    values = plan.micro_batch * shape.seq_len * shape.n_layers * shape.d_model
    moved = 2 * values * (2 * plan.value_bytes if plan.used_precision != "fp8" else 1 + plan.value_bytes)
    nodes = max(1.0, plan.expert_parallel / plan.on_node)
    nodes_met = nodes * (1 - (1 - 1 / nodes) ** shape.top_k)
    here = min(plan.expert_parallel, plan.on_node)
    return moved * shape.top_k * (here - 1) / here, moved * nodes_met * (nodes - 1) / nodes


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a device holds at the fullest moment: a lower bound, since allocators waste some."""

    states: float
    gathered: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.states + self.gathered + self.activations + self.logits


def memory(shape: ModelShape, plan: Plan) -> Memory:
    """Least memory of a training step.

    Activations: inputs and outputs of norms, queries, keys, values, attention output, and the hidden layer before and
    after its activation: 16 d_model values for GPT's block (Korthikanti et al. 2022, arXiv 2205.05198, table 2, without
    dropout). Logits in 16 bits and in fp32.
    """
    n, d, value = plan.micro_batch * shape.seq_len, shape.d_model, plan.value_bytes
    held, shards = _held_parameters(shape, plan), _shards(plan)
    shared = {"none": 0, "optimizer": 8, "gradients": 12}.get(plan.sharding, PARAMETER_BYTES)
    states = held * (shared / shards + PARAMETER_BYTES - shared)
    layer = (held - architecture.parameters(shape).embedding) / shape.n_layers
    gathered = value * layer * 2 if plan.sharding in ("full", "hybrid") else 0.0
    if shape.kind == "lstm":
        kept = 8.0 * d
    else:
        q, kv = shape.n_heads * shape.width_per_head, 2 * shape.n_kv_heads * shape.width_per_head
        hidden = costs.feed_forward_matmuls(shape.activation) * _active_width(shape)
        kept = 2.0 * d * (1 if shape.norm == "none" else 2) + 2 * q + kv + hidden
        if plan.kernel_for(shape) == "materialised":
            kept += shape.n_heads * shape.seq_len
    per_block = n * kept * value
    blocks = shape.n_layers * n * d * value + per_block if plan.recompute else shape.n_layers * per_block
    return Memory(states, gathered, blocks, n * shape.vocab_size * (value + 4.0))


def problems(shape: ModelShape, plan: Plan, fits: bool = True) -> Iterator[str]:
    """One line for each rule that a plan breaks: field, rule, value, remedy; with `fits`, memory too."""
    counts = ("devices", "micro_batch", "accumulate", "gradient_bytes", "expert_parallel")
    small = [name for name in counts if not getattr(plan, name) >= 1]
    for name in small:
        yield f"{name} must be at least 1, got {getattr(plan, name)}; give 1 or more"
    for name, kind in (("sharding", Sharding), ("kernel", Kernel)):
        value = getattr(plan, name)
        if value is not None and value not in get_args(kind):
            yield f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}; use one of these"
    sound = not small
    device = plan.device
    if sound and plan.devices > device.node_devices and plan.devices % device.node_devices:
        yield (
            f"devices must fill servers of {device.node_devices} {device.name}, got {plan.devices}; "
            f"use {plan.devices // device.node_devices * device.node_devices} or fewer than {device.node_devices + 1}"
        )
    if plan.used_precision not in device.matmul:
        yield (
            f"precision must be one that {device.name} has, got {plan.used_precision!r}; "
            f"use {' or '.join(device.matmul)}"
        )
        sound = False
    if plan.network is not None and not plan.network > 0:
        yield f"network must be above 0 bytes/s, got {plan.network}; leave it out for the device's own"
    if plan.kernel in ("flash1", "flash2", "flash3") and device.generation == "cpu":
        yield f"kernel {plan.kernel} needs a GPU, got {device.name}; use flash-triton (fused) or materialised"
    elif plan.kernel == "flash3" and device.generation not in ("hopper", "blackwell"):
        yield f"kernel flash3 needs a Hopper GPU, got {device.name}; use flash2"
    if sound and plan.devices % plan.expert_parallel:
        yield (
            f"expert_parallel must divide devices, got {plan.expert_parallel} of {plan.devices}; "
            f"use {math.gcd(plan.expert_parallel, plan.devices)}"
        )
    if fits and sound and plan.sharding in get_args(Sharding):
        yield from _too_large(shape, plan)


def _too_large(shape: ModelShape, plan: Plan) -> Iterator[str]:
    need = memory(shape, plan)
    if need.total <= MEMORY_SLACK * plan.device.memory:
        return
    remedies = [words for words, other in _smaller(shape, plan) if memory(shape, other).total <= other.device.memory]
    remedy = ", or ".join(remedies) or "sharing out the model itself (tensor or pipeline parallel), not modelled here"
    yield (
        f"the model must fit into {plan.device.memory / 1e9:.0f} GB of {plan.device.title}, "
        f"got {need.total / 1e9:.0f} GB (states {need.states / 1e9:.0f}, activations {need.activations / 1e9:.0f}, "
        f"logits {need.logits / 1e9:.0f}); "
        f"what would: {remedy}"
    )


def _smaller(shape: ModelShape, plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Changes that ask for less memory, each by itself, in words; then several, more devices, another device."""
    if plan.micro_batch > 1:
        fewer = plan.micro_batch
        while fewer > 1 and memory(shape, dataclasses.replace(plan, micro_batch=fewer)).total > plan.device.memory:
            fewer //= 2
        yield f"micro_batch {fewer}", dataclasses.replace(plan, micro_batch=fewer)
    if not plan.recompute:
        yield "recomputation", dataclasses.replace(plan, recompute=True)
    if plan.sharding != "full" and plan.devices > 1:
        yield "full sharding", dataclasses.replace(plan, sharding="full")
    best = dataclasses.replace(plan, micro_batch=1, recompute=True, sharding="full")
    yield "full sharding with recomputation and micro_batch 1", best
    servers = max(1, plan.devices // plan.device.node_devices)
    while servers * plan.device.node_devices < MOST_DEVICES:
        servers *= 2
        wider = dataclasses.replace(best, devices=servers * plan.device.node_devices)
        if memory(shape, wider).total <= plan.device.memory:
            yield f"{wider.devices} devices (full sharding, recomputation, micro_batch 1)", wider
            break
    for device in DEVICES.values():
        if device.memory > plan.device.memory and plan.used_precision in device.matmul:
            other = dataclasses.replace(plan, device=device)
            if memory(shape, other).total <= device.memory:
                yield f"{device.name}", other
                break


def default_plan(shape: ModelShape, device: Device, **fields: object) -> Plan:
    """A plan for a shape where little is known: 8 devices, or as many as it takes, each given about 16k tokens.

    Recomputation is used where less than a quarter of those would fit without. `fields` sets fields of Plan; the most
    modest plan tried is given back where none fits.
    """
    start = Plan(device=device, devices=min(FIRST_DEVICES, device.node_devices))
    plan = dataclasses.replace(start, **fields)  # type: ignore[arg-type]
    wanted = max(1, TOKENS_PER_DEVICE // shape.seq_len)
    halves = [wanted >> i for i in range(wanted.bit_length())]
    while True:
        for recompute in (False, True) if "recompute" not in fields else (plan.recompute,):
            enough = 1 if recompute or "recompute" in fields else wanted / 4
            one = dataclasses.replace(plan, micro_batch=1, recompute=recompute)
            held = memory(shape, one)
            fixed, each = held.states + held.gathered, held.activations + held.logits
            for batch in halves if "micro_batch" not in fields else (plan.micro_batch,):
                if fixed + batch * each <= device.memory and (batch >= enough or "micro_batch" in fields):
                    return dataclasses.replace(one, micro_batch=batch)
            trial = dataclasses.replace(one, micro_batch=batch)
        if "devices" in fields or plan.devices >= MOST_DEVICES or plan.sharding not in ("full", "hybrid"):
            return trial
        plan = dataclasses.replace(plan, devices=2 * plan.devices)
