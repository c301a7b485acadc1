"""Tables of gains with only the columns that somebody has: what is read, what is said of the rest, what is refused."""

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cegain.gain.evidence import load
from cegain.run_tables import loose_gains
from cegain.tables.problems import EvidenceError
from cegain.tables.published_gains import PublishedGain

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(content: str | bytes, name: str = "mine.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(path: Path, *asked: str) -> tuple[PublishedGain, ...]:
    return load([path], shipped=False, asked=asked).rows


def refusal(path: Path, *asked: str) -> str:
    with pytest.raises(EvidenceError) as caught:
        load([path], shipped=False, asked=asked)
    return str(caught.value)


def test_a_gain_and_an_algorithm_are_enough_and_all_defaults_are_said(save: Save) -> None:
    tables = load([save("algorithm,flops,ceg\nmoe,1e22,2.5\n")], shipped=False)
    (row,) = tables.rows
    assert (row.algorithm, row.flops, row.ceg, row.baseline, row.study) == ("moe", 1e22, 2.5, "dense", "mine")
    assert (row.currency, row.basis, row.flops_convention) == ("flop", "measured", "unknown")
    assert (row.treatment, row.source) == ("moe", "mine.csv")
    assert math.isnan(row.low)
    assert tables.own == ()
    (remark,) = tables.remarks
    for word in ("1 gain(s)", "default baseline", "study mine", "currency flop", "basis measured", "unknown"):
        assert word in remark


def test_what_the_table_says_is_no_default(save: Save) -> None:
    content = "algorithm,baseline,study,currency,basis,source,treatment,flops convention,flops,gain\n"
    content += "MoE,Dense,s,wall-clock,claimed,a paper,8 experts,useful,1e20,2\n"
    tables = load([save(content)], shipped=False)
    (row,) = tables.rows
    assert (row.study, row.currency, row.basis, row.source, row.treatment) == (
        "s", "time", "claimed", "a paper", "8 experts",
    )  # fmt: skip
    assert (row.baseline, row.flops_convention) == ("dense", "useful")
    assert "taken where" not in tables.remarks[0]


@pytest.mark.parametrize("name", ["ceg", "gain", "Speedup", "multiplier", "ratio", "Compute Multiplier"])
@pytest.mark.parametrize("written", ["1.5", "1.5x", "1.5 ×", "1.5-fold"])
def test_names_and_forms_of_a_gain(save: Save, name: str, written: str) -> None:
    (row,) = rows(save(f" Algorithm ,{name},FLOPs\nRoPE,{written},1e20\n"))
    assert (row.algorithm, row.ceg, row.flops) == ("rope", 1.5, 1e20)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Mixture of Experts", "moe"), ("mixture-of-experts", "moe"), ("Rotary position embedding (RoPE)", "rope"),
        ("Grouped-query attention", "gqa"), ("rope + MoE", "rope+moe"),
    ],
)  # fmt: skip
def test_algorithms_by_name_alias_and_title(save: Save, written: str, name: str) -> None:
    (row,) = rows(save(f"method,gain\n{written},1.5\n"))
    assert row.algorithm == name
    assert row.baseline.count("+") == name.count("+")


@pytest.mark.parametrize(
    "content",
    [
        b"algorithm;compute;speedup;low;high\nmoe;1,5e20;2,5;2;3,25\n",
        b"\xef\xbb\xbfalgorithm\tcompute\tspeedup\tlow\thigh\r\nmoe\t150,000,000,000,000,000,000\t2.5\t2\t3.25\r\n",
        b"algorithm|compute (EFLOP)|speedup|low|high\nmoe|150|2.5|2|3.25\n",
        b"algorithm,pflops,speedup,low,high\nmoe,150k,2.5,2,3.25\n",
        "algorithm,compute,speedup,low,high\nmoe,1.5e20,2.5,2,3.25\n".encode("utf-16"),
        gzip.compress(b"algorithm,compute,speedup,low,high\nmoe,1.5 x 10^20,2.5,2,3.25\n"),
        json.dumps({"algorithm": "moe", "compute": 1.5e20, "speedup": 2.5, "low": 2, "high": 3.25}).encode(),
        json.dumps([{"algorithm": "moe", "compute": 1.5e20, "speedup": 2.5, "low": 2, "high": 3.25}]).encode(),
    ],
    ids=["semicolons", "tabs", "unit", "prefix", "utf-16", "gzip", "json line", "json array"],
)
def test_files_of_every_kind(save: Save, content: bytes) -> None:
    (row,) = rows(save(content, "mine.dat"))
    assert (row.algorithm, row.ceg, row.low, row.high) == ("moe", 2.5, 2, 3.25)
    assert row.flops == pytest.approx(1.5e20)


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    pd.DataFrame({"algorithm": ["moe"], "gain": [2.5]}).to_parquet(tmp_path / "mine.parquet")
    (row,) = rows(tmp_path / "mine.parquet")
    assert (row.algorithm, row.ceg) == ("moe", 2.5)


