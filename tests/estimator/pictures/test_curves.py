"""Pictures: valid bytes, the same every time, and nothing drawn over something else."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg as agg
import numpy as np
import pytest
from matplotlib.figure import Figure

from cegain.common.verdict import NEAR_DECADES
from cegain.gain.answer import Estimate
from cegain.gain.question import estimate_all
from cegain.pictures.curves import draw, grid
from cegain.tables.published_gains import COLUMNS, OWN_ROW_COLUMNS

SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}

Curve = tuple[Estimate, ...]


def curve(name: str, *, low: float = 1e17, high: float = 1e26, n: int = 6, **options: object) -> Curve:
    step = (high / low) ** (1 / (n - 1))
    return estimate_all(name, [min(high, low * step**i) for i in range(n)], **options)  # type: ignore[arg-type]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Every kind of evidence once, some with intervals, one without its compute."""
    lines = [",".join(c for c in COLUMNS if c not in ("same_as", "experts", "seq_len", *OWN_ROW_COLUMNS))]
    for i, basis in enumerate(("measured", "observational", "derived", "claimed", "extrapolated")):
        lines.append(f"moe,t,dense,s{i},1e{18 + i},useful,{2 + i},1.5,9,0.9,flop,,{basis},src,")
    lines.append("moe,t,dense,s9,,unknown,3,,,,flop,,measured,src,")
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines))
    return path


CURVES: dict[str, Callable[[], list[Curve]]] = {
    "one": lambda: [curve("moe")],
    "stack": lambda: [curve("layernorm,rope,fa")],
    "exact": lambda: [curve("flash_attention")],
    "no evidence": lambda: [curve("zero")],
    "time": lambda: [curve("flash_attention", currency="time")],
    "five": lambda: [curve(name) for name in ("moe", "rope", "flash_attention", "zero", "transformer")],
    "far and wide": lambda: [curve("transformer", low=1.0, high=1e60)],
}


@pytest.mark.parametrize("ending", SIGNATURES)
def test_bytes_are_of_the_kind_and_the_same_twice(ending: str) -> None:
    curves = [curve("moe"), curve("zero")]
    first = draw(curves, ending)
    assert first.startswith(SIGNATURES[ending])
    assert draw(curves, ending) == first


@pytest.mark.parametrize("which", CURVES)
def test_svg_is_well_formed(which: str) -> None:
    root = ET.fromstring(draw(CURVES[which](), ".svg"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Curve]], Figure]:
    """The figure behind `draw`, laid out."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        kept.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def laid_out(curves: list[Curve]) -> Figure:
        draw(curves, ".png")
        return kept[-1]

    return laid_out


@pytest.mark.parametrize("which", CURVES)
def test_nothing_overlaps_and_nothing_leaves_the_page(drawn: Callable[[list[Curve]], Figure], which: str) -> None:
    figure = drawn(CURVES[which]())
    renderer = agg.FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    page = figure.bbox
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.axison]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    assert len(boxes) >= len(CURVES[which]()) + 2
    for i, box in enumerate(boxes):
        assert box is not None
        assert box.x0 >= page.x0 - 1
        assert box.y0 >= page.y0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y1 <= page.y1 + 1
        for other in boxes[:i]:
            assert other is not None
            shared = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(shared) <= 1
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ticks = [t for t in axes.get_yticks() if low <= t <= high]
        assert not axes.axison or axes.get_yscale() == "linear" or 3 <= len(ticks) <= 12


def test_every_kind_of_evidence_and_stretch_is_in_the_legend(
    drawn: Callable[[list[Curve]], Figure], mine: Path
) -> None:
    figure = drawn([curve("moe", evidence=mine, only_evidence=True)])
    (legend,) = figure.legends
    labels = [t.get_text() for t in legend.get_texts()]
    kinds = ("measured", "observational", "derived", "claimed", "extrapolated")
    assert labels[-5:] == [f"{kind} row" for kind in kinds]
    assert labels[:-5] == ["curve, near a run", "curve, extrapolated", "curve, more than 3 decades out"]
    below = " ".join(t.get_text() for t in figure.texts)
    assert "Source: ceg " in below
    assert "evidence " in below
    (axes,) = figure.axes
    assert len(axes.containers) == 5
    assert "1 of 6 rows not shown" in axes.get_xlabel()
    assert "FLOP" in axes.get_xlabel()
    assert "in FLOP" in axes.get_ylabel()


def test_the_curve_has_no_gap_and_changes_where_the_evidence_ends(
    drawn: Callable[[list[Curve]], Figure], mine: Path
) -> None:
    points = curve("moe", evidence=mine, only_evidence=True, n=37)
    (axes,) = drawn([points]).axes
    lines = [np.asarray(line.get_xdata(), float).tolist() for line in axes.lines]
    stretches = sorted(xs for xs in lines if len(xs) > 1 and xs[0] >= points[0].flops)
    assert stretches[0][0] == points[0].flops
    assert stretches[-1][-1] == points[-1].flops
    for left, right in pairwise(stretches):
        assert left[-1] == right[0]

    def near(e: Estimate) -> bool:
        return e.decades is not None and e.decades <= NEAR_DECADES

    inside = max(stretches, key=lambda xs: sum(map(near, (e for e in points if e.flops in xs))))
    assert all(near(e) for e in points if e.flops in inside[:-1])


def test_what_is_modelled_without_evidence_is_not_drawn_as_far_from_it(drawn: Callable[[list[Curve]], Figure]) -> None:
    points = curve("flash_attention", low=1e18, currency="decode", device="h100")
    assert {(e.status, e.decades) for e in points} == {("ok", None)}
    figure = drawn([points])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["curve, modelled"]
    (axes,) = figure.axes
    assert {line.get_linestyle() for line in axes.lines if line.get_linewidth() > 2} == {"-"}


def test_no_evidence_says_why(drawn: Callable[[list[Curve]], Figure]) -> None:
    (axes,) = drawn([curve("zero")]).axes
    assert "no evidence: zero" in " ".join(t.get_text() for t in axes.texts)


@pytest.mark.parametrize(("low", "high", "n"), [(1e17, 1e26, 73), (1e20, 1.01e20, 2)])
def test_grid_is_what_the_option_takes(low: float, high: float, n: int) -> None:
    from cegain.commands.options import parse_budgets

    budgets = parse_budgets(grid(low, high), [])
    assert len(budgets) == n
    assert (budgets[0], budgets[-1]) == pytest.approx((low, high))
    ratios = [b / a for a, b in pairwise(budgets)]
    assert ratios == pytest.approx([ratios[0]] * (n - 1), rel=1e-4)
