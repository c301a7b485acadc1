"""Picture of `ceg scenario`: effective compute by year with its bands, and the share of each class."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from cegain import algorithms
from cegain.common.text import budget, share
from cegain.pictures import style
from cegain.pictures.style import BLUE, GREEN, GREY, NARROW_DARK, RED, WIDE_PALE
from cegain.views.scenario import GROWING, LITERATURE, Scenario

_PARTS = {
    "independent": (BLUE, ""), "fading": (GREEN, "\\\\\\\\"), "dependent": (RED, "////"), GROWING: ("#BBBBBB", "...."),
}  # fmt: skip
"""Colour and hatch of what a gain needs."""


def draw(scenario: Scenario, ending: str) -> bytes:
    """Draw effective compute by year above, and the share of each class below."""
    a = scenario.assumptions
    title = f"Hardware frozen at {budget(a.freeze)} FLOP: what algorithms alone bring"
    if a.stack:
        title += f", with {' + '.join(algorithms.get(name).title for name in a.stack)} in use from the start"
    with style.picture(6.8, 5.8, title) as page:
        above, below = page.subplots(2, 1, height_ratios=(8, 1))
        _fan(above, scenario)
        _shares(below, scenario)
        pace = "the literature's" if a.pace == LITERATURE else "the registry's" if a.per_year is None else "as given"
        reading = (
            "Line: median. Bands: 50% (dark) and 90%. Level line: the frozen budget. "
            f"Pace: {pace}, {scenario.rate_said}. A scenario, not a forecast."
        )
        style.below(page, reading, style.source(f"evidence {scenario.evidence_sha256[:8]}"))
        return style.encode(page, ending)


def _fan(axes: Axes, scenario: Scenario) -> None:
    years = np.array([y.year for y in scenario.years])
    wide, narrow = (np.array([getattr(y, f"interval_{p}") for y in scenario.years]) for p in (90, 50))
    for ends, alpha in ((wide, WIDE_PALE), (narrow, NARROW_DARK)):
        axes.fill_between(years, *ends.T, color=BLUE, alpha=alpha, linewidth=0)
    axes.plot(years, [y.median for y in scenario.years], color=BLUE, linewidth=2.0)
    axes.axhline(scenario.assumptions.freeze, color=GREY, linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, numticks=10))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, years[-1])
    axes.set_xlabel("years after the freeze")
    axes.set_ylabel(f"effective compute (FLOP {'without these' if scenario.assumptions.stack else 'of today'})")
    axes.yaxis.set_major_formatter(lambda flops, _: f"{flops:.0e}".replace("e+", "e"))


def _shares(axes: Axes, scenario: Scenario) -> None:
    """One bar of the expected ln gain, with its parts named where they have room."""
    left = 0.0
    for name, (colour, hatch) in _PARTS.items():
        part = scenario.shares.get(name, 0.0)
        if not part:
            continue
        axes.barh(0, part, left=left, color=colour, edgecolor="white", hatch=hatch, linewidth=0.8, label=name)
        left += part
    handles, labels = axes.get_legend_handles_labels()
    named = [f"{name} {share(scenario.shares[name])}" for name in labels]
    axes.legend(handles, named, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    whole = "the literature's pace" if scenario.assumptions.pace == LITERATURE else "the expected gain"
    axes.set_title(f"share of {whole}, in ln, by what it needs")
