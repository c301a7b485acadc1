"""What is the fastest configuration of each kernel on this device: a search near the candidates in the code.

Operations run once with `launch.searching`; before each launch that may be tuned, configurations are compiled
at once, run on that launch's own arguments, compared with the default's results, and timed. Winners go to a table as
`cegain.kernels.tuned` reads it. One that is not at least `WORTH` faster than the default, in turns with it, is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cegain.benchmarks import suite
from cegain.benchmarks.cases import Case, first_line
from cegain.benchmarks.clock import Run, Stopwatch, race
from cegain.benchmarks.gpu_kernels import ROUNDS, slices
from cegain.benchmarks.lab import Lab
from cegain.benchmarks.record import Document, Record
from cegain.kernels import launch, tuned
from cegain.kernels.flash import flash_attention
from cegain.kernels.launch import Grid, MetaParameters

WORTH = 0.01
BLOCKS = (16, 256)
WARPS = (4, 8)
MOST_STAGES = 7
MOST, REHEARSED = 32, 2
"""Configurations tried for a launch, and for one of a rehearsal."""
TIMED, DECIDED = 5, 20
"""Calls of each configuration, and of the best one and the default in turns."""
AGREES = 0.02
"""Largest difference from the default's result over its largest entry: they sum in other orders, in 16 bits."""


