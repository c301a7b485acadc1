"""Algorithms that the registry does not have: those of a table's rows, and those of a folder."""

import re
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from cegain import algorithms, estimate
from cegain.gain import own_algorithms
from cegain.gain.question import QuestionError
from cegain.tables.problems import EvidenceError

from .calls import Calls

ESTIMATE, SHOW, LIST, CLASSIFY, PLOT = (Calls(word) for word in ("estimate", "show", "list", "classify", "plot"))
REPORT, SCENARIO = Calls("report"), Calls("scenario")
TABLE = "algorithm,baseline,flops,gain\nMy-Trick,plain,1e20,1.5\nmy_trick,plain,1e21,1.6\nmy_trick,other,1e21,3\n"
FILE = """
from cegain.algorithms import Algorithm

ALGORITHM = Algorithm(
    title="Their trick", paper="Doe et al. 2026", summary="Does a thing.", replaces=("dense",),
    paper_class="not_studied", kind="sparsity", costs="as a mixture",
    arm={"feed_forward": "moe", "expert_activation": "swiglu"},
)
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "registry"
    path.mkdir()
    (path / "their_trick.py").write_text(FILE)
    (path / "_notes.py").write_text("raise SystemExit")
    return path


@pytest.fixture
def rows_of_theirs(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.csv"
    path.write_text("algorithm,flops,gain\ntheir trick,1e20,1.5\ntheir_trick,1e21,1.6\n")
    return path


class TestOfATable:
    def test_it_is_answered_from_its_rows_against_what_most_of_them_name(self, table: Path) -> None:
        document = ESTIMATE.answer("--algo", "my trick", "--flops", "1e22", "--evidence", table)
        assert document["algorithms"] == ["my_trick"]
        assert document["baselines"] == ["plain"]
        (one,) = document["estimates"]
        assert one["status"] == "ok"
        assert 1.3 < one["ceg_median"] < 1.9
        assert any("my_trick is not in the registry" in note and "2 of them" in note for note in one["notes"])

    def test_another_baseline_of_its_rows_can_be_asked_for(self, table: Path) -> None:
        words = ("--algo", "my_trick", "--flops", "1e22", "--evidence", table, "--baseline")
        assert ESTIMATE.answer(*words, "other")["estimates"][0]["ceg_median"] > 2
        assert "my_trick can be compared with" in ESTIMATE.refused(*words, "third")

    def test_scatter_is_that_of_algorithms_in_general(self) -> None:
        from cegain.gain import prior

        entry = own_algorithms.of_rows("my_trick", own_algorithms.Counter(["plain"]))
        with algorithms.beside({"my_trick": entry}):
            weights = prior.scenario_weights("my_trick", "plain", "flop")
        assert weights.tolist() == prior.prior_weights().tolist()

    def test_a_slip_of_the_pen_in_a_small_table_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.csv"
        path.write_text("algorithm,flops,gain\nmuonn,1e20,1.5\n")
        (one,) = ESTIMATE.answer("--algo", "moe", "--flops", "1e22", "--evidence", path)["estimates"]
        assert any("muonn is not in the registry (did you mean muon?)" in note for note in one["notes"])

    def test_without_a_table_the_remedy_names_one(self, table: Path) -> None:
        said = ESTIMATE.refused("--algo", "moee", "--flops", "1e22")
        assert "Did you mean moe?" in said
        assert "--evidence TABLE" in said
        said = ESTIMATE.refused("--algo", "my_trik", "--flops", "1e22", "--evidence", table)
        assert "Did you mean my_trick?" in said

    def test_no_shape_no_speed(self, table: Path) -> None:
        words = ("--algo", "my_trick", "--flops", "1e22", "--evidence", table, "--currency")
        for currency in ("time", "usd", "decode"):
            (one,) = ESTIMATE.answer(*words, currency)["estimates"]
            assert one["status"] == "no_evidence"
            assert "my_trick cannot be timed" in one["reason"]

    def test_every_command_on_evidence_knows_it(self, table: Path, tmp_path: Path) -> None:
        words = ("--evidence", table)
        assert "my_trick" in [line["name"] for line in LIST.answer(*words)["algorithms"]]
        assert len(SHOW.answer("my_trick", *words)["rows"]) == 3
        assert "my_trick" in [v["algorithm"] for v in CLASSIFY.answer(*words)["algorithms"]]
        assert SCENARIO.call("--freeze", "1e26", "--pace", "registry", *words).exit_code == 0
        picture = tmp_path / "x.svg"
        done = PLOT.call("--algo", "my_trick+rope,muon", "--flops", "1e18:1e22", *words, "-o", picture)
        assert done.exit_code == 0, done.output
        assert "my_trick" in picture.read_text()

    def test_a_stack_holds_it(self, table: Path) -> None:
        (one,) = ESTIMATE.answer("--algo", "my_trick,rope", "--flops", "1e22", "--evidence", table)["estimates"]
        assert one["status"] == "ok"

    def test_in_a_full_table_a_name_like_a_registered_one_must_be_asked_about(self, tmp_path: Path) -> None:
        path = tmp_path / "full.csv"
        path.write_text(
            "algorithm,treatment,baseline,study,flops,flops_convention,ceg,low,high,interval,currency,basis,source,note\n"
            "muon2,t,adamw,s,1e20,useful,1.5,,,,flop,measured,x,\n"
        )
        said = ESTIMATE.refused("--algo", "moe", "--flops", "1e22", "--evidence", path)
        assert "Did you mean muon?" in said
        document = ESTIMATE.answer("--algo", "muon2", "--flops", "1e22", "--evidence", path)
        assert document["baselines"] == ["adamw"]

    def test_a_table_without_names_stands_for_one_algorithm_of_a_picture_only(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.csv"
        path.write_text("flops,gain\n1e20,1.5\n")
        words = ("--flops", "1e18:1e22", "--evidence", path, "-o", tmp_path / "x.svg", "--algo")
        assert PLOT.call(*words, "my_trick").exit_code == 0
        assert "Add a column algorithm" in PLOT.refused(*words, "moe,rope")


class TestOfAFolder:
    def test_it_is_an_algorithm_like_any_other(self, folder: Path, rows_of_theirs: Path) -> None:
        words = ("--algo", "their-trick", "--flops", "1e22", "--evidence", rows_of_theirs, "--registry", folder)
        document = ESTIMATE.answer(*words)
        assert document["baselines"] == ["dense"]
        assert not any("not in the registry" in note for note in document["estimates"][0]["notes"])
        (one,) = ESTIMATE.answer(*words, "--currency", "time")["estimates"]
        assert one["status"] == "ok"
        assert "Their trick" in ESTIMATE.call(*words).stdout

    def test_every_command_takes_it(self, folder: Path) -> None:
        words = ("--registry", folder)
        assert "their_trick" in [line["name"] for line in LIST.answer(*words)["algorithms"]]
        assert SHOW.answer("Their Trick", *words)["algorithm"] == "their_trick"
        assert "their_trick" in [v["algorithm"] for v in CLASSIFY.answer(*words)["algorithms"]]
        assert "goes without --registry" in PLOT.refused("--kernels", "flash", *words, "-o", "x.svg")
        assert "--registry" in REPORT.call("--help").stdout

    def test_nothing_of_it_stays(self, folder: Path, rows_of_theirs: Path) -> None:
        before = algorithms.names()
        LIST.answer("--registry", folder)
        answer = estimate("their_trick", 1e22, registry=folder, evidence=rows_of_theirs)
        assert algorithms.names() == before
        assert "their_trick" not in before
        assert not list(folder.glob("__pycache__"))
        assert str(answer).startswith("CEG of Their trick, against dense")
        assert answer.to_dict()["algorithms"] == ["their_trick"]
        assert "Their trick" in answer.plot()._repr_svg_()
        with pytest.raises(QuestionError, match="their_trick"):
            estimate("their_trick", 1e22)

    def test_all_problems_of_all_files_at_once(self, folder: Path) -> None:
        broken = {
            "a": "x = (",
            "b": "from cegain.algorithms import Algorithm\nALGORITHM = Algorithm(title='x')",
            "c": "y = 1",
            "d": "raise SystemExit(3)",
            "e": FILE.replace('("dense",)', '"dense"'),
            "f": FILE.replace("feed_forward", "feed_fwd"),
            "g": FILE.replace("sparsity", "spars"),
            "moe": FILE.replace("Their", "Another"),
            "h": FILE.replace("Their trick", "Muon"),
            "i": FILE.replace("arm=", "saves_only=True, arm="),
            "Big-name": FILE.replace("Their", "Big"),
            "z": FILE.replace("Their trick", "J").replace("kind=", 'aliases=("their_trick",), kind='),
        }
        for name, text in broken.items():
            (folder / f"{name}.py").write_text(text)
        said = ESTIMATE.refused("--algo", "moe", "--flops", "1e22", "--registry", folder)
        for name in broken:
            assert f"{folder / name}.py" in said, name
        for words in (
            "SyntaxError", "'paper', 'summary', 'replaces', and 'kind'", "constant ALGORITHM", "SystemExit: 3",
            'Write ("dense",)', "did you mean 'feed_forward'?", "normalisation, position", "which is moe's",
            "which is muon's",
            "saves FLOP", "small letters", "which is their_trick's",
        ):  # fmt: skip
            assert words in said, words
        assert f"{folder / 'their_trick'}.py" not in said
        with pytest.raises(QuestionError) as caught:
            estimate("moee", 1e22, registry=folder)
        assert any("moee" in problem for problem in caught.value.problems)
        assert any("SyntaxError" in problem for problem in caught.value.problems)

    @pytest.mark.parametrize("name", ["none", "", "mine.csv", "x" * 5000, "a\0b"])
    def test_a_folder_that_is_none(self, tmp_path: Path, table: Path, name: str) -> None:
        with pytest.raises(EvidenceError, match="registry"):
            own_algorithms.of_folder(str(tmp_path / name) if name else tmp_path / "none")
        (tmp_path / "empty").mkdir()
        with pytest.raises(EvidenceError, match=r"a file NAME\.py per algorithm"):
            own_algorithms.of_folder(tmp_path / "empty")

    def test_the_page_shows_one(self, tmp_path: Path) -> None:
        page = Path(__file__).parents[2] / "docs" / "python.md"
        (block,) = re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        (tmp_path / "my_trick.py").write_text(block)
        assert own_algorithms.of_folder(tmp_path)["my_trick"].replaces == ("dense",)
        assert len(block.splitlines()) < 10  # what is asked of anybody is little

    def test_the_option_is_given_once(self, folder: Path) -> None:
        assert "given once" in LIST.refused("--registry", folder, "--registry", folder)


def test_one_thread_does_not_see_what_another_adds() -> None:
    entry = own_algorithms.of_rows("my_trick", own_algorithms.Counter(["plain"]))
    seen: list[Mapping[str, object]] = []
    with algorithms.beside({"my_trick": entry}):
        assert algorithms.find("My-Trick") == "my_trick"
        thread = threading.Thread(target=lambda: seen.append(algorithms.own()))
        thread.start()
        thread.join()
    assert seen == [{}]
    assert algorithms.find("my_trick") is None
