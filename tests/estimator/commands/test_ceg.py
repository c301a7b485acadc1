"""The command line as a user meets it: answers on stdout, everything wrong at once on stderr with exit code 2."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cegain import algorithms
from cegain.commands.ceg import ceg, estimate_command
from cegain.gain.evidence import load
from cegain.kernels.patterns import HeadPattern
from cegain.pictures import pattern
from cegain.tables.published_gains import COLUMNS, PUBLISHED_GAINS

ROW = {
    "algorithm": "moe", "treatment": "8 experts", "baseline": "dense", "study": "s1", "flops": "1e22",
    "flops_convention": "useful", "ceg": "4", "currency": "flop", "basis": "measured", "source": "a source",
}  # fmt: skip
MOE = ("estimate", "--algo", "moe", "--flops", "1e24")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(ceg, [str(a) for a in args])


def answer(*args: str | Path) -> dict[str, Any]:
    result = run(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    return document


def refusal(*args: str | Path) -> str:
    """What bad input gets: exit code 2, nothing on stdout, no traceback."""
    result = run(*args)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def table(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(ROW | row for row in rows)
    return path


def test_the_question_of_the_readme() -> None:
    result = run(*MOE)
    assert result.exit_code == 0
    assert (
        "Mixture of experts, against dense, in flop, at 1e24 FLOP, 16 experts for each active one\nstatus: ok"
        in result.stdout
    )
    assert max(map(len, result.stdout.splitlines())) <= 110
    assert CliRunner().invoke(estimate_command, ["--algo", "moe", "--flops", "1e24"]).stdout == result.stdout


def test_the_shape_of_an_answer() -> None:
    document = answer(*MOE)
    (one,) = document["estimates"]
    low, high = one["ceg_predictive_interval"]
    inner_low, inner_high = one["ceg_mean_interval"]
    assert low < inner_low < one["ceg_median"] < inner_high < high
    assert one["equivalent_flops_median"] == pytest.approx(1e24 * one["ceg_median"])
    assert sum(one["class_probabilities"].values()) == pytest.approx(1)
    assert set(one["share_above_threshold_flops"]) == {"1e+25", "1e+26"}
    assert (document["currency"], document["interval_probability"], document["seed"]) == ("flop", 0.9, 0)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("fa", "flash_attention"), ("ln", "layernorm"), ("flash-attention", "flash_attention"), ("MoE", "moe"),
        (" rope ", "rope"), ("Multi-Token_prediction", "multi_token_prediction"),
    ],
)  # fmt: skip
def test_spellings_and_aliases(spelling: str, name: str) -> None:
    assert answer("estimate", "--algo", spelling, "--flops", "1e20")["algorithms"] == [name]


@pytest.mark.parametrize(
    "args", [("--algo", "rope,layernorm"), ("--algo", "layernorm+rope"), ("--algo", "ln", "--algo", "rope")]
)
def test_a_stack_in_every_spelling_and_order(args: tuple[str, ...]) -> None:
    assert answer("estimate", *args, "--flops", "1e20") == answer("estimate", "--algo", "ln,rope", "--flops", "1e20")


@pytest.mark.parametrize(
    ("given", "budgets"),
    [
        (["1e20"], [1e20]),
        ([" 1e20 , 3e21 "], [1e20, 3e21]),
        (["1e20", "1e22"], [1e20, 1e22]),
        (["1e18:1e21"], [1e18, 1e19, 1e20, 1e21]),
        (["1e18 : 3e19"], [1e18, 1e19, 3e19]),
        (["1e24:1e24"], [1e24]),
        (["1e20,1e22:1e23", "1e25"], [1e20, 1e22, 1e23, 1e25]),
    ],
)
def test_budgets(given: list[str], budgets: list[float]) -> None:
    options = [part for text in given for part in ("--flops", text)]
    document = answer("estimate", "--algo", "moe", *options)
    assert [e["flops"] for e in document["estimates"]] == pytest.approx(budgets)
    lines = run("estimate", "--algo", "moe", *options).stdout.splitlines()
    head_and_foot = len(lines) - len(budgets)  # title, columns, and what `own` means where our runs have a share
    assert (head_and_foot in (2, 3)) == (len(budgets) > 1)


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "1e24,", "0", "-1", "nan", "inf", "1e400", "1e-300", "1e300", "text", "1e24;1e25", "0x10",
        "1e26:1e18", "1e18:", ":", "1e18:1e20:1e22", "1e18:nan", "0:1e20", "1e-300:1e300",
    ],
)  # fmt: skip
def test_bad_budgets(text: str) -> None:
    message = refusal("estimate", "--algo", "moe", "--flops", text)
    assert "--flops: a" in message
    assert "Try 1e24, a list 1e22,1e24, or a range 1e18:1e26." in message


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("meo", "moe"), ("mooe", "moe"), ("rop", "rope"), ("flash_atention", "flash_attention"), ("moé", "moe")],
)
def test_unknown_algorithm_offers_the_nearest(text: str, nearest: str) -> None:
    message = refusal("estimate", "--algo", text, "--flops", "1e24")
    assert f"got {text!r}. Did you mean {nearest}" in message


@pytest.mark.parametrize("text", ["", ",", " + ", "[red]x", "../moe", "__init__", "moe;rope", "x" * 3000, "\u202emoe"])
def test_other_names_are_refused(text: str) -> None:
    assert "`ceg list`" in refusal("estimate", "--algo", text, "--flops", "1e24")


@pytest.mark.parametrize("names", ["moe,moe", "moe,MoE", "fa+flash-attention"])
def test_an_algorithm_twice(names: str) -> None:
    assert "once in a stack" in refusal("estimate", "--algo", names, "--flops", "1e24")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        *(("--interval", v, "interval: a") for v in ("0", "1", "2", "-0.5", "abc", "90%", "nan", "0.99999999999", "")),
        *(("--seed", v, "--seed: a whole number") for v in ("x", "1.5", "")),
        *(("--currency", v, "flop, time, usd, decode") for v in ("eur", "", "steps")),
        *(("--threshold", v, "threshold: a") for v in ("x", "0", "-1", "nan", "1e400", "1e-300")),
        ("--baseline", "dens", "Did you mean dense?"),
        ("--baseline", "dense,dense", "found 2 for 1"),
        ("--baseline", "", "Known: dense"),
    ],
)
def test_bad_options(option: str, value: str, words: str) -> None:
    assert words in refusal(*MOE, option, value)


@pytest.mark.parametrize(
    ("option", "values"),
    [("--interval", ("0.5", "0.9")), ("--currency", ("flop", "time")), ("--seed", ("1", "2")),
     ("--baseline", ("dense", "moe")), ("--plot", ("a.png", "b.png"))],
)  # fmt: skip
def test_a_second_value_is_not_lost_silently(option: str, values: tuple[str, str]) -> None:
    message = refusal(*MOE, option, values[0], option, values[1])
    assert all(repr(value) in message for value in values)


def test_all_problems_at_once(tmp_path: Path) -> None:
    bad = table(tmp_path / "bad.csv", {"ceg": "-1"}, {"study": "s2", "basis": "guess"})
    message = refusal(
        "estimate", "--algo", "meo", "--flops", "-1", "--interval", "7", "--seed", "z", "--currency", "eur",
        "--threshold", "q", "--evidence", bad, "--evidence", tmp_path / "none", "--plot", tmp_path / "no" / "x.png",
    )  # fmt: skip
    for part in ("'meo'", "'-1'", "7.0", "'z'", "'eur'", "'q'", "line 2, column ceg", "line 3, column basis", "none'"):
        assert part in message
    assert len([line for line in message.splitlines() if line.startswith("  ")]) == 10
    assert os.listdir(tmp_path) == ["bad.csv"]


def test_options_reach_the_answer(tmp_path: Path) -> None:
    mine = table(tmp_path / "mine.csv", {"study": "a"}, {"study": "b", "ceg": "6", "flops": "1e23"})
    document = answer(
        *MOE, "--interval", "0.5", "--seed", "7", "--threshold", "3e24", "--evidence", mine, "--only-evidence"
    )
    assert (document["seed"], document["interval_probability"]) == (7, 0.5)
    (one,) = document["estimates"]
    assert one["ceg_predictive_interval"] == one["ceg_predictive_interval_50"]
    assert list(one["share_above_threshold_flops"]) == ["3e+24", "1e+25", "1e+26"]
    assert (one["evidence"]["rows_level"], one["evidence"]["studies"]) == (2, 2)
    assert document["evidence_sha256"] == load([mine], shipped=False).sha256
    both = answer(*MOE, "--evidence", mine)["estimates"][0]["evidence"]["rows_level"]
    assert both == answer(*MOE)["estimates"][0]["evidence"]["rows_level"] + 2


def test_no_prior_refuses_one_budget_and_says_why(tmp_path: Path) -> None:
    mine = table(tmp_path / "mine.csv", {})
    document = answer(*MOE, "--evidence", mine, "--only-evidence", "--no-prior")
    assert document["status"] == "no_evidence"
    assert "two budgets" in document["estimates"][0]["reason"]
    assert answer(*MOE, "--evidence", mine, "--only-evidence")["estimates"][0]["ceg_median"] is not None


@pytest.mark.parametrize("name", ["zero", "mixed_precision"])
def test_a_refusal_is_a_result(name: str) -> None:
    result = run("estimate", "--algo", name, "--flops", "1e24")
    assert result.exit_code == 0
    assert "status: no_evidence" in result.stdout
    (one,) = answer("estimate", "--algo", name, "--flops", "1e24")["estimates"]
    assert one["status"] == "no_evidence"
    assert one["reason"]
    assert one["ceg_median"] is one["ceg_predictive_interval"] is None


def test_every_algorithm_and_currency_gives_valid_json() -> None:
    for name in algorithms.names():
        for currency in ("flop", "time", "usd", "decode"):
            document = answer("estimate", "--algo", name, "--flops", "1,1e24,1e60", "--currency", currency)
            assert document["status"] in ("ok", "far_extrapolation", "no_evidence")


def test_extreme_rows_give_valid_json(tmp_path: Path) -> None:
    mine = table(
        tmp_path / "mine.csv",
        {"study": "a", "ceg": "1e9", "flops": "1"},
        {"study": "b", "ceg": "1e-9", "flops": "1e60", "low": "1e-9", "high": "1e9", "interval": "0.01"},
        {"study": "c", "ceg": "1e-9", "flop_factor": "1e-9", "currency": "steps", "flops": ""},
    )
    for name in ("1", "1e60"):
        answer("estimate", "--algo", "moe", "--flops", name, "--evidence", mine, "--only-evidence")
    assert run("show", "moe", "--evidence", mine).exit_code == 0


def test_shipped_table_as_evidence_counts_once() -> None:
    document = answer(*MOE, "--evidence", PUBLISHED_GAINS)
    (note,) = document["estimates"][0]["notes"]
    assert "more than one table and count once" in note
    assert document["estimates"][0] | {"notes": []} == answer(*MOE)["estimates"][0]


def test_only_evidence_needs_evidence() -> None:
    for command in (MOE, ("list",), ("coverage",), ("show", "moe")):
        assert "--evidence PATH" in refusal(*command, "--only-evidence")


@pytest.mark.parametrize("command", [("list",), ("show", "moe"), ("coverage",), MOE])
def test_every_command_refuses_bad_tables(command: tuple[str, ...], tmp_path: Path) -> None:
    assert "exists" in refusal(*command, "--evidence", tmp_path / "none.csv")
    assert "not empty" in refusal(*command, "--evidence", "")


def test_markup_in_a_table_prints_as_text(tmp_path: Path) -> None:
    words = {"source": "[red]x", "note": "[/bold] :smile: [link=y]z", "treatment": "[bold]t"}
    mine = table(tmp_path / "mine.csv", words)
    shown = run("show", "moe", "--evidence", mine, "--only-evidence")
    assert shown.exit_code == 0
    for word in words.values():
        assert word in shown.stdout


def test_show_gives_every_row_with_its_influence(tmp_path: Path) -> None:
    document = json.loads(run("show", "moe", "--json").stdout)
    assert len(document["rows"]) == sum(row.algorithm == "moe" for row in load().rows)
    mine = table(tmp_path / "mine.csv", {}, {"study": "b"}, {"study": "c", "currency": "time"})
    rows = json.loads(run("show", "moe", "--evidence", mine, "--only-evidence", "--json").stdout)["rows"]
    assert 0.9 < sum(row["weight"] for row in rows) < 1  # the rest is the prior's
    assert [bool(row["not_used"]) for row in rows] == [row["currency"] == "time" for row in rows]


def test_show_refuses_with_the_nearest_name() -> None:
    message = refusal("show", "meo", "--currency", "eur")
    assert "Did you mean moe" in message
    assert "'eur'" in message
    assert run("show", "FA", "--currency", "Time").exit_code == 0


def test_list_names_every_algorithm() -> None:
    result = run("list")
    assert result.exit_code == 0
    documented = [entry["name"] for entry in json.loads(run("list", "--json").stdout)["algorithms"]]
    assert documented == list(algorithms.names())
    assert all(f" {name} " in result.stdout for name in documented)


def test_paper_prints_and_gives_json() -> None:
    assert run("paper").exit_code == 0
    assert json.loads(run("paper", "--json").stdout)["table3"]


def test_coverage_of_small_tables(tmp_path: Path) -> None:
    mine = table(tmp_path / "mine.csv", {})
    args = ("coverage", "--evidence", mine, "--only-evidence")
    assert "s1" in run(*args).stdout
    table(mine, {}, {"study": "s2", "ceg": "4.2"})
    assert json.loads(run(*args, "--json").stdout)["summary"]["all"]["studies"] == 2


def test_settings_are_never_fitted_on_a_users_table(tmp_path: Path) -> None:
    assert "--write" in refusal("coverage", "--write", "--evidence", table(tmp_path / "mine.csv", {}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.gif", "ends in .svg, .pdf, .png"), ("x", "ends in"), ("", "ends in"), (".png", "ends in"),
        ("none/x.png", "Create it first"), ("folder.png", "a file is needed"), ("file/x.png", "folder exists"),
        ("y" * 300 + ".png", "name too long"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [(*MOE, "--plot"), ("plot", "--algo", "moe", "--flops", "1e23:1e24", "-o")])
def test_outputs_that_cannot_be_written(
    command: tuple[str, ...], name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("file").touch()
    assert words in refusal(*command, name)
    assert sorted(os.listdir()) == ["file", "folder.png"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that even root cannot write to")
def test_a_folder_that_takes_no_files() -> None:
    assert "can be written" in refusal(*MOE, "--plot", "/proc/ceg.png")


def test_a_read_only_picture_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "x.png"
    picture.write_bytes(b"mine")
    # The superuser may write anything: say what any other user would be told.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != picture)
    assert "read-only" in refusal(*MOE, "--plot", picture)
    assert picture.read_bytes() == b"mine"


def test_an_error_leaves_no_picture(tmp_path: Path) -> None:
    refusal(*MOE, "--interval", "3", "--plot", tmp_path / "x.png")
    refusal("plot", "--algo", "moe,meo", "--flops", "1e18:1e24", "-o", tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_beside_json(tmp_path: Path) -> None:
    assert answer(*MOE, "--plot", tmp_path / "x.svg") == answer(*MOE)
    assert [p.name for p in tmp_path.iterdir()] == ["x.svg"]


def test_plot_reports_everything_wrong() -> None:
    message = refusal("plot", "--algo", "meo,roep", "--flops", "1e20", "--interval", "2", "-o", "none/x.gif")
    for part in ("'meo'", "'roep'", "a range", "2.0", "ends in"):
        assert message.count(part) == 1
    assert "found 1 for 2" in refusal(
        "plot", "--algo", "moe,rope", "--flops", "1e20:1e22", "--baseline", "dense", "-o", "x.png"
    )


@pytest.mark.parametrize("pattern", ["full", "causal", "window", "strided", "Fixed"])
def test_a_picture_of_a_pattern(pattern: str, tmp_path: Path) -> None:
    result = run("plot", "--pattern", pattern, "--heads", "3", "-o", tmp_path / "x.svg")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {tmp_path / 'x.svg'}\n"
    assert "<svg" in (tmp_path / "x.svg").read_text()


def test_a_picture_of_a_pattern_takes_its_lengths(tmp_path: Path) -> None:
    lengths = ["--tokens", "60", "--heads", "1", "--window", "7", "--global-tokens", "2", "--block", "8"]
    assert run("plot", "--pattern", "window", *lengths, "-o", tmp_path / "x.svg").exit_code == 0
    head = HeadPattern("window", window=7, n_global=2)
    assert (tmp_path / "x.svg").read_bytes() == pattern.draw("window", (head,), 60, 8, ".svg")


def test_a_pattern_that_cannot_be_drawn(tmp_path: Path) -> None:
    message = refusal(
        "plot", "--pattern", "strided", "--tokens", "0", "--heads", "x", "--stride", "y", "--algo", "moe", "-o", "x.gif"
    )
    for part in ("--tokens: 1 to 4096", "--heads", "--stride", "it goes without --algo", "ends in"):
        assert message.count(part) == 1
    target = tmp_path / "x.png"
    assert "one of full, causal, window" in refusal("plot", "--pattern", "strded", "-o", target)
    assert "window must be at least 1, got 0" in refusal("plot", "--pattern", "window", "--window", "0", "-o", target)
    assert "--global-tokens: it goes with --pattern" in refusal(
        "plot", "--algo", "moe", "--flops", "1e20:1e22", "--global-tokens", "3", "-o", target
    )
    assert not list(tmp_path.iterdir())


def test_answers_do_not_depend_on_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "mine.csv", {})
    before = answer(*MOE, "--evidence", tmp_path / "mine.csv")
    monkeypatch.chdir(tmp_path)
    assert answer(*MOE, "--evidence", "mine.csv") == before


def _python(code: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
        **settings,
    )


def test_answering_imports_no_torch_no_pandas_no_matplotlib() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom cegain.commands.ceg import ceg\n"
        "for args in (['estimate', '--algo', 'moe,rope', '--flops', '1e24', '--json'], ['list'], ['show', 'moe']):\n"
        "    assert CliRunner().invoke(ceg, args).exit_code == 0\n"
        "print([n for n in ('torch', 'triton', 'pandas', 'matplotlib', 'fvcore', 'ray') if n in sys.modules])\n"
    )
    result = _python(code)
    assert result.stdout == "[]\n", result.stderr


def test_a_reader_that_leaves_early() -> None:
    # The pipe's reader is closed before anything is written.
    code = (
        "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "from cegain.commands.ceg import ceg\nceg(['show', 'moe'])\n"
    )
    assert _python(code).stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("args", [["show", "moe"], ["list", "--json"]])
def test_a_full_disk_is_one_line(args: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", f"from cegain.commands.ceg import ceg; ceg({args})"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "the output can be written" in result.stderr


def test_a_terminal_that_lacks_a_letter(tmp_path: Path) -> None:
    mine = table(tmp_path / "mine.csv", {"source": "Müller"})
    code = f"from cegain.commands.ceg import ceg; ceg(['show', 'moe', '--evidence', {str(mine)!r}])"
    result = _python(code, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert r"M\xfcller" in result.stdout


@pytest.mark.slow
def test_many_rows_are_answered_quickly(tmp_path: Path) -> None:
    mine = table(tmp_path / "mine.csv", *({"study": f"s{i}", "note": str(i)} for i in range(100_000)))
    code = (
        "import time; start = time.process_time()\nfrom cegain.commands.ceg import ceg\n"
        f"try: ceg(['estimate', '--algo', 'moe', '--flops', '1e24', '--evidence', {str(mine)!r}])\n"
        "finally: print('seconds', time.process_time() - start)\n"
    )
    # 5 s on an idle core; the guard leaves room for a busy one.
    assert float(_python(code).stdout.split()[-1]) < 15
