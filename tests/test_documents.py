"""What documents print is what the commands print today. `python -m tests.test_documents` brings them up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cegain.checks import coverage
from cegain.commands.ceg import ceg
from cegain.gain import prior
from cegain.gain.evidence import load
from cegain.tables.published_gains import published

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="installed without the repository")


def printed_blocks(document: Path) -> list[tuple[str, str]]:
    """(command, output) of every console block that starts with a `$` line."""
    blocks = re.findall(r"```console\n\$ (.+?)\n(.*?)```", document.read_text(), re.DOTALL)
    return [(command, output) for command, output in blocks]


def run(command: str) -> str:
    words = command.replace("ceg-estimate", "ceg estimate").split()
    assert words[0] == "ceg"
    finished = CliRunner().invoke(ceg, words[1:])
    assert finished.exit_code == 0, finished.output
    return finished.stdout


def same(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
_GAINS = {"published", "predicted", "value", "low", "high", "rival_low", "rival_high"}
SLOW = (ROOT / "estimator" / "data" / "README.md",)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_show_the_output_of_their_commands(document: Path) -> None:
    blocks = printed_blocks(document)
    assert blocks
    for command, output in blocks:
        assert same(run(command)) == same(output), command


def test_gains_in_the_prose_of_the_results_are_printed_by_commands() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    prose = re.sub(r"```console.*?```", "", text, flags=re.DOTALL)
    printed = " ".join(output for _, output in printed_blocks(ROOT / "docs" / "results.md")) + run("ceg paper")
    overview = json.loads(run("ceg ladder --json"))["gains"]
    gains = {entry["treatment"]: {r["rung_flops"]: r["ceg"] for r in entry["rungs"]} for entry in overview}
    products = [gains["layernorm"][rung] * gains["rope"][rung] for rung in (3e11, 3e12)]
    known = {*re.findall(r"\d+\.\d+", printed), *(f"{product:.1f}" for product in products)}
    quoted = re.findall(r"\b(\d+\.\d+)x", prose)
    assert len(quoted) > 20
    assert set(quoted) <= known


def test_readme_quotes_the_api_truly() -> None:
    from cegain import estimate

    answer = estimate("moe", flops=1e24)
    assert answer.median is not None
    assert answer.predictive is not None
    low, high = answer.predictive
    assert f"# {answer.median:.1f}, ({low:.1f}, {high:.1f})" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_data_readme_shows_the_coverage() -> None:
    (block,) = printed_blocks(ROOT / "estimator" / "data" / "README.md")
    assert block[0] == "ceg coverage"
    assert same(run(block[0])) == same(block[1])
    today = json.loads(run("ceg coverage --json"))
    stored = json.loads(coverage.COVERAGE_FILE.read_text())
    assert stored["unscored_studies"] == today["unscored_studies"]
    for old, new in zip((*stored["studies"], *stored["rows"]), (*today["studies"], *today["rows"]), strict=True):
        assert {key: value for key, value in old.items() if key not in _GAINS} == {
            key: value for key, value in new.items() if key not in _GAINS
        }
        for key in _GAINS & old.keys():
            assert old[key] == pytest.approx(new[key], rel=1e-3), key
    summary = today["summary"]["all"]
    share = f"{summary['votes']:.1f} of {summary['studies']} studies"
    assert share in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_frozen_settings_are_those_of_the_shipped_rows() -> None:
    stored = json.loads(prior.PRIOR_FILE.read_text())
    fitted = json.loads(json.dumps(prior.document(published(load()))))
    assert stored["evidence_sha256"] == fitted["evidence_sha256"]
    assert stored["spread"] == pytest.approx(fitted["spread"], rel=1e-3)
    for question, weights in fitted["scenario_weights"].items():
        assert stored["scenario_weights"][question] == pytest.approx(weights, abs=1e-3)


def test_frozen_settings_know_the_shipped_rows() -> None:
    stored = json.loads(prior.PRIOR_FILE.read_text())
    assert stored["evidence_sha256"] == published(load()).sha256, "run `ceg coverage --write`"


def bring_up_to_date() -> None:
    """Replace the output in every console block by what its command prints now."""
    for document in (*DOCUMENTS, *SLOW):
        text = document.read_text()
        for command, output in printed_blocks(document):
            text = text.replace(f"$ {command}\n{output}```", f"$ {command}\n{same(run(command))}\n```")
        document.write_text(text)


if __name__ == "__main__":
    bring_up_to_date()