def neighbours(metas: Sequence[MetaParameters], blocks: bool) -> list[MetaParameters]:
    """Configurations to try: those listed, then others near them; where `blocks`, also with other sizes of blocks.

    Warps and stages change one at a time, and each block to half and twice.
    """
    found = list(metas)
    for meta in metas:
        stages = [meta.num_stages + by for by in (-1, 1, 2, -2)]
        found += [_changed(meta, num_stages=n) for n in stages if 1 <= n <= MOST_STAGES]
        found += [_changed(meta, num_warps=n) for n in WARPS if n != meta.num_warps]
    if blocks:
        for meta in metas:
            sizes = [name for name in vars(meta) if name not in MetaParameters.__annotations__]
            for name in sizes:
                for size in (getattr(meta, name) // 2, getattr(meta, name) * 2):
                    if BLOCKS[0] <= size <= BLOCKS[1]:
                        other = _changed(meta, **{name: size})
                        found += [other, *(_changed(other, num_warps=n) for n in WARPS if n != other.num_warps)]
    return list(dict.fromkeys(found))


def _changed(meta: Any, **fields: int) -> MetaParameters:
    made: MetaParameters = dataclasses.replace(meta, **fields)
    return made


class Tuner:
    """A `cegain.kernels.launch.Search` that keeps what it finds in `found`, by launch.

    `rehearsal`: also launches that have one candidate, which must not work in place, and few configurations.
    """

    def __init__(
        self, watch: Stopwatch, deadline: float, known: Sequence[tuned.Launch] = (), rehearsal: bool = False
    ) -> None:
        self.watch, self.deadline, self.rehearsal = watch, deadline, rehearsal
        self.known = set(known)
        self.found: dict[tuned.Launch, Document] = {}
        self.late = False

    def __call__(
        self, kernel: Any, grid: Grid, metas: tuple[Any, ...], arguments: tuple[Any, ...], constants: dict[str, Any],
        key: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """Search for one launch, unless it is known, or the deadline (of time.monotonic) is past."""
        dtype = next(argument for argument in arguments if isinstance(argument, Tensor)).dtype
        launched = tuned.Launch.of(kernel, dtype, key, tuple(constants.items()), metas[0])
        if (len(metas) < 2 and not self.rehearsal) or launched in self.known:
            return
        if time.monotonic() > self.deadline:
            self.late = True
            return
        self.known.add(launched)
        timed, decided = (1, 2) if self.rehearsal else (TIMED, DECIDED)
        tried = neighbours(metas, blocks=callable(grid))[: REHEARSED if self.rehearsal else MOST]

        def run(meta: MetaParameters) -> None:
            launch.launch_with(meta, kernel, grid, arguments, constants)

        compile_at_once(kernel, grid, arguments, constants, tried)
        outputs = _outputs(run, metas[0], arguments)
        _poison(outputs)
        run(metas[0])
        expected = [output.clone() for output in outputs]
        seconds: dict[MetaParameters, float] = {}
        failed: list[str] = []
        for meta in tried:
            if time.monotonic() > self.deadline and seconds:
                self.late = True
                break
            why = _differs(run, meta, outputs, expected)
            if why:
                failed.append(f"{meta}: {why}")
                continue
            seconds[meta] = float(np.median([self.watch(functools.partial(run, meta)) for _ in range(timed)]))
        best = min(seconds, key=seconds.__getitem__, default=metas[0])
        runners = {name: _again(functools.partial(run, meta)) for name, meta in (("0", metas[0]), ("1", best))}
        times = race(runners, dict.fromkeys(runners, decided), self.watch)
        default, fastest = (float(np.median(times[name])) for name in runners)
        if best == metas[0] or fastest > (1 - WORTH) * default:
            best, fastest = metas[0], default
        self.found[launched] = {
            **launched._asdict(), "meta": dict(vars(best)), "seconds": fastest, "default_seconds": default,
            "tried": len(seconds), "failed": failed,
        }  # fmt: skip


def _again(run: Run) -> Callable[[int], Run]:
    """What `race` wants: the same call in every round."""
    return lambda _: run


def compile_at_once(
    kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: dict[str, Any], metas: Sequence[MetaParameters]
) -> None:
    """Compile configurations on all cores, where this Triton can; what cannot be compiled shows up when it is run."""
    if not hasattr(kernel, "warmup") or not torch.cuda.is_available():
        return
    with contextlib.suppress(Exception):
        from triton.runtime._async_compile import AsyncCompileMode

        with ThreadPoolExecutor(os.cpu_count()) as pool, AsyncCompileMode(pool, ignore_errors=True):
            for meta in metas:
                options = {"num_warps": meta.num_warps, "num_stages": meta.num_stages}
                kernel.warmup(*arguments, grid=grid, **constants, **meta.blocks(), **options)


def _outputs(run: Callable[[MetaParameters], None], meta: MetaParameters, arguments: Sequence[Any]) -> list[Tensor]:
    """The tensors among the arguments that a launch writes: those that do not stay NaN."""
    outputs = []
    for argument in arguments:
        if not isinstance(argument, Tensor) or not argument.is_floating_point() or 0 in argument.stride():
            continue
        tensor = argument.data  # what is kept for a backward pass must not look changed
        before = tensor.clone()
        tensor.fill_(torch.nan)
        run(meta)
        if not tensor.isnan().all():
            outputs.append(tensor)
        tensor.copy_(before)
    return outputs


def _differs(
    run: Callable[[MetaParameters], None], meta: MetaParameters, outputs: Sequence[Tensor], expected: Sequence[Tensor]
) -> str:
    """Why a configuration is none; empty where its results are the default's, also in what is not written."""
    _poison(outputs)
    try:
        run(meta)
    except Exception as error:  # registers, shared memory, what the compiler refuses
        return first_line(error)
    for output, wanted in zip(outputs, expected, strict=True):
        if not torch.equal(output.isnan(), wanted.isnan()):
            return "it writes other entries than the default"
        there, ours = wanted.nan_to_num(0.0).float(), output.nan_to_num(0.0).float()
        off, largest = float((ours - there).abs().max()), float(there.abs().max())
        if off > AGREES * largest:
            return f"its result differs by {off:.3g}, the largest entry being {largest:.3g}"
    return ""


def _poison(outputs: Sequence[Tensor]) -> None:
    for output in outputs:
        output.fill_(torch.nan)


def cases(kind: str) -> list[Case]:
    """What is tuned, those first that are needed most: our kernels at the shapes that are timed."""
    of = {name: chosen.cases for name, chosen in slices(kind).items()}
    if kind == "cpu":
        return [Case("attention", "causal", batch=1, heads_q=1, heads_kv=1, seq_q=20, seq_kv=20, head_dim=16)]
    causal, full = ([case for case in of["attention"] if case.pattern == name] for name in ("causal", "full"))
    mixtures = [case for case in of["moe"] if case.op == "moe"]
    # One of each first: other lengths are compiled by then, and only timed.
    first = [*causal[:1], causal[len(causal) // 2], *mixtures[:1], *of["decode"][:3], *of["sparse"][:2]]
    return list(dict.fromkeys([*first, *causal, *mixtures, *of["decode"], *full, *of["sparse"]]))


def run(record: Record, device: torch.device, deadline: float, write_table: Callable[[object], None]) -> int:
    """Tune what is open until the deadline; returns how many cases are left. The table is written after each."""
    lab = Lab(device, ROUNDS[device.type], full=False)
    of_device: list[Document] = record.document.setdefault("table", {}).setdefault(lab.environment["device"], [])
    known = [tuned.Launch(**{field: entry[field] for field in tuned.Launch._fields}) for entry in of_device]
    named = {f"tune: {case}": case for case in cases(device.type)}
    left = record.open(list(named))
    for i, label in enumerate(left):
        if time.monotonic() > deadline:
            return len(left) - i
        record.begin(label)
        tuner = Tuner(lab.watch, deadline, known, rehearsal=device.type == "cpu")
        with _defaults():
            said = _once(tuner, named[label], device)
        now = {name: lab.environment[name] for name in ("triton", "torch", "driver", "commit", "date")}
        entries = [{**entry, **now} for entry in tuner.found.values()]
        of_device += entries
        known += tuner.found
        for entry in entries:
            gain = entry["default_seconds"] / entry["seconds"]
            print(f"{label}: {entry['kernel']}: {gain:.2f}x by {entry['meta']}, {entry['tried']} tried", flush=True)
        write_table(record.document["table"])
        if tuner.late:
            record.leave(label)
            return len(left) - i
        record.end(label, said or f"{len(entries)} launches")
        if said:
            print(f"{label}: {said}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


def _once(tuner: Tuner, case: Case, device: torch.device) -> str:
    """Run ours forward and backward, or decode, with a search before each launch; what went wrong, in words."""
    operation = suite.OPERATIONS[case.op](case, device)
    runs = [one.run for one in operation.implementations() if one.ours]
    if device.type == "cpu":  # in Triton's interpreter
        runs = [functools.partial(flash_attention, backend="triton")]
    try:
        for run in runs:
            leaves = operation.leaves(0)
            with launch.searching(tuner):
                out = run(*leaves)
                if out.requires_grad:
                    torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], torch.randn_like(out))
    except Exception as error:
        return f"WRONG: {first_line(error)}"
    return ""


@contextlib.contextmanager
def _defaults() -> Iterator[None]:
    """No tuning but the search's own: other launches take the first candidate."""
    before = os.environ.get("CEG_AUTOTUNE")
    os.environ["CEG_AUTOTUNE"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CEG_AUTOTUNE"]
        else:
            os.environ["CEG_AUTOTUNE"] = before
