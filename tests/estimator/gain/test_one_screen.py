"""An answer is one screen: 14 lines in FLOP for one algorithm, 18 otherwise, 110 columns."""

import pytest

from cegain import algorithms, estimate
from cegain.gain.answer import plain


@pytest.mark.parametrize("currency", ["flop", "time", "usd", "decode"])
@pytest.mark.parametrize("name", algorithms.names())
def test_an_answer_is_one_screen(name: str, currency: str) -> None:
    for flops in (1e18, 1e21, 1e24):
        lines = plain(estimate(name, flops, currency=currency)).splitlines()
        assert len(lines) <= (14 if currency == "flop" else 18), flops
        assert max(map(len, lines)) <= 110


def test_the_rest_is_explained() -> None:
    answer = estimate("moe", 1e24)
    more = plain(answer, explain=True)
    assert more.startswith(plain(answer))
    for part in ("Growth per decade", "Influence", "Studies by its proposers", "Own runs", "Converted to flop"):
        assert part in more
