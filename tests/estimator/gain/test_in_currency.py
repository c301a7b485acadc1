import itertools
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from cegain import estimate
from cegain.commands.ceg import estimate_command
from cegain.common import mixture
from cegain.gain.question import QuestionError
from cegain.speed import hardware
from cegain.speed.two_models import NoShapeError, Setting, Speeds, averaged, speeds


def on(device: str, seq_len: int = 2048, other: str | None = None) -> Setting:
    return Setting(hardware.find(device), hardware.find(other or device), seq_len)


def median(algo: str, currency: str, **options: object) -> float:
    found = estimate(algo, 1e21, currency=currency, **options)  # type: ignore[arg-type]
    assert found.median is not None
    return found.median


@pytest.mark.parametrize("device", ["v100", "a100-40", "a100-80", "h100", "h200", "b200"])
def test_flash_attention_is_a_gain_in_time_that_grows_with_the_sequence(device: str) -> None:
    assert median("flash_attention", "flop") == 1.0
    gains = [median("flash_attention", "time", device=device, seq_len=2**i) for i in range(8, 18)]
    assert all(after > before for before, after in itertools.pairwise(gains))
    assert gains[0] < 1.25 < 2 < gains[-1]


def test_multi_query_attention_pays_at_decode_with_the_context() -> None:
    gains = [median("mqa", "decode", device="h100", seq_len=2**i) for i in range(9, 18)]
    assert all(after > before for before, after in itertools.pairwise(gains))
    assert gains[0] < 2 < 8 < gains[-1]


def test_sparse_attention_is_a_function_of_the_sequence() -> None:
    gains = [math.exp(speeds(["sparse_attention"], ["dense_attention"], "time", 1e23, 1.0, on("h100", t)).ln_factor)
             for t in (2048, 8192, 32768)]  # fmt: skip
    assert gains == sorted(gains)


@pytest.mark.parametrize("flops", [1e20, 1e22, 1e24])
def test_a_mixture_gains_less_in_time_and_the_parts_say_why(flops: float) -> None:
    in_flop, in_time = (estimate("moe", flops, currency=c) for c in ("flop", "time"))
    assert in_flop.median is not None
    assert in_time.median is not None
    assert in_time.median < in_flop.median
    found = in_time.speeds
    assert found is not None
    assert found.treatment.time.parts["experts"] > 0
    assert found.baseline.time.parts["experts"] == 0
    assert found.treatment.flops == flops
    assert found.baseline.flops == pytest.approx(flops * (in_time.gain_in_flop or 0))
    assert "experts" in str(in_time)


def test_the_baseline_is_timed_at_its_own_size() -> None:
    small, large = (speeds(["moe"], ["dense"], "time", 1e22, by, on("h100")) for by in (1.0, 10.0))
    assert small.baseline.shape.d_model < large.baseline.shape.d_model
    assert small.treatment.shape == large.treatment.shape


def test_variances_add_where_no_row_is_measured_in_time() -> None:
    found = estimate("swiglu", 1e22, currency="time")
    in_flop = estimate("swiglu", 1e22)
    assert found.speeds is not None
    assert not any(u.row.currency == "time" for q in found.questions for u in q.used)
    for part in ("mean_interval", "predictive_90"):
        wide, narrow = (
            (math.log(interval[1] / interval[0]) / 2 / 1.6449) ** 2
            for interval in (getattr(found, part), getattr(in_flop, part))
        )
        assert wide - narrow == pytest.approx(found.speeds.variance, rel=0.1)
    assert math.log((found.mean_median or 0) / (in_flop.mean_median or 1)) == pytest.approx(
        found.speeds.ln_factor, abs=0.01
    )


