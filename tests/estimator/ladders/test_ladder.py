import math
from pathlib import Path

import numpy as np
import pytest

from cegain.common.arrays import Array
from cegain.ladders import ladder
from cegain.run_tables.run_import import ReadOptions
from cegain.tables.problems import EvidenceError

HEADER = "variant,N,D,C,loss\n"


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "runs.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_accepts_bom_crlf_unsorted_duplicates_and_other_columns(tmp_path: Path) -> None:
    text = (
        "\ufeffnote,variant,N,D,C,loss\r\nx,a,2e8,4e9,5e18,3.0\r\n\r\ny,a,1e8,2e9,1e18,3.5\r\ny,a,1e8,2e9,1e18,3.5\r\n"
    )
    runs = ladder.read_runs(write(tmp_path, text))
    assert runs.variant == ("a", "a")
    assert runs.loss.tolist() == [3.0, 3.5]
    assert runs.cells["note"] == ("x", "y")
    assert runs.remarks == ("1 duplicated row(s) count once",)
    assert np.exp(ladder.ladder(runs, "a").y) == pytest.approx([3.5, 3.0])


def test_names_every_bad_cell_at_once(tmp_path: Path) -> None:
    bad = HEADER + "a,1,1,1e17,nan\na,1,1,1e17,-2\na,0,1,inf,3\n,1,1,1e17,3\na,1,1,1e17\na,1,1,1_7,0\n"
    with pytest.raises(EvidenceError) as caught:
        ladder.read_runs(write(tmp_path, bad))
    text = str(caught.value)
    assert len(caught.value.problems) == 8
    for place in (
        "line 2, column loss",
        "line 3, column loss",
        "line 4, column N",
        "line 4, column C",
        "line 5, column variant",
        "line 6",
        "line 7, column C",
        "line 7, column loss",
    ):
        assert place in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (b"\x00\x01", "binary"),
        (b"\xff\xfe\xfa", "broken UTF-16"),
        (HEADER.encode(), "none"),
        (b"variant;N;D;C;loss\n1;2;3;4e9;5\n", "C is near 6 N D"),
        (b"variant,N,D,C,Loss\na,1,1,1,1\n", "no loss"),
    ],
)
def test_refuses_what_is_no_table_of_runs(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        ladder.read_runs(write(tmp_path, content))


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="can be read"):
        ladder.read_runs(tmp_path / "nothing.csv")


def test_reads_the_projects_own_table_and_leaves_diverged_runs_out(tmp_path: Path) -> None:
    text = (
        "run_id,arm,seed,n_params_active,tokens,flops,status,loss_nats_per_token\n"
        "1,base,0,1e6,2e7,1e17,finished,3.5\n2,base,1,1e6,2e7,1e17,diverged,\n3,base,1,1e6,2e7,1e17,finished,3.7\n"
    )
    runs = ladder.read_runs(write(tmp_path, text))
    assert runs.remarks == ("1 diverged run(s) left out",)
    only = ladder.ladder(runs, "base")
    assert only.y == pytest.approx([(math.log(3.5) + math.log(3.7)) / 2])  # seeds are averaged
    assert only.repeats.tolist() == [2.0]


def test_another_loss_column(tmp_path: Path) -> None:
    path = write(tmp_path, "variant,N,D,C,loss,loss_b\na,3e7,6e8,1e17,9,3\n")
    assert ladder.read_runs(path, ReadOptions(columns={"loss": "loss_b"})).loss.tolist() == [3.0]


def test_arms_are_variants_or_patterns_on_columns(tmp_path: Path) -> None:
    rows = "m|1,3e7,6e8,1e17,3,20.0\nm|2,3e7,6e8,1e17,3,20.0\nn,3e7,6e8,1e17,3,5.0\n"
    runs = ladder.read_runs(write(tmp_path, "variant,N,D,C,loss,M\n" + rows))
    assert ladder.select(runs, "m|1").tolist() == [True, False, False]
    assert ladder.select(runs, "m*").tolist() == [True, True, False]
    assert ladder.select(runs, "variant=m*&M=20").tolist() == [True, True, False]
    with pytest.raises(EvidenceError, match=r"Did you mean m\|1"):
        ladder.select(runs, "m|11")
    with pytest.raises(EvidenceError, match="names columns"):
        ladder.select(runs, "K=3")


