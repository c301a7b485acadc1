"""Tables of runs with a known gain, as people who tune or change tokenizers have them."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

BUDGETS = [10.0 ** (17 + i / 2) for i in range(7)]
Row = dict[str, object]


def loss(flops: float, gain: float = 1.0) -> float:
    """Of a compute-optimal run, nats per token."""
    return float(1.7 + 400 * (flops * gain) ** -0.13)


def arm(
    name: str,
    gain: float,
    *,
    settings: Sequence[Mapping[str, object]] = ({},),
    penalty: Callable[[Mapping[str, object]], float] = lambda _: 0.0,
    seeds: int = 1,
    noise: float = 0.002,
    seed_column: str | None = None,
) -> list[Row]:
    """Runs of every budget: each setting, `penalty` worse in ln loss, with so many seeds."""
    rng = np.random.default_rng(sum(map(ord, name)))
    rows: list[Row] = []
    for flops in BUDGETS:
        size = (flops / 120) ** 0.5
        for setting in settings:
            for seed in range(seeds):
                value = loss(flops, gain) * np.exp(penalty(setting) + noise * rng.normal())
                row: Row = {"variant": name, "N": f"{size:.6g}", "D": f"{flops / 6 / size:.6g}", "C": f"{flops:.6g}"}
                row |= {"loss": f"{value:.5f}", **setting}
                if seed_column:
                    row[seed_column] = seed
                rows.append(row)
    return rows


def write(path: Path, rows: Sequence[Row]) -> Path:
    """As CSV; columns that a row lacks are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, names, restval="")
        table.writeheader()
        table.writerows(rows)
    return path
