import pytest

from cegain.checks import made_up
from cegain.ladders import synthetic


def cell(inside: int, ok: int, truth: str = "constant", rungs: int = 8, past: float = 0.0) -> made_up.Held:
    return made_up.Held(truth, rungs, 0.002, past, 100, ok, inside, 1.5)


def test_cells_that_are_covered_too_rarely_are_named() -> None:
    total = made_up.total([cell(95, 100), cell(60, 100, rungs=6), cell(0, 100, "onset"), cell(0, 0, rungs=4)])
    assert [(c.truth, c.rungs) for c in total.too_low] == [("constant", 6)]
    assert total.coverage == pytest.approx(155 / 200)
    assert made_up.total([cell(1, 40, past=0.5), cell(1, 90, past=0.5)]).least_ok == 0.4


@pytest.mark.slow
def test_answers_that_are_ok_hold() -> None:
    cells = [cell for of_truth in made_up.run(60, seed=1) for cell in of_truth]
    assert {c.truth for c in cells} == set(synthetic.TRUTHS)
    total = made_up.total(cells)
    assert total.too_low == ()
    assert 0.87 <= total.coverage <= 0.96
    assert total.least_ok >= 0.5