def test_an_isoflop_rung_is_the_minimum_of_the_parabola_between_the_sizes_tried() -> None:
    t: Array = np.arange(-3.0, 4.0) * 0.3 + 0.1  # no size sits at the minimum
    rung = ladder.build("a", 15 + t, np.full(7, 40.0), 1.2 + 0.05 * t**2)
    assert rung.y == pytest.approx([1.2], abs=1e-12)
    assert rung.y[0] < (1.2 + 0.05 * t**2).min()


def test_an_isoflop_minimum_has_the_error_that_its_scatter_shows() -> None:
    rng = np.random.default_rng(0)
    t: Array = np.tile(np.arange(-4.0, 5.0) * 0.2, 6)
    c: Array = np.repeat(np.arange(6.0) * 1.2 + 40.0, 9)
    found = [
        ladder.build("a", np.asarray(15 + t), c, 1.2 - 0.05 * (c - 40) + 0.05 * t**2 + 0.004 * rng.normal(0.0, 1.0, 54))
        for _ in range(60)
    ]
    errors = np.array([f.y - (1.2 - 0.05 * (f.x - 40)) for f in found])
    stated = np.array([f.sd for f in found])
    assert np.sqrt((errors**2).mean()) == pytest.approx(stated.mean(), rel=0.25)


def test_a_minimum_at_the_edge_is_noted_and_uncertain() -> None:
    rung = ladder.build("a", np.arange(4.0), np.full(4, 40.0), np.array([1.2, 1.1, 1.0, 0.9]))
    assert rung.sd[0] >= ladder.EDGE_SD
    assert "smallest or largest N" in rung.notes[0]


def test_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    n, c, y = rng.normal(15, 1, 40), np.repeat(np.arange(8) * 1.0 + 40, 5), rng.normal(1, 0.1, 40)
    p = rng.permutation(40)
    a, b = ladder.build("a", n, c, y), ladder.build("a", n[p], c[p], y[p])
    assert a.x.tolist() == b.x.tolist()
    assert a.y == pytest.approx(b.y.tolist(), abs=1e-14)


def test_a_noisy_ladder_is_averaged_where_it_does_not_fall() -> None:
    found = ladder.build("a", np.arange(4.0), np.arange(4.0) + 40, np.array([1.5, 1.3, 1.4, 1.1]))
    assert found.y == pytest.approx([1.5, 1.35, 1.1])
    assert found.x == pytest.approx([40, 41.5, 43])
    assert found.repeats.tolist() == [1, 2, 1]
    assert "averaged" in found.notes[0]


def test_a_grid_of_runs_keeps_its_frontier() -> None:
    sizes = np.array([0.0, 1.0, 0.0, 1.0])
    found = ladder.build("a", sizes, np.arange(4.0) + 40, np.array([1.5, 1.7, 1.2, 1.1]))
    assert found.y == pytest.approx([1.5, 1.2, 1.1])
    assert "left out" in found.notes[0]
    # The third budget is above the line between its neighbours, which no frontier is by more than its error.
    bulging = ladder.build("a", sizes, np.arange(4.0) + 40, np.array([1.5, 1.7, 1.3, 1.1]))
    assert bulging.y == pytest.approx([1.5, 1.1])
    assert (bulging.sd >= ladder.OF_A_GRID).all()


def test_no_rung_lies_below_every_run() -> None:
    """A parabola over sizes with a gap, where unlike shapes at one size scatter, has its vertex in the gap."""
    sizes = np.array([0.0, 0.05, 0.1, 1.6, 1.65, 1.7])
    losses = np.array([1.30, 1.20, 1.12, 1.10, 1.15, 1.25])
    rung = ladder.build("a", sizes, np.full(6, 40.0), losses)
    assert rung.y == pytest.approx([1.10])
    assert rung.sd[0] >= ladder.EDGE_SD
    assert "dips below every run" in rung.notes[0]


def test_below_keeps_the_rungs_up_to_a_budget() -> None:
    found = ladder.build("a", np.zeros(3), np.log([1e17, 1e18, 1e19]), np.array([1.5, 1.3, 1.1]))
    assert len(found.below(1e18).x) == 2
    assert len(found.below(9e17).x) == 1
