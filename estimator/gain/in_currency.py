"""What a gain in FLOP is worth on a device: in time, in dollars, and per generated token.

    ln CEG(time) = ln CEG(flop) + ln(achieved FLOP/s with it / achieved FLOP/s without it)
    ln CEG(usd)  = ln CEG(time) + ln(price of the other's device / price of the device)
    CEG(decode)  = device-seconds per token without it / with it, at equal shape, each on as few devices as hold it

Both models are the compute-optimal shape of the `modern` stack at their own budget, the one with the algorithm at C and
the one without it at C x CEG(flop), so it is larger and achieves another speed. Speeds come from `speed.step_time`,
useful FLOP over modelled seconds. The variance of the logarithm is that of the gain in FLOP plus that of the ratio of
speeds, in which the model's constants cancel as far as both sides share them.
"""

from __future__ import annotations

import dataclasses
import math

from cegain.common import mixture
from cegain.gain import method
from cegain.gain.answer import Estimate
from cegain.speed.two_models import NoShapeError, Setting, speeds

OTHER_SETTING_SD = 0.3
"""sd of ln gain added to gains measured in time, on other devices, lengths and shapes than are asked about. Assumed."""


def answer(
    in_flop: method.Prepared | None,
    rows: method.Prepared,
    flops: float,
    setting: Setting,
    *,
    interval: float,
    sha256: str = "",
    seed: int = 0,
) -> Estimate:
    """Answer a question in time, dollars or decode time at one budget.

    Args:
        in_flop: the same question in FLOP, prepared; None for decode, which compares equal shapes.
        rows: the question itself, prepared: gains that were measured in its currency.
        flops: budget (FLOP).
        setting: devices and sequence length.
        interval: probability content.
        sha256: of the evidence; goes into the answer.
        seed: likewise.

    Measured gains, which are gains on one device, are joined by precision where both models run on one, with their sd
    enlarged by OTHER_SETTING_SD: they come from other devices, lengths and shapes. Where nothing can be modelled they
    answer alone.
    """
    said = {"interval": interval, "sha256": sha256, "seed": seed}
    why = in_flop.missing if in_flop is not None else ""
    found = None
    ahead = behind = mixture.point(0.0)
    if not why:
        try:
            if in_flop is not None:
                ahead, behind = method.distributions(in_flop, flops)
            middle = math.exp(ahead.quantile(0.5))
            found = speeds(rows.algorithms, rows.baselines, rows.currency, flops, middle, setting)
        except NoShapeError as error:
            why = str(error)
    if found is None:
        alone = rows._replace(notes=(*rows.notes, f"speeds are not modelled: {why}"))
        if rows.missing:
            alone = alone._replace(missing=f"{rows.missing}; speeds are not modelled: {why}", notes=rows.notes)
        return method.evaluate(alone, flops, thresholds=(), **said)  # type: ignore[arg-type]
    sd = math.sqrt(found.variance)
    mean, predictive = (part.shifted(found.ln_factor).widened(sd) for part in (ahead, behind))
    notes = [note.removesuffix(" (see --currency time)") for note in in_flop.notes] if in_flop is not None else []
    questions = in_flop.questions if in_flop is not None else ()
    if not rows.missing and setting.device == setting.baseline_device:
        measured = method.distributions(rows, flops)
        mean, predictive = (
            mixture.joined(modelled, seen.widened(OTHER_SETTING_SD))
            for modelled, seen in zip((mean, predictive), measured, strict=True)
        )
        questions = (*questions, *rows.questions)
        notes += [note for note in rows.notes if note not in notes]
    for side, what in ((found.treatment, "with"), (found.baseline, "without")):
        if not side.fits:
            notes.append(f"the model {what} it fits into no number of these devices; it is timed as if it did")
    curves = in_flop.curves if in_flop is not None else ()
    base = rows._replace(curves=curves, questions=questions, notes=tuple(notes), missing="")
    estimate = method.answered(base, flops, mean, predictive, **said)  # type: ignore[arg-type]
    return dataclasses.replace(
        estimate, speeds=found, gain_in_flop=middle, decades=estimate.decades if in_flop is not None else None
    )
