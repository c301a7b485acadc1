"""Loss curves of runs, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from estimator.plot import GREY, STYLE, encode
from training.run_dir import RunDir


def draw(runs: Sequence[RunDir], ending: str) -> bytes:
    """Training and validation loss (nats per token) against useful FLOP; `ending` is .png, .svg or .pdf."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.3), layout="constrained")
        axes = figure.subplots()
        sources = {_curve(axes, run, f"C{i % 10}") for i, run in enumerate(runs)}
        axes.set_xlabel("training compute (FLOP)")
        axes.set_ylabel("loss (nats per token)")
        axes.set_title("line: training; points: held-out text, the last one on all of it", fontsize=8.5, loc="left")
        axes.legend(frameon=False, fontsize=8)
        figure.supxlabel(f"Source: {'; '.join(sorted(sources))}", fontsize=6, color=GREY)
        return encode(figure, ending)


def _curve(axes: Axes, run: RunDir, colour: str) -> str:
    """Draw one run; returns what to cite."""
    config, lines = run.read("config") or {}, run.metrics()
    label = f"{config.get('arm', run.path.name)} on {config.get('stack', '?')}, seed {config.get('seed', '?')}"
    axes.plot([x["flops"] for x in lines], [_number(x["loss"]) for x in lines], color=colour, lw=0.7, alpha=0.6)
    points = [(x["flops"], x["validation_loss"]) for x in lines if x.get("validation_loss") is not None]
    summary = run.read("summary")
    if summary and summary["loss_nats_per_token"] is not None:
        points.append((summary["flops"], summary["loss_nats_per_token"]))
        label += f": {summary['loss_nats_per_token']:.3f}"
    axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, ms=4, lw=1.3, label=label)
    environment = run.read("environment") or {}
    return f"{config.get('corpus', '?')}, {environment.get('device', '?')}, commit {environment.get('commit', '?')}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value
