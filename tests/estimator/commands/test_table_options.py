"""The options that say what a table's columns are stand with every command that reads one."""

from pathlib import Path

import pytest

from tests.estimator.calls import Calls
from tests.estimator.run_tables.made_runs import Row, arm, write

FIT = ("fit", "{}", "--baseline", "base", "--variant", "new", "--at", "1e20")
PLOT = ("plot", "--runs", "{}", "--baseline", "base", "--variant", "new", "-o", "{}.svg")
BACKTEST = ("backtest", "{}", "--cut", "10", "--jobs", "1")
IMPORT = ("import", "{}")
COMMANDS = {"fit": FIT, "plot": PLOT, "backtest": BACKTEST, "import": IMPORT}


def rows(**names: str) -> list[Row]:
    """Two arms with columns of other names."""
    made = [*arm("base", 1.0), *arm("new", 1.5)]
    return [{names.get(name, name): cell for name, cell in row.items()} for row in made]


def call(command: str, path: Path, *options: str) -> str:
    """What a command prints that answers."""
    result = Calls().call(*(word.format(path) for word in COMMANDS[command]), *options)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_loss_column_is_named_everywhere(command: str, tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", rows(loss="quality"))
    usual = call(command, write(tmp_path / "usual.csv", rows()))
    for options in (("--loss-column", "quality"), ("--columns", "loss=quality")):
        assert call(command, path, *options).replace("runs", "usual").split() == usual.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_formulas_units_and_steps_everywhere(command: str, tmp_path: Path) -> None:
    made = [row | {"C": float(str(row["C"])) / 1e9, "it": 10} for row in rows(variant="kind")]
    path = write(tmp_path / "runs.csv", made)
    assert "C is near 6 N D" in Calls().refused(*(word.format(path) for word in COMMANDS[command]))
    call(command, path, "--columns", "C=C*1e9,variant=kind", "--unit", "nats", "--last", "--flops-convention", "6nd")


@pytest.mark.parametrize("command", COMMANDS)
def test_all_wrong_options_are_said_at_once(command: str, tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", rows())
    words = ("--unit", "bans", "--repeats", "often", "--flops-convention", "mine", "--columns", "q=1,C=N,C=D")
    said = Calls().refused(*(word.format(path) for word in COMMANDS[command]), *words)
    for option in ("--unit", "--repeats", "--flops-convention", "--columns: one of", "--columns: C is given once"):
        assert option in said


def test_options_of_tables_go_with_tables(tmp_path: Path) -> None:
    said = Calls().refused(
        "plot", "--algo", "moe", "--flops", "1e18:1e24", "--repeats", "sweep", "-o", tmp_path / "a.svg"
    )
    assert "--repeats: it goes with --runs" in said