def test_an_interval_in_per_cent_and_a_range_without_a_probability(save: Save) -> None:
    (row,) = rows(save("algorithm,gain,low,high,interval\nmoe,2,1,3,90%\n"))
    assert row.interval == 0.9
    tables = load([save("algorithm,gain,low,high\nmoe,2,1,3\n")], shipped=False)
    assert math.isnan(tables.rows[0].interval)
    assert "without a probability" in tables.remarks[0]


def test_without_a_column_of_algorithms_the_only_one_asked_about_stands_for_all(save: Save) -> None:
    path = save("gain,flops\n2,1e20\n3,1e21\n")
    assert [row.algorithm for row in rows(path, "MoE")] == ["moe", "moe"]
    assert "the algorithm that is asked about" in load([path], shipped=False, asked=["moe"]).remarks[0]
    for asked in ((), ("moe", "rope")):
        assert "Add a column algorithm" in refusal(path, *asked)


def test_rows_without_a_gain_and_repeated_rows_are_counted(save: Save) -> None:
    tables = load([save("algorithm,gain,flops\nmoe,2,1e20\nmoe,,1e21\nmoe,2,1e20\nmoe,nan,\n")], shipped=False)
    assert len(tables.rows) == 1
    assert any("2 row(s) without a gain" in remark for remark in tables.remarks)
    assert any("1 row(s) that stand twice" in remark for remark in tables.remarks)


def test_columns_that_are_not_used_are_named(save: Save) -> None:
    remarks = load([save("algorithm,gain,sourse,colour\nmoe,2,x,y\n")], shipped=False).remarks
    assert any("sourse (did you mean source?), colour" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("algorithm,gain\nmoe,\n", "some row has a gain"),
        ("algorithm,gain\nmoe,30%\n", "Write 1.3 for 30% more"),
        ("algorithm,gain\nmoe,-2\n", "line 2, column ceg"),
        ("algorithm,gain\n,2\n", "line 2, column algorithm"),
        ("algorithm,gain,low\nmoe,2,3\n", "low <= ceg <= high"),
        ("algorithm,gain,currency\nmoe,2,euro\n", "'euro'"),
        ("algorithm,gain,baseline\nmoe+rope,2,dense\n", "one baseline per part"),
        ("algorithm,gain\n\x1b[31mmoe,2\n", "control characters"),
        ("algorithm,gain,flops\nmoe,2,many\n", "'many'"),
        ('algorithm,gain\n"a, b",2\n', "the algorithm is in the registry"),
        ("algorithm,flops\nmoe,1e20\n", "Add the missing columns"),
        ('[{"algorithm": "moe"}]', "Rename the column of gains to ceg"),
        ("algorithm,gain,study,same_as\nmoe,2,a,k\nmoe,3,b,k\n", "a key of same_as stands in one study"),
        ("algorithm,gain,stack\nmoe,2,bare\n", "Empty these columns"),
    ],
)
def test_what_is_refused(save: Save, content: str, words: str) -> None:
    assert words in refusal(save(content))


def test_one_message_per_column_and_rule(save: Save) -> None:
    said = refusal(save("algorithm,gain\n" + "moe,x\n" * 50))
    assert said.count("\n") == 0
    assert "and 49 more row(s)" in said


def test_a_full_table_keeps_its_strict_rules() -> None:
    assert loose_gains.is_full({*loose_gains.NEEDED, "colour"})
    assert not loose_gains.is_full({*loose_gains.NEEDED} - {"note"})


def test_a_table_of_losses_is_runs_and_no_gains(save: Save) -> None:
    assert "gain" not in loose_gains.columns_of(["variant", "C", "loss"])
    said = refusal(save(json.dumps([{"variant": "a", "C": 1e18, "loss": 3.0, "N": 1e7}])))
    assert "a table of gains" not in said


def test_a_long_table_of_unknown_names_is_read_in_time(save: Save) -> None:
    tables = load([save("algorithm,gain\n" + "".join(f"trick_{i},2\n" for i in range(3000)))], shipped=False)
    assert len(tables.rows) == len(tables.own) == 3000
    assert any("2995 more algorithms" in remark for remark in tables.remarks)


def test_reading_a_full_table_takes_no_pandas(save: Save) -> None:
    code = "import sys; from cegain.gain.evidence import load; load([sys.argv[1]]); print('pandas' in sys.modules)"
    content = ",".join(loose_gains.NEEDED) + "\nmoe,t,dense,s,1e20,useful,2,,,,flop,measured,source,\n"
    words = [sys.executable, "-c", code, str(save(content))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
