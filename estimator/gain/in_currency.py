"""What a gain in FLOP is worth on a device: in time, in dollars, and per generated token.

    ln CEG(time) = ln CEG(flop) + ln(achieved FLOP/s with it / achieved FLOP/s without it)
    ln CEG(usd)  = ln CEG(time) + ln(price of the other's device / price of the device)
    CEG(decode)  = device-seconds per token without it / with it, at equal shape, each on as few devices as hold it

Both models are the compute-optimal shape of the `modern` stack at their own budget, the one with the algorithm at C
and the one without it at C x CEG(flop), so it is larger and achieves another speed. Speeds come from
`speed.step_time`, useful FLOP over modelled seconds, averaged over models of neighbouring sizes. The variance of the
logarithm is that of the gain in FLOP plus that of the ratio of speeds, in which the model's constants cancel as far as
both sides share them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Collection

from cegain.common import mixture
from cegain.common.mixture import Mixture
from cegain.common.text import number
from cegain.gain import method
from cegain.gain.answer import Estimate
from cegain.gain.curve import RANGE
from cegain.speed.two_models import NoShapeError, Setting, Speeds, averaged, neighbour, speeds
from cegain.tables.published_gains import PublishedGain

CONTRADICTS = 2.0
"""Standard deviations between what is modelled and what was measured from which on the answer says so."""
OTHER_SETTING_SD = 0.3
"""sd of ln gain added to gains measured in time, on other devices, lengths and shapes than are asked about. Assumed."""


class InCurrency:
    """A question in time, dollars or decode time, at any budget.

    Args:
        in_flop: the same question in FLOP, prepared; None for decode, which compares equal shapes.
        rows: the question itself, prepared: gains that were measured in its currency.
        setting: devices and sequence length.

    Measured gains, which are gains on one device, are joined by precision where both models run on one, with their sd
    enlarged by OTHER_SETTING_SD: they come from other devices, lengths and shapes. Where nothing can be modelled they
    answer alone. What budgets share is computed once.
    """

    def __init__(self, in_flop: method.Prepared | None, rows: method.Prepared, setting: Setting) -> None:
        self.in_flop, self.rows, self.setting = in_flop, rows, setting
        self._gains = functools.cache(self._gains_at)
        self._middle = functools.cache(self._middle_at)
        self._timed = functools.cache(self._timed_at)

    def elsewhere(self, setting: Setting) -> InCurrency:
        """The same question in another setting, with the gains in FLOP that were computed already."""
        other = copy.copy(self)
        other.setting = setting
        other._timed = functools.cache(other._timed_at)
        return other

    def answer(
        self, flops: float, *, interval: float, sha256: str = "", seed: int = 0, exactly: bool = True
    ) -> Estimate:
        """Answer at a budget (FLOP); `interval` is a probability, `sha256` that of the evidence.

        The two models that stand in the answer are those of the budget, or, which is quicker, not `exactly`, but of one
        near it that was timed.
        """
        said = {"interval": interval, "sha256": sha256, "seed": seed}
        in_flop, rows = self.in_flop, self.rows
        found, why = None, in_flop.missing if in_flop is not None else ""
        if not why:
            try:
                ln_factor, variance = averaged(self._timed, flops)
                models = self._timed(flops if exactly else neighbour(flops))
                found = models._replace(ln_factor=ln_factor, variance=variance)
            except NoShapeError as error:
                why = str(error)
        if found is None:
            alone = rows._replace(notes=(*rows.notes, f"speeds are not modelled: {why}"))
            if rows.missing:
                alone = alone._replace(missing=f"{rows.missing}; speeds are not modelled: {why}", notes=rows.notes)
            return method.evaluate(alone, flops, thresholds=(), **said)  # type: ignore[arg-type]
        sd = math.sqrt(found.variance)
        mean, predictive = (part.shifted(found.ln_factor).widened(sd) for part in self._gains(flops))
        notes = [note.removesuffix(" (see --currency time)") for note in in_flop.notes] if in_flop is not None else []
        questions = in_flop.questions if in_flop is not None else ()
        joined = not rows.missing and self.setting.device == self.setting.baseline_device
        if joined:
            measured = method.distributions(rows, flops)
            widened = [seen.widened(OTHER_SETTING_SD) for seen in measured]
            apart = predictive.mean() - widened[1].mean()
            if abs(apart) > CONTRADICTS * math.hypot(predictive.sd(), widened[1].sd()):
                notes.append(
                    f"what is modelled ({number(math.exp(predictive.mean()))}x) and what was measured "
                    f"({number(math.exp(widened[1].mean()))}x) contradict each other, and the answer spans both"
                )
            weight = mixture.shared_out(predictive, widened[1])
            mean, predictive = (mixture.joined(*both, weight) for both in zip((mean, predictive), widened, strict=True))
            questions = (*questions, *rows.questions)
            notes += [note for note in rows.notes if note not in notes]
        for side, what in ((found.treatment, "with"), (found.baseline, "without")):
            if not side.fits:
                notes.append(f"the model {what} it fits into no number of these devices; it is timed as if it did")
        curves = in_flop.curves if in_flop is not None else ()
        if joined and all(curve.exact for curve in curves):
            curves = rows.curves  # all of the gain is one of speeds, and these are the runs that show it
        base = rows._replace(curves=curves, questions=questions, notes=tuple(notes), missing="")
        estimate = method.answered(base, flops, mean, predictive, **said)  # type: ignore[arg-type]
        modelled = estimate.status == "ok" and not joined
        return dataclasses.replace(
            estimate,
            reason=f"speeds are modelled, and no gain measured in {rows.currency} takes part" * modelled
            or estimate.reason,
            speeds=found,
            gain_in_flop=self._middle(flops),
            joined=joined,
            decades=estimate.decades if in_flop is not None else None,
        )

    def influences(self, flops: float, shipped: Collection[PublishedGain] | None) -> dict[str, float]:
        """`sensitivity.influences` at a budget (FLOP): those of the gain in FLOP and of the rows measured in the
        currency, each times its share of the answer. The rest, to 1, is that of the prior and of the modelled speeds.
        """
        from cegain.gain import sensitivity

        parts: list[tuple[str, float, method.Prepared]] = []
        modelled = self.in_flop is None or not self.in_flop.missing
        try:
            ln_factor, variance = averaged(self._timed, flops) if modelled else (0.0, 0.0)
        except NoShapeError:
            modelled = False
        share = 1.0 if modelled else 0.0
        if modelled and not self.rows.missing and self.setting.device == self.setting.baseline_device:
            by_speeds = self._gains(flops)[1].shifted(ln_factor).widened(math.sqrt(variance))
            seen = method.distributions(self.rows, flops)[1].widened(OTHER_SETTING_SD)
            share = mixture.shared_out(by_speeds, seen)
        if modelled and self.in_flop is not None:
            parts.append((" in flop", share, self.in_flop))
        if not self.rows.missing and share < 1.0:
            parts.append((f" in {self.rows.currency}", 1.0 - share, self.rows))
        found = {
            kind + currency: weight * value
            for currency, weight, prepared in parts
            for kind, value in sensitivity.influences(prepared, [flops], shipped)[0].items()
        }
        return dict(sorted(found.items(), key=lambda item: (-abs(item[1]), item[0])))

    def slope(self) -> Mixture | None:
        """Average d ln CEG / d log10 C over `curve.RANGE`: that of the gain in FLOP and of the ratio of speeds, or that
        of the rows where nothing is modelled; None without an answer. Gains measured in the currency do not bend it.
        """
        if self.in_flop is not None and self.in_flop.missing:
            return None if self.rows.missing else method.slope_of(self.rows)
        decades = RANGE[1] - RANGE[0]
        try:
            low, high = (averaged(self._timed, 10.0**x) for x in RANGE)
        except NoShapeError:
            return None if self.rows.missing else method.slope_of(self.rows)
        gained = mixture.point(0.0) if self.in_flop is None else method.slope_of(self.in_flop)
        return gained.shifted((high[0] - low[0]) / decades).widened(math.sqrt(low[1] + high[1]) / decades)

    def _gains_at(self, flops: float) -> tuple[Mixture, Mixture]:
        """ln CEG in FLOP, as `method.distributions`."""
        if self.in_flop is None:
            return mixture.point(0.0), mixture.point(0.0)
        return method.distributions(self.in_flop, flops)

    def _middle_at(self, flops: float) -> float:
        """CEG in FLOP: the median of the average setting."""
        return 1.0 if self.in_flop is None else math.exp(method.average(self.in_flop, flops).quantile(0.5))

    def _timed_at(self, flops: float) -> Speeds:
        """Both models of a budget, timed; the one without is larger by the gain in FLOP there."""
        rows = self.rows
        return speeds(rows.algorithms, rows.baselines, rows.currency, flops, self._middle(flops), self.setting)
