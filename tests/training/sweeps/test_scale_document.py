"""docs/scale.md: its costs are what the command prints, and its errors are those of our own runs."""

import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from cegain.speed import measured_device
from cegain.tables import training_runs
from cegain.training.run import config
from cegain.training.sweeps.ablate import Job
from cegain.training.sweeps.pace import Modelled
from cegain.training.text import data
from cegain.training.text.prepare import prepare
from tests.test_documents import ROOT, printed_blocks, run, same
from tests.training.conftest import made_up

DOCUMENT = ROOT / "docs" / "scale.md"
pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="installed without the repository")


def test_the_cost_of_a_ladder_is_what_its_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOP and shapes follow from a corpus's name and vocabulary: a small one stands in for `mini`."""
    monkeypatch.setenv("CEG_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    prepare(data.corpus_folder("mini", "byte"), "mini", made_up())
    ((command, output),) = printed_blocks(DOCUMENT)
    assert same(run(command)) == same(output)


def test_what_our_own_runs_took_over_the_model() -> None:
    """The document's sentences: medians by stack and budget."""
    pace = Modelled(measured_device.find("cpu"))
    ratios: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in training_runs.load(training_runs.TRAINING_RUNS):
        if row.status == "finished":
            made = config.fill_in(
                "mini", row.tokenizer, row.vocab, stack=row.stack, arm=row.arm, flops=row.rung_flops,
                sizes={"seq_len": row.seq_len},
            )  # fmt: skip
            ratios[row.stack, row.rung_flops].append(row.wall_s / pace.seconds(Job(made, row.role)))
    medians = {key: statistics.median(found) for key, found in ratios.items()}
    assert len(medians) > 6
    for (stack, rung), found in medians.items():
        bare = (1, 1.5) if rung >= 3e12 else (1.3, 2) if rung >= 1e12 else (1.5, 5)
        low, high = bare if stack == "bare" else (2.5, 6)
        assert low < found < high, (stack, rung)
