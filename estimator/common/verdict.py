"""The rules of status and class, the same for every command."""

from __future__ import annotations

from collections.abc import Mapping

from cegain.common.mixture import Mixture

STATUSES = ("ok", "far_extrapolation", "no_evidence")
"""From the best to the worst."""
FAR_DECADES = 3.0
NEAR_DECADES = 0.5
"""An answer so near to a run is drawn as one that the evidence reaches."""
FAR_WIDTH = 100.0
CLASS_SLOPE = 0.10
"""|d ln CEG / d log10 C| above which a gain depends on compute; fixed before any fit."""
UNDETERMINED = 0.7
LEARNT = 0.6
"""The sd of a slope after its rows, over that before, at or below which the rows have earned a label."""
CLASS_DECADES = 2.0
"""Runs that fix the level must span so many decades of the range of a class before it gets a label."""


def classes_of(slope: Mixture) -> dict[str, float]:
    """Probabilities of the classes by the slope's distribution."""
    fading = slope.cdf(-CLASS_SLOPE)
    dependent = 1.0 - slope.cdf(CLASS_SLOPE)
    return {"dependent": dependent, "independent": max(0.0, 1.0 - fading - dependent), "fading": fading}


def label(classes: Mapping[str, float]) -> str:
    """The likeliest class, `undetermined` below `UNDETERMINED`."""
    best = max(classes, key=lambda name: classes[name])
    return best if classes[best] >= UNDETERMINED else "undetermined"


def classify(slope: Mixture) -> tuple[str, dict[str, float]]:
    """Label and probabilities by one slope's distribution."""
    classes = classes_of(slope)
    return label(classes), classes
