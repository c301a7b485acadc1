"""The rules of status and class, the same for every command."""

from __future__ import annotations

from cegain.common.mixture import Mixture

STATUSES = ("ok", "far_extrapolation", "no_evidence")
"""From the best to the worst."""
FAR_DECADES = 3.0
FAR_WIDTH = 100.0
CLASS_SLOPE = 0.10
"""|d ln CEG / d log10 C| above which a gain depends on compute; fixed before any fit."""
UNDETERMINED = 0.7


def classify(slope: Mixture) -> tuple[str, dict[str, float]]:
    """Class by the slope's distribution: three probabilities, and the label ("undetermined" below 0.7)."""
    fading = slope.cdf(-CLASS_SLOPE)
    dependent = 1.0 - slope.cdf(CLASS_SLOPE)
    classes = {"dependent": dependent, "independent": max(0.0, 1.0 - fading - dependent), "fading": fading}
    best = max(classes, key=lambda name: classes[name])
    return (best if classes[best] >= UNDETERMINED else "undetermined"), classes
