"""`ceg report`: the file that it writes, and what it refuses."""

import base64
import gzip
import html.parser
import json
import re
from pathlib import Path

import pytest

from cegain.checks import backtest, backtest_scores, coverage
from cegain.common import verdict
from cegain.common.mixture import NORMAL_90
from cegain.explorer import explorer, sections
from cegain.gain import question
from cegain.tables.published_gains import BASES, COLUMNS, OPTIONAL_COLUMNS, OWN
from tests.estimator.calls import Calls
from tests.estimator.explorer.conftest import keep_few

REPORT = Calls("report")
MOST_BYTES = 8_000_000
ALERT = "<script>alert(1)</script>"
ROWS = (
    f"moe,ours,dense,{ALERT},1e21,reported,3.1,2.5,3.9,0.9,flop,measured,{ALERT} & </script>,<!-- <b>note</b>",
    "moe,ours,dense,our lab,1e22,reported,3.3,2.6,4.0,0.9,flop,measured,a source of our own,",
)


class Parser(html.parser.HTMLParser):
    """Elements of a page with their attributes, and the text of its scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data


def parsed(text: str) -> Parser:
    parser = Parser()
    parser.feed(text)
    return parser


def data_of(text: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def grids_of(text: str) -> dict:
    (found,) = re.findall(r'<script type="text/plain" id="grids">(.*?)</script>', text, re.DOTALL)
    return json.loads(gzip.decompress(base64.b64decode(found)))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evidence") / "my_gains.csv"
    path.write_text("\n".join([",".join(c for c in COLUMNS if c not in OPTIONAL_COLUMNS), *ROWS]) + "\n")
    return path


@pytest.fixture(scope="module")
def written(table: Path) -> str:
    """A page with a user's evidence beside ours."""
    path = table.parent / "ceg.html"
    words = ("-o", path, "--evidence", table, "--algo", "rope,MoE", "--flops", "1e25", "--with", "moe+muon")
    with pytest.MonkeyPatch.context() as patch:
        keep_few(patch)
        result = REPORT.call(*words)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"wrote {re.escape(str(path))} \(\d\.\d MB, \d+\.\d s\)\n", result.stdout)
    assert re.search(r"(\d+) of \1 combinations, 0 s left", result.stderr)
    assert path.stat().st_size < MOST_BYTES
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing(written: str) -> None:
    page = parsed(written)
    links = [(tag, name, value) for tag, attributes in page.elements for name, value in attributes.items()
             if name in ("src", "href", "action", "srcset", "data", "poster")]  # fmt: skip
    assert links
    assert [link for link in links if not str(link[2]).startswith(("#", "data:,"))] == []
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "@import" not in (explorer.FOLDER / "page.css").read_text()
    assert "url(" not in (explorer.FOLDER / "page.css").read_text()


def test_every_script_of_the_page_is_ours_plotlys_or_data(written: str) -> None:
    page = parsed(written)
    kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert kinds == ["application/json", "text/plain", "text/plain", *[None] * len(explorer.SCRIPTS)]
    own = {path.name for path in explorer.SCRIPT_FOLDER.glob("*.js")}
    assert own == set(explorer.SCRIPTS)


def test_evidence_cannot_leave_its_script(written: str) -> None:
    assert ALERT not in written
    rows = data_of(written)["sections"]["evidence"]["rows"]
    (mine,) = [row for row in rows if row["study"] == ALERT]
    assert mine["source"] == f"{ALERT} & </script>"
    assert mine["note"] == "<!-- <b>note</b>"


def test_what_is_asked_for_stands_in_the_page(written: str, table: Path) -> None:
    data = data_of(written)
    assert data["schema"] == "ceg.report"
    assert data["page"]["start"] | {"algorithms": ["moe", "rope"], "flops": 1e25} == data["page"]["start"]
    assert data["about"]["evidence"] == [table.name]
    assert str(table.parent) not in written  # whoever gets the page need not know where it was made
    level = next(
        q for q in data["sections"]["evidence"]["questions"] if (q["algorithm"], q["currency"]) == ("moe", "flop")
    )
    assert {"moe+rope", "moe+muon"} < grids_of(written)["stacks"].keys()
    studies = {data["sections"]["evidence"]["rows"][point["row"]]["study"] for point in level["points"]}
    assert {"our lab", ALERT} < studies


