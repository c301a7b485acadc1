"""Loss curves of runs, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from cegain.pictures import style
from cegain.pictures.style import SERIES, STYLE
from cegain.training.run.run_dir import RunDir


def draw(runs: Sequence[RunDir], ending: str) -> bytes:
    """Training and validation loss (nats per token) against useful FLOP; `ending` is .png, .svg or .pdf."""
    with mpl.rc_context(STYLE):
        page = style.figure(7, 4.7)
        style.title(page, "Loss of training runs against compute")
        axes = page.subplots()
        sources = {_curve(axes, run, *SERIES[i % len(SERIES)]) for i, run in enumerate(runs)}
        axes.set_xlabel("training compute (useful FLOP)")
        axes.set_ylabel("loss (nats per token)")
        axes.legend()
        reading = "Thin line: training. Points: held-out text, the last one on all of it, with its value in the legend."
        style.below(page, reading, style.source(*sorted(sources)))
        return style.encode(page, ending)


def _curve(axes: Axes, run: RunDir, colour: str, marker: str, line: Any) -> str:
    """Draw one run; returns what to cite."""
    config, lines = run.read("config") or {}, run.metrics()
    label = f"{config.get('arm', run.path.name)} on {config.get('stack', '?')}, seed {config.get('seed', '?')}"
    axes.plot([x["flops"] for x in lines], [_number(x["loss"]) for x in lines], color=colour, lw=0.7, alpha=0.6)
    points = [(x["flops"], x["validation_loss"]) for x in lines if x.get("validation_loss") is not None]
    summary = run.read("summary")
    if summary and summary["loss_nats_per_token"] is not None:
        points.append((summary["flops"], summary["loss_nats_per_token"]))
        label += f": {summary['loss_nats_per_token']:.3f}"
    look: Any = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "linewidth": 1.3}
    axes.plot([x for x, _ in points], [y for _, y in points], label=label, **look)
    environment = run.read("environment") or {}
    made_at = f"trained at commit {environment.get('commit', '?')}"
    return f"{config.get('corpus', '?')}, {environment.get('device', '?')}, {made_at}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value
