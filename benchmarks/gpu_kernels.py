"""The slices of `gpu` that time kernels: which cases, in which order, against whom.

Each case is checked against the definition before it is timed, as in `lab`, and its rows are written before
the next one begins.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from cegain.benchmarks import suite
from cegain.benchmarks.cases import DTYPES, Case, Implementation, first_line
from cegain.benchmarks.clock import Rounds
from cegain.benchmarks.lab import Ceilings, Lab, Wanted
from cegain.benchmarks.record import Document, Record
from cegain.tables.kernel_times import SESSION

ROUNDS: Mapping[str, Rounds] = {"cuda": Rounds(0.2, least=20, most=100), "cpu": Rounds(0.0, least=2, most=2)}
"""By kind of device; a rehearsal has the fewest that have quantiles."""
LENGTHS: Mapping[str, tuple[int, ...]] = {"cuda": (4096, 2048, 8192, 16384, 1024, 512), "cpu": (40,)}
"""Tokens of sequences by kind of device, those first that are needed most when time runs out."""
CACHES: Mapping[str, tuple[int, ...]] = {"cuda": (16384, 65536, 4096, 1024), "cpu": (40,)}
TOKENS: Mapping[str, tuple[int, ...]] = {"cuda": (32768, 8192, 2048), "cpu": (40,)}
"""Of feed-forward layers."""
MATERIALISED_AT_MOST = 8192
"""Tokens of a sequence up to which all scores are held for comparison: 17 GB a copy at twice as many on a GPU."""
CEILINGS = "ceilings"


class Slice(NamedTuple):
    """Cases in order of need, and names of the implementations of others that are timed: the rest is slower by far."""

    cases: list[Case]
    rivals: tuple[str, ...]


def slices(kind: str) -> dict[str, Slice]:
    """By name; full sizes on "cuda", on "cpu" those of a rehearsal."""
    full = kind == "cuda"

    def cases(family: str, lengths: Sequence[int]) -> list[Case]:
        return [case for length in lengths for case in suite.cases(family, kind, (length,), full)]

    causal = sorted(cases("flash", LENGTHS[kind]), key=lambda case: -case.head_dim)
    everywhere = [dataclasses.replace(case, pattern="full") for case in causal]
    mixtures = [case for length in TOKENS[kind] for case in reversed(cases("moe", [length]))]
    sparse = sorted(
        cases("sparse", [8192] if full else LENGTHS[kind]), key=lambda case: (case.pattern != "blocks", -case.head_dim)
    )
    return {
        "attention": Slice(causal + everywhere, ("sdpa_cudnn", "sdpa_flash", "flex", "materialised")),
        "sparse": Slice(sparse, ("sdpa_efficient", "flex")),
        "decode": Slice(cases("decode", CACHES[kind]), ("sdpa_cudnn", "sdpa_flash", "materialised")),
        "moe": Slice(mixtures, ("grouped_mm", "dense_ffn")),
    }


NAMES = (CEILINGS, *slices("cuda"))


def run(name: str, record: Record, device: torch.device, deadline: float) -> int:
    """Measure what is open of a slice until the deadline (of time.monotonic); returns how many cases are left."""
    lab = Lab(device, ROUNDS[device.type], full=device.type == "cuda")
    known = _known_ceilings(record, lab)
    if known is None:
        _measure(lab, record, CEILINGS)
    else:
        lab.ceilings = known
    if name == CEILINGS:
        return 0
    chosen = slices(device.type)[name]
    named = {f"{name}: {case}": case for case in chosen.cases}
    left = record.open(list(named))
    for i, label in enumerate(left):
        if time.monotonic() > deadline:
            return len(left) - i
        _measure(lab, record, label, named[label], chosen.rivals)
    return 0


def _measure(lab: Lab, record: Record, label: str, case: Case | None = None, rivals: Sequence[str] = ()) -> None:
    """One case, or the ceilings, on record and in a line."""
    began = time.monotonic()
    record.begin(label)
    said: list[str] = []
    if case is not None:
        try:
            said = _race(lab, case, rivals)
        except torch.OutOfMemoryError as error:
            said = [f"left out: {first_line(error)}"]
    rows = _rows(lab, [case] if case is not None else None, record.document["rehearsal"])
    record.end(label, "; ".join(said) or "measured", rows)
    print(f"{label}: {len(rows)} times in {time.monotonic() - began:.1f} s", *said, sep="\n    ", flush=True)
    if lab.device.type == "cuda":
        torch.cuda.empty_cache()


def _race(lab: Lab, case: Case, rivals: Sequence[str]) -> list[str]:
    """Measure a case; what was wrong or skipped, in words."""
    operation = suite.OPERATIONS[case.op](case, lab.device)
    chosen = [one for one in operation.implementations() if one.ours or (one.name in rivals and _fits(one, case))]
    wanted: list[Wanted] = [(one.name, pass_) for one in chosen for pass_ in operation.passes]
    lab.measure(operation, wanted)
    outcomes = lab.found[case]
    wrong = [
        f"WRONG: {name} {pass_}: {outcomes[name, pass_].wrong}" for name, pass_ in wanted if outcomes[name, pass_].wrong
    ]
    skipped = [
        f"skipped: {name} {pass_}: {outcomes[name, pass_].skipped}"
        for name, pass_ in wanted
        if outcomes[name, pass_].skipped
    ]
    return wrong + skipped


def _fits(one: Implementation, case: Case) -> bool:
    return one.name != "materialised" or case.op == "decode" or case.seq_kv <= MATERIALISED_AT_MOST


def _rows(lab: Lab, cases: Sequence[Case] | None, rehearsal: bool) -> list[Document]:
    """What was timed of cases, or of all ceilings, as pytest-benchmark writes it."""
    _ = lab.ceilings
    rows: list[Document] = []
    for case in lab.found if cases is None else cases:
        operation = suite.OPERATIONS[case.op](case, lab.device)
        for (name, pass_), outcome in lab.found.get(case, {}).items():
            if outcome.seconds:
                rows.append(
                    {
                        "name": f"{case}-{name}-{pass_}",
                        "group": f"{case}, {pass_}",
                        "extra_info": {**lab.row(operation, name, pass_), "rehearsal": rehearsal},
                        "stats": {"median": float(np.median(outcome.seconds)), "rounds": len(outcome.seconds)},
                    }
                )
    return rows


def _known_ceilings(record: Record, lab: Lab) -> Ceilings | None:
    """Those that the record has of this session; None where it has none."""
    infos = [one["extra_info"] for one in record.document["benchmarks"]]
    here = [info for info in infos if all(info[name] == lab.environment[name] for name in SESSION)]
    dtype = str(DTYPES[lab.device.type]).removeprefix("torch.")
    products = [info["flops"] / info["median_s"] for info in here if info["op"] == "gemm" and info["dtype"] == dtype]
    copies = [info["bytes"] / info["median_s"] for info in here if info["op"] == "copy"]
    return Ceilings(max(products), max(copies)) if products and copies else None


def checks(device: torch.device) -> list[str]:
    """Ours against the definition at odd sizes, in every dtype of 16 bits: a line each, for where pytest is missing."""
    from cegain.benchmarks.check import Truth, WrongResultError

    sizes: dict[str, dict[str, int]] = {
        "attention": {"batch": 2, "heads_q": 4, "heads_kv": 4, "seq_q": 333, "seq_kv": 333, "head_dim": 64},
        "decode": {"batch": 3, "heads_q": 8, "heads_kv": 2, "seq_q": 1, "seq_kv": 333, "head_dim": 64},
        "moe": {"seq_q": 333, "d_model": 128, "d_ff": 96, "experts": 7, "top_k": 2},
    }
    patterns = {
        "attention": ("causal", "full", "window", "strided", "fixed", "blocks"),
        "decode": ("full",),
        "moe": ("",),
    }
    lines = []
    for op, given in sizes.items():
        for pattern in patterns[op]:
            for dtype in ("bfloat16", "float16"):
                case = Case(op, pattern, dtype=dtype, **given)
                operation = suite.OPERATIONS[op](case, device)
                truth = Truth(operation, operation.leaves(0))
                for one in operation.implementations():
                    if one.ours:
                        try:
                            truth.check(one)
                            lines.append(f"ok: {one.name}, {case}")
                        except WrongResultError as error:
                            lines.append(f"WRONG: {error}")
                        except Exception as error:
                            lines.append(f"WRONG: {one.name}, {case}: {first_line(error)}")
    return lines


if __name__ == "__main__":
    print("\n".join(checks(torch.device("cuda" if torch.cuda.is_available() else "cpu"))))