@pytest.mark.usefixtures("few")
def test_only_evidence_leaves_ours_out(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.html"
    assert REPORT.call("-o", path, "--evidence", table, "--only-evidence").exit_code == 0
    data = data_of(path.read_text(encoding="utf-8"))
    assert {row["study"] for row in data["sections"]["evidence"]["rows"]} == {ALERT, "our lab"}
    assert data["about"]["only_evidence"]


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    words = ("--algo", "moee,moe,moe", "--flops", "1e30", "--with", "moe+mopa", "--only-evidence")
    said = REPORT.refused("-o", tmp_path / "ceg.pdf", *words)
    for part in (
        "--output: a name that ends in .html, .htm is needed",
        "--algo: The algorithm must be a name or alias in the registry, got 'moee'. Did you mean moe?",
        "--algo: an algorithm stands once (found moe twice). Remove one.",
        "--with: The algorithm must be a name or alias in the registry, got 'mopa'.",
        "--flops: 1e+15 to 1e+28 can be shown (found 1e+30). Try 1e24.",
        "--only-evidence: leaves no evidence without --evidence PATH. Add a table.",
    ):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_bad_evidence_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("algorithm\nmoe\n")
    assert "bad.csv" in REPORT.refused("-o", tmp_path / "ceg.html", "--evidence", bad)


@pytest.mark.usefixtures("few")
def test_without_plotly_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "LIBRARY", "plotly_that_is_not_there")
    said = REPORT.refused("-o", tmp_path / "ceg.html")
    assert "plotly.js is installed with the package plotly (found none). Try: pip install plotly." in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"x = '</SCRIPT>'", "plotly.js holds no </script and no <!-- (found </SCRIPT in "),
        (b"x = '<!--'", "plotly.js holds no </script and no <!-- (found <!-- in "),
        (b"\xff\xfe", "plotly.js can be read (found "),
    ],
)
def test_a_plotly_that_cannot_go_into_a_page_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, found: str
) -> None:
    package = tmp_path / "odd" / "odd_plotly"
    (package / "package_data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "package_data" / "plotly.min.js").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "odd")
    monkeypatch.setattr(explorer, "LIBRARY", package.name)
    said = REPORT.refused("-o", tmp_path / "ceg.html")
    assert found in said
    assert "Try: pip install --force-reinstall plotly." in said
    assert not (tmp_path / "ceg.html").exists()


def test_our_scripts_can_go_into_a_page() -> None:
    assert [name for name in explorer.SCRIPTS if explorer.ENDS_SCRIPT.search(script(name))] == []


STORED = ("coverage", "COVERAGE_FILE"), ("backtest", "SCORES")
BROKEN = (
    '{"schema": ',
    "[]",
    "7",
    '{"schema": "another"}',
    '{"schema": "ceg.coverage"}',
    '{"schema": "ceg.backtest_scores"}',
)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("content", [*BROKEN, '{"schema": "ceg.backtest_scores", "scores": [{"tables": []}]}', None])
@pytest.mark.parametrize(("kind", "name"), STORED)
def test_stored_results_that_are_missing_or_broken_are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, content: str | None
) -> None:
    stored = tmp_path / f"{kind}.json"
    if content is not None:
        stored.write_text(content)
    monkeypatch.setattr({"coverage": coverage, "backtest": backtest_scores}[kind], name, stored)
    target = tmp_path / "picture.svg"
    said = Calls("plot").refused(f"--{kind}", "-o", target)
    if content is None and kind == "backtest":  # none yet, which a page may lack and a picture may not
        assert "points are stored (found none). Run `ceg backtest RUNS.csv --scores` first." in said
    else:
        assert f"{stored}: " in said
        in_page = REPORT.refused("-o", tmp_path / "ceg.html")
        assert f"ceg report: {stored}: " in in_page
        assert "(found " in in_page
    assert not target.exists()
    assert not (tmp_path / "ceg.html").exists()


def script(name: str) -> str:
    return (explorer.SCRIPT_FOLDER / name).read_text(encoding="utf-8")


def keys(name: str, table: str) -> list[str]:
    """Keys of an object literal of a script; its values are strings, or objects without objects in them."""
    (literal,) = re.findall(rf"const {table} = \{{(.*?)\}};\n", script(name), re.DOTALL)
    return re.findall(r"(\w+):", re.sub(r'"[^"]*"|\{[^{}]*\}', "", literal))


def test_what_the_scripts_call_by_name_is_what_python_calls_so() -> None:
    assert set(keys("chart.js", "KINDS")) == {OWN, *BASES}
    assert keys("trust.js", "METHODS") == list(backtest.METHODS)
    assert keys("sections.js", "USES") == [*sections.USES, "combination"]
    assert keys("answer.js", "STATUS") == list(verdict.STATUSES)
    assert keys("words.js", "MONEY") == list(question.CURRENCIES)
    assert {currency for currency in question.CURRENCIES if f"      {currency}: [" in script("words.js")} == {
        *question.CURRENCIES
    } - {"flop"}


def test_no_script_repeats_a_number_that_python_has() -> None:
    numbers = [(n, float(text)) for n in explorer.SCRIPTS for text in re.findall(r"\d+\.\d{2,}", script(n))]
    assert numbers
    assert [(n, value) for n, value in numbers if value == pytest.approx(NORMAL_90, abs=1e-3)] == []


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "a & b", "\u2028\u2029", 'quote " and \\ slash', "é"])
def test_escaped_json_is_the_same_json(text: str) -> None:
    written = explorer.escaped({"key": text})
    assert json.loads(written) == {"key": text}
    assert not re.search("[<>&\u2028\u2029]", written)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        explorer.escaped({"key": float("nan")})


def test_marks_on_the_scale_have_sources() -> None:
    page = explorer.page(["moe"], 1e24)
    assert [run["name"] for run in page["runs"]] == ["GPT-3 175B", "Llama 2 70B", "DeepSeek-V3", "Llama 3.1 405B"]
    assert all("arXiv" in run["source"] for run in page["runs"])
    assert [t["flops"] for t in page["thresholds"]] == [1e25, 1e26]
    known = {a["name"] for a in page["algorithms"]}
    assert all(known.issuperset(preset["algorithms"]) for preset in page["presets"])
