"""The posterior as data, for a page that answers in the browser (`scripts/posterior.js`).

No answers are in it, but what answers are made of: each algorithm's fitted chain of studies in every currency, which
`scripts/chain.js` follows to any budget as `chain.state` does, the measured combinations, and every constant of
the method. What a page computes from it is therefore the estimate itself, not a picture of it.

Arrays of many numbers travel as base64 of little-endian doubles: exact, and shorter than decimals.
"""

from __future__ import annotations

import base64
from collections.abc import Collection

import numpy as np

from cegain import algorithms
from cegain.common import mixture, verdict
from cegain.common.arrays import Array
from cegain.gain import chain, in_currency, interaction, method, study
from cegain.gain.chain import Curve
from cegain.gain.combinations import Member
from cegain.gain.question import CURRENCIES, THRESHOLDS
from cegain.gain.study import Spread
from cegain.tables.published_gains import Evidence, PublishedGain

BUDGETS = (15.0, 28.0, 131)
"""log10 FLOP of the first and last budget at which a page draws, and how many there are: ten in a decade."""


def document(tables: Evidence, shipped: Collection[PublishedGain] | None, spread: Spread) -> dict[str, object]:
    """Everything that answers are made of, for every algorithm against its default baseline, in every currency.

    `shipped` are the shipped rows where `tables` may lack them (see `method.prepare`), None where all are there;
    `spread` is scatter and slope settings, as `prior.frozen` gives them. More than `interaction.MAX_OBSERVATIONS`
    measured combinations are cut to those that share most with all pairs, where an answer takes those that share most
    with its own.
    """
    members = [(name, algorithms.get(name).replaces[0]) for name in algorithms.names()]
    return {
        "constants": _constants(),
        "thresholds": {f"{t:.12g}": t for t in sorted(THRESHOLDS)},
        "budgets": np.logspace(*BUDGETS).tolist(),
        "remarks": list(tables.remarks),
        "algorithms": {name: {"title": algorithms.get(name).title, "baseline": baseline} for name, baseline in members},
        "parts": {c: {m[0]: _part(tables, m, c, shipped, spread) for m in members} for c in CURRENCIES},
        "interaction": {c: _interaction(tables, members, c) for c in CURRENCIES},
    }


def _constants() -> dict[str, object]:
    """The method's numbers, under their names in the modules."""
    return {
        "x0": study.X0, "level_sd": study.LEVEL_SD, "fading": chain.FADING, "wander_sd": chain.WANDER_SD,
        "max_components": mixture.MAX_COMPONENTS, "unknown_decades": chain.UNKNOWN_DECADES,
        "far_decades": verdict.FAR_DECADES, "far_width": verdict.FAR_WIDTH, "class_slope": verdict.CLASS_SLOPE,
        "undetermined": verdict.UNDETERMINED, "mean_sd": interaction.MEAN_SD, "shares": list(interaction.SHARES),
        "other_setting_sd": in_currency.OTHER_SETTING_SD,
    }  # fmt: skip


def _part(
    tables: Evidence, member: Member, currency: str, shipped: Collection[PublishedGain] | None, spread: Spread
) -> dict[str, object]:
    """One algorithm in one currency: its curve, or what is missing for one."""
    name, baseline = member
    prepared = method.prepare(tables.rows, [name], [baseline], currency=currency, spread=spread, shipped=shipped)
    curve = None if prepared.missing else _curve(prepared.curves[0])
    return {"missing": prepared.missing, "notes": list(prepared.notes), "curve": curve}


def _curve(curve: Curve) -> dict[str, object]:
    """Fields of `chain.Curve`; of `reach` its ends, which alone count."""
    if curve.studies is None:
        return {"exact": True}
    studies, slope = curve.studies, curve.slope()
    return {
        "exact": False,
        "weights": curve.weights.tolist(),
        "new_study_sds": curve.new_study_sds.tolist(),
        "reach": [float(curve.reach[0]), float(curve.reach[-1])] if len(curve.reach) else [],
        "slope": {"means": slope.means.tolist(), "sds": slope.sds.tolist()},
        "chain": {
            "low": studies.low.tolist(),
            "high": studies.high.tolist(),
            "core": list(studies.core),
            "centre": studies.centre,
            "slope_mean": studies.slope_mean,
            "slope_sds": studies.slope_sd.tolist(),
            "precision": packed(studies.precision[:, :, [0, 0, 1], [0, 1, 1]]),
            "score": packed(studies.score),
        },
    }


def _interaction(tables: Evidence, members: list[Member], currency: str) -> dict[str, object]:
    """What `interaction.Joint` knows before a stack is named.

    The covariance of the observations, F + sd^2 S, is inverted for every sd at once: with F = L L' and
    L^-1 S L'^-1 = Q D Q', it is W' (I + sd^2 D)^-1 W for W = Q' L^-1. `rotation` is W, `spread` is D.
    """
    joint = interaction.estimate(tables.rows, members, currency)
    pairs = {pair: i for i, pair in enumerate(dict.fromkeys(pair for o in joint.observations for pair in o.pairs))}
    fixed, shape = interaction.covariances(joint.observations)
    unit = np.linalg.inv(np.linalg.cholesky(fixed))
    spread, vectors = np.linalg.eigh(unit @ shape @ unit.T)
    return {
        "weights": joint.weights.tolist(),
        "sds": joint.sds.tolist(),
        "pairs": [[list(member) for member in pair] for pair in pairs],
        "seen": [
            {
                "what": o.label, "study": o.study, "flops": o.flops, "x": o.x, "value": o.value,
                "pairs": [[pairs[pair], coefficient] for pair, coefficient in o.pairs.items()],
            }
            for o in joint.observations
        ],
        "rotation": packed(vectors.T @ unit),
        "spread": spread.tolist(),
    }  # fmt: skip


def packed(values: Array) -> str:
    """Numbers in C order as base64 of little-endian doubles."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode("ascii")