def test_measured_and_modelled_gains_are_joined_by_precision() -> None:
    first, second = mixture.point(1.0).widened(0.1), mixture.point(1.2).widened(0.2)
    weight = mixture.shared_out(first, second)
    found = mixture.joined(first, second, weight)
    assert found.mean() == pytest.approx((1.0 / 0.01 + 1.2 / 0.04) / (1 / 0.01 + 1 / 0.04))
    assert found.sds[0] == pytest.approx((1 / 0.01 + 1 / 0.04) ** -0.5)
    exact = mixture.point(3.0)
    assert mixture.joined(first, exact, mixture.shared_out(first, exact)) == exact


@pytest.mark.parametrize("apart", [0.5, 1.0, 4.0])
def test_gains_that_contradict_each_other_widen_the_answer(apart: float) -> None:
    first, second = mixture.point(0.0).widened(0.1), mixture.point(apart).widened(0.2)
    weight = mixture.shared_out(first, second)
    like = mixture.joined(first, mixture.point(0.0).widened(0.2), weight)
    found = mixture.joined(first, second, weight)
    assert found.mean() == pytest.approx(0.2 * apart)
    assert found.sd() / like.sd() == pytest.approx(apart / math.hypot(0.1, 0.2))


def test_a_contradiction_is_said(tmp_path: Path) -> None:
    header = (
        "algorithm,treatment,baseline,study,flops,flops_convention,ceg,low,high,interval,currency,flop_factor,basis,"
        "source,note"
    )
    rows = [f"moe,x,dense,odd {i},1e24,useful,0.02,,,,time,,measured,s," for i in range(5)]
    table = tmp_path / "odd.csv"
    table.write_text("\n".join([header, *rows]))
    said = estimate("moe", 1e24, currency="time", evidence=table)
    usual = estimate("moe", 1e24, currency="time")
    assert any("contradict each other" in note for note in said.notes)
    assert not any("contradict each other" in note for note in usual.notes)
    widths = [math.log(e.predictive[1] / e.predictive[0]) for e in (said, usual) if e.predictive]
    assert widths[0] > 1.5 * widths[1]


def test_dollars_are_time_times_price() -> None:
    one = speeds(["moe"], ["dense"], "time", 1e22, 3.0, on("b200", other="a100-80"))
    two = speeds(["moe"], ["dense"], "usd", 1e22, 3.0, on("b200", other="a100-80"))
    ratio = hardware.find("a100-80").price.usd_per_hour / hardware.find("b200").price.usd_per_hour
    assert two.ln_factor - one.ln_factor == pytest.approx(math.log(ratio))
    assert two.price == pytest.approx(math.log(ratio))
    same = speeds(["moe"], ["dense"], "usd", 1e22, 3.0, on("h100"))
    assert same.price == 0.0


def test_an_algorithm_against_itself_gains_nothing_anywhere() -> None:
    found = speeds(["moe"], ["moe"], "time", 1e22, 1.0, on("h100"))
    assert (found.ln_factor, found.variance) == (0.0, 0.0)


def test_a_stack_is_timed_together() -> None:
    parts = speeds(["flash_attention", "moe"], ["materialised_attention", "dense"], "time", 1e22, 3.0, on("h100", 8192))
    assert (parts.treatment.shape.attention, parts.treatment.shape.feed_forward) == ("flash", "moe")
    assert (parts.baseline.shape.attention, parts.baseline.shape.feed_forward) == ("materialised", "swiglu")


@pytest.mark.parametrize(
    ("name", "baseline", "said"),
    [("mla", "mha", "mla cannot be timed"), ("rope", "sinusoidal_positions", "sinusoidal_positions cannot be timed")],
)
def test_what_has_no_shape_is_refused(name: str, baseline: str, said: str) -> None:
    with pytest.raises(NoShapeError, match=said):
        speeds([name], [baseline], "time", 1e22, 1.0, on("h100"))


def test_a_budget_below_any_model_is_said() -> None:
    found = estimate("rope", 1e12, currency="time")
    assert found.status == "no_evidence"
    assert "no model of less than 1e+18 FLOP is timed" in found.reason


