"""Tables of runs as people have them, through `ceg import` and on to `ceg fit`."""

import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cegain.ladders import ladder
from cegain.run_tables import run_import
from cegain.run_tables.run_import import ReadOptions
from cegain.tables import table_files
from cegain.tables.column_meanings import Formula, meaning
from cegain.tables.loose_numbers import number, numbers
from cegain.tables.problems import EvidenceError
from tests.estimator.calls import Calls

IMPORT, FIT = Calls("import"), Calls("fit")


def grid(arms: tuple[str, ...] = ("plain", "new")) -> list[dict[str, object]]:
    """Made-up runs of a known law, a grid of sizes at five budgets; the second arm gains 1.5x."""
    rows: list[dict[str, object]] = []
    for k, arm in enumerate(arms):
        for c in (1e18, 3e18, 1e19, 3e19, 1e20):
            for share in (0.4, 0.6, 1.0, 1.6, 2.5):
                n = round(share * 0.12 * math.sqrt(c))
                d, gain = c / (6 * n), 1.5 if k else 1.0
                loss = 1.8 + 410 / n**0.34 / gain**0.17 + 410 / d**0.28 / gain**0.14
                rows.append({"variant": arm, "N": n, "D": round(d), "C": c, "loss": round(loss, 5)})
    return rows


