"""`ceg steptime`: how long one training step, or one decoded token, takes. Imported by name when it is called."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from cegain.commands.options import (
    POSITIVE,
    BadInput,
    Command,
    console,
    flag,
    number,
    print_json,
    refuse,
    refused,
    show,
    single,
    write,
)

if TYPE_CHECKING:
    from cegain.shapes.architecture import ModelShape
    from cegain.speed.step_time import StepTime, TokenTime

_FLAGS = {
    "n_layers": "--layers", "d_model": "--width", "n_heads": "--heads", "gqa_group": "--kv-heads", "d_ff": "--ff",
    "vocab_size": "--vocab", "seq_len": "--seq-len", "n_experts": "--experts", "top_k": "--top-k",
    "devices": "--gpus", "micro_batch": "--micro-batch", "accumulate": "--accumulate", "sharding": "--sharding",
    "kernel": "--attention", "precision": "--precision", "expert_parallel": "--expert-parallel", "params": "--params",
    "network": "--network-gbps", "context": "--context", "batch": "--batch", "gradient_bytes": "--reduce-bits",
    "device": "--device",
}  # fmt: skip
_WORDS = {" if head_dim is None": "", "give head_dim, or use": "use", "n_heads": "heads", "d_model": "width"}
# options that hold whole numbers, with examples
_SHAPE = {"layers": "12", "width": "768", "heads": "12", "kv_heads": "8", "ff": "3072", "experts": "8", "top_k": "2"}
_ENDS = ("published", "calibrate", "store", "as_json")
_PLAN = {"gpus": "8", "micro_batch": "4", "accumulate": "1", "expert_parallel": "8"}


@click.command("steptime", cls=Command)
@single("--params", metavar="N", help="Parameters, such as 7e9: layers and width follow.")
@single("--layers", metavar="N", help="Blocks.")
@single("--width", metavar="N", help="Of the residual stream.")
@single("--heads", metavar="N", help="Query heads (width / 128).")
@single("--kv-heads", metavar="N", help="Key and value heads (as many).")
@single("--ff", metavar="N", help="Width of the feed-forward layer, or of one expert.")
@single("--experts", metavar="N", help="Experts per layer.")
@single("--top-k", metavar="N", help="Experts per token (2).")
@single("--block", default="gpt", metavar="gpt|llama", help="gpt: GELU, learned positions; llama: SwiGLU, RoPE.")
@single("--vocab", default="50368", metavar="N", help="Vocabulary entries (50368).")
@single("--seq-len", default="2048", metavar="N", help="Tokens per sequence (2048).")
@single("--device", metavar="NAME", help="v100, a100-40, a100-80, h100, h800, h200, b200 or cpu.")
@single("--gpus", metavar="N", help="Devices (8, or as many as it takes).")
@single("--micro-batch", metavar="N", help="Sequences per device and pass (16k tokens, or what fits).")
@single("--accumulate", metavar="N", help="Micro-batches per step (1).")
@click.option("--recompute/--no-recompute", default=None, help="Run blocks again for the backward pass (if it must).")
@single("--sharding", default="full", metavar="none|optimizer|gradients|full|hybrid", help="As ZeRO 0 to 3 or FSDP.")
@single("--attention", metavar="KERNEL", help="materialised, flash-triton (default), flash1, flash2 or flash3.")
@single("--precision", metavar="bf16|fp8|fp16|fp32", help="The device's own by default.")
@single("--reduce-bits", default="16", metavar="16|32", help="Width of gradients while they are summed (16).")
@single("--network-gbps", metavar="G", help="Gbit/s of a server to others; the device's usual server by default.")
@single("--expert-parallel", metavar="N", help="Devices that share out the experts of a layer (1).")
@click.option("--decode", is_flag=True, help="Time a decoded token instead: --context, --batch.")
@single("--context", metavar="N", help="With --decode: tokens in each sequence's cache (--seq-len).")
@single("--batch", metavar="N", help="With --decode: sequences (1).")
@click.option("--published", is_flag=True, help="Predict device-hours of four published runs instead.")
@single("--calibrate", metavar="TABLE.csv", help="Fit the constants to a table of measured throughput instead.")
@click.option("--write", "store", is_flag=True, help="With --calibrate: store them (for maintainers).")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
@click.pass_context
def steptime_command(
    ctx: click.Context, /, published: bool, calibrate: str | None, store: bool, as_json: bool, **options: Any
) -> None:
    """How long one training step takes: throughput, utilisation, where the time goes, what binds.

    \b
    ceg steptime --params 7e9 --seq-len 2048 --device h100 --gpus 128
    ceg steptime --layers 24 --width 2048 --heads 16 --device a100-80 --micro-batch 8 --json
    ceg steptime --params 7e9 --device h100 --decode --context 16384
    ceg steptime --published
    """
    problems = []
    if published or calibrate is not None:
        mode = "--published" if published else "--calibrate"
        problems = [
            f"{flag(name)}: it goes without {mode}. Leave one of them out." for name in _typed(ctx, sorted(options))
        ]
        if published and calibrate is not None:
            problems.append("--calibrate: it goes without --published. Leave one of them out.")
    if store and calibrate is None:
        problems.append("--write: it goes with --calibrate. Add --calibrate TABLE.csv, or leave it out.")
    if published or calibrate is not None:
        refuse(problems)
        _published(as_json) if published else _calibrate(str(calibrate), store, as_json)
        return
    problems += _misplaced(ctx, bool(options["decode"]))
    from cegain.speed import step_text
    from cegain.speed.step_time import TokenTime

    step = _timed(options, problems)
    if isinstance(step, TokenTime):
        print_json(step_text.token_document(step)) if as_json else click.echo(step_text.token_plain(step))
    else:
        print_json(step_text.document(step)) if as_json else click.echo(step_text.plain(step))


def _timed(options: dict[str, Any], problems: list[str]) -> StepTime | TokenTime:
    """One training step or one decoded token."""
    from cegain.speed import hardware, measured_device, step_time, step_work

    shape = _read_shape(options, problems)
    device = None
    if options["device"] is None:
        problems.append(f"--device: one of {', '.join(hardware.DEVICES)} is needed (found none). Try h100.")
    else:
        try:
            device = measured_device.find(options["device"])
        except ValueError as error:
            problems += _flagged([str(error)])
    fields = _read_plan(options, problems)
    context = number("--context", options["context"] or options["seq_len"], problems, "4096", int)
    batch = number("--batch", options["batch"] or "1", problems, "1", int)
    if shape is not None and device is not None and not problems and options["decode"]:
        try:
            return step_time.decoded_token(
                shape, device, context=context or 0, batch=batch or 0, devices=fields.get("devices", 1)
            )
        except ValueError as error:
            raise BadInput(_flagged(str(error).splitlines())) from None
    if shape is not None and device is not None:
        # a plan with bad counts is reported as it is, a sound one is completed
        plan = step_work.Plan(device=device, **fields)
        broken = list(step_work.problems(shape, plan, fits=False))
        if not broken:
            plan = step_work.default_plan(shape, device, **fields)
            broken = list(step_work.problems(shape, plan))
        problems += _flagged(broken)
    if problems or shape is None or device is None:
        raise BadInput(problems)
    return step_time.training_step(shape, plan)


def timed(words: Sequence[str]) -> StepTime | TokenTime:
    """What the command times, from the words of its command line.

    Raises:
        click.UsageError: everything wrong with them.
    """
    context = steptime_command.make_context("steptime", list(words))
    options = {name: value for name, value in context.params.items() if name not in _ENDS}
    problems = _misplaced(context, bool(options["decode"]))
    return _timed(options, problems)


def _misplaced(context: click.Context, decode: bool) -> list[str]:
    """Options of a decoded token that were given for a training step."""
    names = [] if decode else _typed(context, ("context", "batch"))
    return [f"--{name}: it goes with --decode. Add that, or leave it out." for name in names]


def _typed(context: click.Context, names: Iterable[str]) -> list[str]:
    """Those options that stand on the command line."""
    default = click.core.ParameterSource.DEFAULT
    return [name for name in names if context.get_parameter_source(name) is not default]


def _read_shape(options: dict[str, Any], problems: list[str]) -> ModelShape | None:
    """The shape that the options give, or None with problems added."""
    from cegain.shapes.sizes import shape_of, shape_with

    before = len(problems)
    names = [n for n in (*_SHAPE, "vocab", "seq_len") if options[n] is not None]
    read = {n: number(flag(n), options[n], problems, _SHAPE.get(n, "2048"), int) for n in names}
    sizes = {n: value for n, value in read.items() if value is not None}
    block: Literal["gpt", "llama"] = "llama" if options["block"].lower() == "llama" else "gpt"
    if options["block"].lower() != block:
        problems.append(f"--block: gpt or llama is needed (found {options['block']!r}). Try gpt.")
    parameters = None
    if options["params"] is not None:
        parameters = number(
            "--params", options["params"], problems, "7e9",
            fits=lambda n: 1e5 <= n <= 1e14, rule="1e5 to 1e14 parameters are needed",
        )  # fmt: skip
        both = [flag(n) for n in ("layers", "width", "heads", "kv_heads") if n in read]
        if both:
            problems.append(f"--params: it goes without {', '.join(both)}. Leave one or the other out.")
    elif not {"layers", "width"} <= set(read):
        problems.append("--params: a size is needed (found none). Give --params 7e9, or --layers and --width.")
    fields: dict[str, Any] = {}
    if "ff" in sizes:
        fields["d_expert" if "experts" in read else "d_ff"] = sizes["ff"]
    if "experts" in sizes:
        activation = "swiglu" if block == "llama" else "gelu"
        fields |= {"feed_forward": "moe", "n_experts": sizes["experts"], "expert_activation": activation}
        fields |= {"top_k": sizes["top_k"]} if "top_k" in sizes else {}
    elif "top_k" in read and "experts" not in read:
        problems.append("--top-k: it goes with --experts. Add --experts 8, or leave it out.")
    if len(sizes) < len(read):
        return None
    width = sizes.get("width", 128)
    heads = sizes.get("heads", max(1, width // 128))
    kv = sizes.get("kv_heads")
    if kv is not None and (kv < 1 or heads < 1 or heads % kv):
        problems.append(f"--kv-heads: a divisor of the {heads} heads is needed (found {kv}). Try 1.")
    elif kv is not None:
        fields |= {"heads": "gqa", "gqa_group": heads // kv}
    try:
        if parameters is not None and len(problems) == before:
            return shape_with(parameters, sizes["vocab"], sizes["seq_len"], block, **fields)
        # without a size of its own, the rest is still checked
        layers = sizes.get("layers", 1)
        shape = shape_of(layers, width, heads, sizes["vocab"], sizes["seq_len"], block, **fields)
    except ValueError as error:
        problems += _flagged(line for line in str(error).splitlines() if not line.startswith("ModelShape has"))
        return None
    return shape


def _read_plan(options: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Fields of a Plan that the options give."""
    from cegain.speed.step_work import SHARDINGS

    fields: dict[str, Any] = {}
    for name, example in _PLAN.items():
        value = number(flag(name), options[name], problems, example, int)
        if value is not None:
            fields["devices" if name == "gpus" else name] = value
    sharding = options["sharding"].lower()
    if sharding in SHARDINGS:
        fields["sharding"] = SHARDINGS[sharding]
    else:
        problems.append(
            f"--sharding: one of {', '.join(dict.fromkeys(SHARDINGS.values()))} is needed "
            f"(found {options['sharding']!r}). Try full."
        )
    if options["recompute"] is not None:
        fields["recompute"] = options["recompute"]
    if options["attention"] is not None:
        fields["kernel"] = options["attention"].lower()
    if options["precision"] is not None:
        fields["precision"] = options["precision"].lower()
    if options["reduce_bits"] not in ("16", "32"):
        problems.append(f"--reduce-bits: 16 or 32 is needed (found {options['reduce_bits']!r}). Try 16.")
    else:
        fields["gradient_bytes"] = int(options["reduce_bits"]) // 8
    rule = {"rule": "a number above 0 is needed", "found": "{value:g}"}
    gigabits = number("--network-gbps", options["network_gbps"], problems, "3200", **POSITIVE | rule)
    if gigabits is not None:
        fields["network"] = gigabits * 1e9 / 8
    return fields


def _flagged(lines: Iterable[str]) -> list[str]:
    """Problems of a library call under the names of the options that they came from."""
    problems = []
    for line in lines:
        name, _, rest = line.removeprefix("- ").partition(" ")
        for field, word in _WORDS.items():
            rest = rest.replace(field, word)
        text = f"{_FLAGS[name]}: {rest}" if name in _FLAGS else f"{name} {rest}"
        problems.append(text if text.endswith((".", "?")) else f"{text}.")
    return problems


def _published(as_json: bool) -> None:
    from cegain.speed import device_hours

    predictions = [device_hours.predict(run) for run in device_hours.RUNS]
    show(as_json, device_hours.document, device_hours.render, predictions)


def _calibrate(table: str, store: bool, as_json: bool) -> None:
    from cegain.speed import calibration, step_time

    with refused(prefix="--calibrate: "):
        rows = calibration.read_table(table)
    fitted, scores = calibration.calibrate(rows)
    document = calibration.document(table, rows, fitted, scores)
    if store:
        write("--write", step_time.CONSTANTS_FILE, (json.dumps(document, indent=1) + "\n").encode())
    print_json(document) if as_json else calibration.render(console(), document)
