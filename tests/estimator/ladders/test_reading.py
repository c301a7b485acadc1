import numpy as np
import pytest

from cegain.common import arrays
from cegain.ladders import ladder, reading, synthetic


def made(truth: str, rungs: int, noise: float = 0.0, seed: int = 0) -> synthetic.Truth:
    return synthetic.fixed(truth, rungs, noise, np.random.default_rng(seed))


@pytest.mark.parametrize("rungs", [3, 5, 8, 12, 20, 26])
@pytest.mark.parametrize("truth", [truth for truth in synthetic.TRUTHS if truth != "onset"])  # which has a kink
def test_reads_recover_the_truth_without_noise(truth: str, rungs: int) -> None:
    arms = made(truth, rungs)
    reads = reading.read_gains(arms.baseline, arms.treatment)
    assert reads is not None
    assert reads.y == pytest.approx([arms.gain(x) for x in reads.treatment], abs=3e-3)


def test_swapping_the_arms_flips_the_sign() -> None:
    arms = made("fading", 8, 0.01)
    forth, back = (reading.read_gains(*pair) for pair in ((arms[0], arms[1]), (arms[1], arms[0])))
    assert forth is not None
    assert back is not None
    assert forth.y.tolist() == (-back.y).tolist()
    assert forth.m.tolist() == back.m.tolist()
    assert forth.cross == pytest.approx(back.cross)


@pytest.mark.parametrize(
    ("noise", "shared"),
    [
        (0.004, 0.8),
        *(pytest.param(*slow, marks=pytest.mark.slow) for slow in ((0.004, 0.0), (0.008, 0.0), (0.008, 0.8))),
    ],
)
def test_stated_errors_are_those_of_many_ladders(noise: float, shared: float) -> None:
    """The error of every read, and of the mean of all, over 400 noisy ladders of a known gain."""
    rng = np.random.default_rng(5)
    ratios, means = [], []
    count = len(made("constant", 8).baseline.x) * 2 - 2
    for _ in range(400):
        arms = synthetic.observe(synthetic.TRUTHS["constant"], 8, noise, shared, rng)
        reads = reading.read_gains(arms.baseline, arms.treatment, noise)
        assert reads is not None
        if len(reads.y) != count:
            continue
        covariance = reads.known + noise**2 * (reads.unit - shared * reads.cross)
        error = reads.y - np.log(2.0)
        ratios.append(error / np.sqrt(covariance.diagonal()))
        means.append(error.mean() / np.sqrt(covariance.mean()))
    assert len(ratios) > 300
    assert np.std(ratios, axis=0) == pytest.approx(0.9, abs=0.2)  # under 1: an allowance for bends
    assert 0.75 < np.std(means) < 1.2


def test_reads_a_hair_apart_do_not_contradict_each_other() -> None:
    """Two rungs of almost one loss: the squared errors, weighed by the stated covariance, stay near their number."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(100):
        arms = synthetic.observe(synthetic.TRUTHS["power-law"], 12, 0.002, 0.0, rng)
        reads = reading.read_gains(arms.baseline, arms.treatment, 0.002)
        assert reads is not None
        error = reads.y - [arms.gain(x) for x in reads.treatment]
        found.append(error @ np.linalg.solve(reads.known + 0.002**2 * reads.unit, error) / len(error))
    assert np.median(found) < 1.0
    assert np.quantile(found, 0.9) < 1.5


def test_a_smooth_curve_is_nearer_the_truth_than_noisy_rungs() -> None:
    clean = made("constant", 12).baseline.y
    better = 0
    for seed in range(40):
        arm = made("constant", 12, 0.006, seed).baseline
        if len(arm.y) == len(clean):
            better += np.abs(reading.smooth(arm, 0.006) - clean).mean() < np.abs(arm.y - clean).mean()
    assert better >= 30


def test_a_bent_ladder_is_read_as_it_is() -> None:
    """A sudden fall that no noise explains: reading must go through the rungs."""
    x = (17.0 + 0.5 * np.arange(8)) * arrays.LN10
    losses = np.array([4.0, 3.95, 3.9, 3.86, 2.6, 2.55, 2.5, 2.46])
    arm = ladder.build("jump", np.zeros(8), x, np.log(losses))
    curve = reading.smooth(arm)
    assert (np.diff(curve) < 0).all()
    assert curve == pytest.approx(arm.y, abs=0.02)


def test_third_differences_vanish_for_parabolas_and_give_the_third_derivative() -> None:
    x = np.array([0.0, 0.4, 1.1, 1.5, 2.7])
    rows = reading.third_differences(x)
    assert rows @ (3 - 2 * x + x**2) == pytest.approx(0, abs=1e-10)
    assert rows @ (0.5 * x**3) == pytest.approx(3.0)


def test_no_common_loss_gives_nothing() -> None:
    x = (17.0 + 0.5 * np.arange(4)) * arrays.LN10
    arms = [ladder.build("a", np.zeros(4), x, np.log(losses)) for losses in ([4, 3.5, 3.1, 2.8], [2.5, 2.4, 2.3, 2.2])]
    assert reading.read_gains(*arms) is None