def as_csv(path: Path, rows: list[dict[str, object]], separator: str = ",", write=str) -> Path:
    lines = [separator.join(rows[0]), *(separator.join(write(cell) for cell in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def renamed(rows: list[dict[str, object]], **names: str) -> list[dict[str, object]]:
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


def same(found: run_import.Runs, rows: list[dict[str, object]]) -> bool:
    return all(
        np.allclose(getattr(found, field), [row[field] for row in rows], rtol=1e-9) for field in ("N", "D", "C", "loss")
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7B", 7e9), ("2.5T", 2.5e12), ("124M", 124e6), ("512k", 512e3), ("10^26", 1e26), ("1.2x10^21", 1.2e21),
        ("1.2 × 10^21", 1.2e21), ("10**24", 1e24), ("22,592,403", 22592403), ("3,94008", 3.94008),
        ("1,0000e+18", 1e18), ("1.234.567,8", 1234567.8), ("1 234 567", 1234567), ("1_000", 1000), ("1'000", 1000),
        ("-0.5", -0.5),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert number(text) == pytest.approx(value)


def test_a_comma_means_one_thing_in_a_column() -> None:
    assert numbers(["3,940", "3,882", "3.1"]).tolist() == [3.94, 3.882, 3.1]
    assert numbers(["3,940", "38,729,833"]).tolist() == [3940, 38729833]
    assert np.isnan(numbers(["", "NaN", "inf", "-", "n/a"])).all()
    with pytest.raises(ValueError, match="seven"):
        numbers(["1", "seven"])


@pytest.mark.parametrize(
    ("name", "of", "factor"),
    [
        ("throughput/total_gflops", "C", 1e9), ("FLOPs (P)", "C", 1e15), ("flops", "C", 1.0), ("N (M)", "N", 1e6),
        ("params_b", "N", 1e9), ("tokens (billions)", "D", 1e9), ("eval/loss", "loss", 1.0), ("val_loss", "loss", 1.0),
        ("loss_bits_per_byte", "bits_per_byte", 1.0), ("Optimizer", "variant", 1.0),
    ],
)  # fmt: skip
def test_names_say_what_columns_are(name: str, of: str, factor: float) -> None:
    found = meaning(name)
    assert found is not None
    assert (found.of, found.factor) == (of, factor)


@pytest.mark.parametrize("name", ["seq_len", "lr", "loss_m", "tokens_per_second", "wall_s", ""])
def test_other_names_say_nothing(name: str) -> None:
    assert meaning(name) is None


def test_formulas_are_arithmetic_and_nothing_else() -> None:
    assert Formula("6*N*D/2 - -1", {}).value({"N": np.array([2.0]), "D": np.array([3.0])}) == 19
    assert Formula("eval/loss", {"eval/loss": ()}).columns == ["eval/loss"]
    assert Formula("{eval/loss} + x", {}).columns == ["eval/loss", "x"]
    for bad in ("__import__('os')", "a if b else c", "x**2", "a.b", "[1]", "'s'", "True", "a b", "f(x)", "", "x@y"):
        with pytest.raises(ValueError, match="columns, numbers"):
            Formula(bad, {})


def test_every_kind_of_file_gives_the_same_runs(tmp_path: Path) -> None:
    rows = grid()
    comma = lambda cell: str(cell).replace(".", ",")  # noqa: E731
    thousands = lambda cell: f'"{cell:,}"' if isinstance(cell, int) else str(cell)  # noqa: E731
    text = as_csv(tmp_path / "plain.csv", rows).read_text()
    (tmp_path / "plain.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "wide.csv").write_text(text, encoding="utf-16")
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    (tmp_path / "columns.json").write_text(json.dumps({key: [row[key] for row in rows] for key in rows[0]}))
    nested = [
        {"config": {"variant": row["variant"], "N": row["N"]}, "summary": dict(list(row.items())[2:])} for row in rows
    ]
    (tmp_path / "nested.jsonl").write_text("\n".join(map(json.dumps, nested)))
    as_csv(tmp_path / "tabs.tsv", rows, "\t")
    as_csv(tmp_path / "european.csv", rows, ";", comma)
    as_csv(tmp_path / "spreadsheet.csv", rows, ",", thousands)
    for path in sorted(tmp_path.iterdir()):
        found = run_import.read(path)
        assert same(found, rows), path.name
        assert found.variant == [row["variant"] for row in rows], path.name
        assert found.remarks == ()


def test_what_is_written_is_what_fit_reads(tmp_path: Path) -> None:
    source = as_csv(
        tmp_path / "export.csv", renamed(grid(), N="num_params", D="total_tokens", C="flops", loss="val_loss")
    )
    target = tmp_path / "runs.csv"
    result = IMPORT.call(source, "-o", target)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {target}: 50 runs, 2 arm(s)\n"
    assert result.stderr.splitlines() == [
        "CSV between commas, 50 rows", "variant = variant",
        "N = num_params", "D = total_tokens", "C = flops", "loss = val_loss",
    ]  # fmt: skip
    table = ladder.read_runs(target)
    assert table.variants() == ["plain", "new"]
    assert len(table.loss) == 50
    assert "FLOP: CEG 1." in FIT.call(target, "--variant", "new", "--baseline", "plain", "--at", "1e20").output
    assert IMPORT.call(source).stdout == target.read_text()


def test_a_table_without_arms_is_one_arm(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("C", "N", "D", "loss")} for row in grid(("plain",))]
    assert set(run_import.read(as_csv(tmp_path / "mine.csv", rows)).variant) == {"mine"}


def test_what_follows_from_the_others_is_filled_in(tmp_path: Path) -> None:
    rows = grid(("plain",))
    found = run_import.read(as_csv(tmp_path / "c.csv", [{k: r[k] for k in ("N", "D", "loss")} for r in rows]))
    assert np.allclose(found.C, 6 * found.N * found.D)
    assert found.remarks == ("no column of compute: C is 6 N D",)
    found = run_import.read(as_csv(tmp_path / "n.csv", [{k: r[k] for k in ("C", "D", "loss")} for r in rows]))
    assert np.allclose(found.N, [r["N"] for r in rows])
    found = run_import.read(as_csv(tmp_path / "bare.csv", [{k: r[k] for k in ("C", "loss")} for r in rows]))
    assert found.remarks == ("no column of parameters and tokens",)
    with pytest.raises(EvidenceError, match=r"C \(FLOP\), or N \(parameters\) and D \(tokens\), is known"):
        run_import.read(as_csv(tmp_path / "none.csv", [{k: r[k] for k in ("N", "loss")} for r in rows]))


def test_rows_without_a_result_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row | {"state": "finished"} for row in grid(("plain",))]
    rows[0] |= {"state": "crashed", "loss": ""}
    rows[1] |= {"state": "running"}
    rows[2] |= {"loss": "NaN"}
    rows[3] |= {"loss": "Infinity"}
    path = as_csv(tmp_path / "runs.csv", rows)
    found = run_import.read(path)
    assert len(found.loss) == len(rows) - 4
    assert found.remarks == ("4 of 25 rows left out: 1 crashed, 1 running, 2 without a loss",)
    with pytest.raises(EvidenceError, match="every row is a finished run"):
        run_import.read(path, ReadOptions(strict=True))


@pytest.mark.parametrize(
    ("factors", "remedy"),
    [
        ({"C": 1e-9}, "--columns C=NAME*1e9"),
        ({"C": 1e-15}, "--columns C=NAME*1e15"),
        ({"D": 1e-9}, "--columns D=NAME*1e9"),
        ({"N": 1e-6}, "--columns N=NAME*1e6"),
        ({"N": 1e-9, "D": 1e-9}, "--columns N=NAME*1e9,D=NAME*1e9"),
    ],
)
def test_units_that_contradict_each_other_are_refused_with_the_remedy(
    tmp_path: Path, factors: dict[str, float], remedy: str
) -> None:
    rows = [
        {key: value * factors.get(key, 1) if key in factors else value for key, value in row.items()} for row in grid()
    ]
    path = as_csv(tmp_path / "runs.csv", rows)
    said = IMPORT.refused(path)
    assert "C is near 6 N D (found C is" in said
    assert f"A unit? Try {remedy}." in said
    given = ",".join(f"{key}={key}*{1 / factor:g}" for key, factor in factors.items())
    assert IMPORT.call(path, "--columns", given).exit_code == 0


def test_rows_that_contradict_the_others_are_named(tmp_path: Path) -> None:
    rows = grid()
    rows[7]["C"] = 1e24
    with pytest.raises(EvidenceError, match=r"C is near 6 N D in every row .* in line 9, 1 such row"):
        run_import.read(as_csv(tmp_path / "runs.csv", rows))


def test_an_arm_counted_otherwise_is_named(tmp_path: Path) -> None:
    rows = [row | {"C": row["C"] * 2.2} if row["variant"] == "new" else row for row in grid()]
    (said,) = run_import.read(as_csv(tmp_path / "runs.csv", rows)).remarks
    assert said.startswith("C of new is 2.2 to 2.2 times 6 N D")


def test_losses_in_another_unit_are_refused_or_turned(tmp_path: Path) -> None:
    rows = grid(("plain",))
    bits = [row | {"loss": row["loss"] / math.log(2) / 4.3} for row in rows]
    said = IMPORT.refused(as_csv(tmp_path / "bits.csv", bits))
    assert "losses in nats per token of text lie within 1.3 to 15" in said
    assert "--bytes-per-token 4.3" in said
    assert same(run_import.read(tmp_path / "bits.csv", ReadOptions(bytes_per_token=4.3)), rows)
    named = as_csv(tmp_path / "named.csv", renamed(bits, loss="val_bpb"))
    assert "bits per byte become nats per token" in IMPORT.refused(named)
    assert same(run_import.read(named, ReadOptions(bytes_per_token=4.3)), rows)
    per_token = [row | {"loss": row["loss"] / math.log(2)} for row in rows]
    assert same(run_import.read(as_csv(tmp_path / "b.csv", per_token), ReadOptions(unit="bits")), rows)
    perplexities = as_csv(tmp_path / "p.csv", [row | {"loss": math.exp(row["loss"])} for row in rows])
    assert "Perplexities" in IMPORT.refused(perplexities)


def test_checkpoints_are_no_runs(tmp_path: Path) -> None:
    rows = [
        {"N": n, "tokens": step * 1e6, "step": step, "loss": 2 + 400 / n**0.3 + 9 / step**0.4}
        for n in (1e8, 3e8) for step in (500, 1000, 1500, 2000)
    ]  # fmt: skip
    path = as_csv(tmp_path / "log.csv", rows)
    assert "8 rows are evaluations of 2 run(s)" in run_import.read(path).remarks[-1]
    found = run_import.read(path, ReadOptions(last=True))
    assert found.D.tolist() == [2e9, 2e9]
    assert found.remarks[-1].endswith("the last of each is kept")


def test_a_trainers_state_is_its_evaluations(tmp_path: Path) -> None:
    log = [{"step": s, "loss": 3.5} if s % 2 else {"step": s, "eval_loss": 3.4 - s / 100} for s in range(1, 11)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": log}))
    found = run_import.read(tmp_path / "trainer_state.json", ReadOptions(columns={"N": "124e6", "D": "step*524288"}))
    assert found.loss.tolist() == [3.3]
    assert found.D.tolist() == [10 * 524288]


def test_everything_wrong_with_a_call_is_said_at_once(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "runs.csv", grid())
    said = IMPORT.refused(path, "-o", "x.json", "--columns", "size=N", "--unit", "bans", "--bytes-per-token", "-1")
    for part in (
        "--output",
        "--columns: one of variant, N, D, C, loss, seed",
        "--unit: nats, bits or",
        "--bytes-per-token",
    ):
        assert part in said
    assert "There are: variant, N, D, C, loss" in IMPORT.refused(path, "--columns", "C=flops*2")
    assert "one column" not in IMPORT.refused(path, "--columns", "loss=variant")
    assert "the cells are numbers (found 'plain')" in IMPORT.refused(path, "--columns", "loss=variant")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"), (b"\n\n", "an empty file"), (b"\x00\x01\x02", "binary content"),
        (b"a,b\n", "no rows"), (b"[1, 2]", "objects with names"), (b"{", "one JSON object"),
        (b'a,b\n"1,2\n3,4', "close quotes"), (b"a,b\n1,2,3\n", "as many cells"), (b"\x1f\x8bnot", "the file is whole"),
        (b"PAR1xxxxPAR1", ""), (b"a,b\n1,2\n", "one column holds the loss"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_one_clear_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    assert said in IMPORT.refused(path)
    assert "can be read" in IMPORT.refused(tmp_path / "none.csv")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_tables_are_an_answer_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    rows = grid()[: draw.choice([1, 3, 50])]
    kind = draw.choice(["bytes", "cells", "cut", "json"])
    path = as_csv(folder / "runs.csv", rows)
    if kind == "json":
        path.write_text("\n".join(map(json.dumps, rows)))
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[: draw.randrange(len(content))]
    elif kind == "cells":
        odd = draw.choice(["", "NaN", "-1", "1e999", "7B", "\u00e9", "=1+1", '"', "0", "1,5", "\u0661"])
        text = content.decode().split(",")
        text[draw.randrange(len(text))] = odd
        content = bytearray(",".join(text).encode())
    else:
        for _ in range(draw.randrange(1, 20)):
            content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)
    result = IMPORT.call(path, "-o", folder / "out.csv")
    assert result.exit_code in (0, 2), result.output
    assert (folder / "out.csv").exists() == (result.exit_code == 0)
    if result.exit_code == 0:
        assert len(table_files.read(folder / "out.csv")) > 0