def test_rows_answer_where_nothing_can_be_modelled() -> None:
    found = estimate("rope", 1e22, currency="time", baseline="sinusoidal_positions")
    assert found.speeds is None
    assert found.status == "no_evidence"
    assert "cannot be timed" in found.reason


def test_a_sum_over_neighbours_keeps_a_line_and_has_no_jumps() -> None:
    def line(flops: float) -> Speeds:
        return Speeds(0.3 + 0.2 * math.log10(flops), 0.01, None, None)  # type: ignore[arg-type]

    def step(flops: float) -> Speeds:
        return Speeds(float(flops > 1e22), 0.01, None, None)  # type: ignore[arg-type]

    for x in (18.0, 21.37, 27.5):
        assert averaged(line, 10**x) == pytest.approx((0.3 + 0.2 * x, 0.01))
    places = [20 + i / 20 for i in range(81)]
    means, variances = zip(*(averaged(step, 10**x) for x in places), strict=True)
    assert all(abs(a - 2 * b + c) < 0.02 for a, b, c in zip(means, means[1:], means[2:], strict=False))
    assert (means[0], means[-1]) == pytest.approx((0.0, 1.0))
    assert max(variances) > 0.03 > min(variances) == pytest.approx(0.01)


def test_past_the_last_models_there_are_the_last_ones_stand() -> None:
    def some(flops: float) -> Speeds:
        if flops > 1e22:
            raise NoShapeError("none so large")
        return Speeds(math.log10(flops), 0.01, None, None)  # type: ignore[arg-type]

    assert averaged(some, 1e22)[0] == pytest.approx(22 - 0.5 / 6)
    with pytest.raises(NoShapeError, match="none so large"):
        averaged(some, 1e24)


@pytest.mark.parametrize(("name", "most"), [("moe", 0.01), ("mqa", 0.01), ("transformer", 0.04)])
def test_answers_in_time_do_not_jump(name: str, most: float) -> None:
    found = estimate(name, [10 ** (19 + i / 20) for i in range(121)], currency="time", device="a100-80", seq_len=8192)
    for ends in ([e.median for e in found], *zip(*(e.predictive for e in found), strict=True)):
        ln = [math.log(end) for end in ends]
        assert max(abs(a - 2 * b + c) for a, b, c in zip(ln, ln[1:], ln[2:], strict=False)) < most


def test_a_model_that_fits_nowhere_is_timed_and_said() -> None:
    found = estimate("flash_attention", 1e21, currency="time", device="h100", seq_len=2**17)
    assert any("fits into no number of these devices" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"currency": "time", "device": "tpu", "seq_len": 0},
            ["device must be one of v100", "seq_len: a whole number"],
        ),
        ({"currency": "usd", "baseline_device": "h10"}, ["baseline_device must be one of", "did you mean 'h100'"]),
        ({"device": "h100", "seq_len": 4096}, ["device: it goes with the currency", "seq_len: it goes with"]),
    ],
)
def test_bad_settings_are_said_at_once(options: dict[str, object], said: list[str]) -> None:
    with pytest.raises(QuestionError) as caught:
        estimate("moe", 1e22, **options)  # type: ignore[arg-type]
    for text in said:
        assert text in str(caught.value)


def test_json_holds_setting_and_breakdown() -> None:
    arguments = ["--algo", "mqa", "--flops", "1e23", "--currency", "decode", "--device", "h200", "--seq-len", "8192"]
    found = CliRunner().invoke(estimate_command, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    (answer,) = json.loads(found.stdout)["estimates"]
    setting = answer["setting"]
    assert setting["with"]["device"] == "h200"
    assert setting["with"]["heads"] == setting["without"]["heads"]
    assert sum(setting["with"]["parts_seconds"].values()) == pytest.approx(setting["with"]["seconds"])
    assert setting["factor"] > 1
    said = CliRunner().invoke(estimate_command, [*arguments, "--explain"]).output
    assert "Influence, d ln(answer) / d ln(gains of a kind): published measured" in said
    assert "Influence" not in CliRunner().invoke(estimate_command, arguments).output
