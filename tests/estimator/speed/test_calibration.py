"""Calibration: known constants come back, hidden rows are predicted, bad tables are refused, what ships is whole."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cegain.shapes import architecture
from cegain.shapes.sizes import GPT_VOCABULARY, shape_of
from cegain.speed import calibration, step_time
from cegain.speed.calibration import COLUMNS, MPT_SIZES
from cegain.speed.step_time import Constants
from cegain.tables.problems import EvidenceError

TRUTH = Constants(
    matmul=0.85, attention=0.55, hopper_attention=0.45, softmax=20.0, elementwise=1.6, cross_entropy=40.0, link=0.7,
    exposed=0.5, hop=5e-6, jitter=0.02,
)  # fmt: skip


def lines(noise: float = 0.0) -> list[dict[str, Any]]:
    """Made-up runs: four sizes at three lengths, more GPUs for larger ones, with times that TRUTH gives."""
    rng, found = np.random.default_rng(0), []
    for size, name in list(enumerate(MPT_SIZES))[:8:2]:
        for seq_len in (512, 2048, 8192):
            for gpu, devices in (("a100_80gb", 8 if size < 5 else 64), ("h100_80gb", 16), ("a100_80gb", 128)):
                shape = shape_of(*MPT_SIZES[name], GPT_VOCABULARY, seq_len)
                found.append(
                    {
                        "model": name, "seq_len": seq_len, "n_gpus": devices, "gpu": gpu, "grad_accum": 2,
                        "micro_batch": 8192 // seq_len, "mp_mode": "PURE", "sharding": "FULL_SHARD",
                        "act_ckpt": str(size > 3), "n_params": architecture.parameters(shape).total,
                        "tokens_per_s_per_gpu": 1.0,
                    }
                )  # fmt: skip
    rows = [calibration._row({k: str(v) for k, v in line.items()}) for line in found]
    for line, row in zip(found, rows, strict=True):
        line["tokens_per_s_per_gpu"] = row.predicted(TRUTH) * math.exp(noise * rng.standard_normal())
    return found


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_known_constants_come_back(tmp_path: Path) -> None:
    rows = calibration.read_table(table(tmp_path / "t.csv", lines(noise=0.003)))
    fitted = calibration.fit(rows)
    deviations = np.sqrt(np.diag(np.array(fitted.covariance)))
    for name, sd in zip(Constants._fields, deviations, strict=True):
        off = abs(math.log(getattr(fitted.constants, name) / getattr(TRUTH, name)))
        assert off < max(3 * sd, 0.02), name
    # the rows tell the main ones, whatever the prior
    for name in ("matmul", "attention", "hopper_attention"):
        assert getattr(fitted.constants, name) == pytest.approx(getattr(TRUTH, name), rel=0.08)
    assert fitted.residual_sd < 0.01
    assert calibration.fit(rows) == fitted


def test_one_broken_run_does_not_bend_the_fit(tmp_path: Path) -> None:
    found = lines()
    clean = calibration.fit(calibration.read_table(table(tmp_path / "a.csv", found)))
    found[10]["tokens_per_s_per_gpu"] *= 0.5
    bent = calibration.fit(calibration.read_table(table(tmp_path / "b.csv", found)))
    assert np.abs(np.log(np.array(bent.constants) / np.array(clean.constants)))[:2].max() < 0.01


def test_the_model_beats_its_rivals_on_rows_it_has_not_seen(tmp_path: Path) -> None:
    rows = calibration.read_table(table(tmp_path / "t.csv", lines(noise=0.01)))
    for key in (lambda r: r.model, lambda r: r.shape.seq_len):
        scores = {n: calibration.score(calibration.leave_out(rows, key, p)) for n, p in RIVALS.items()}
        model = scores.pop("step-time model")
        assert model.rows == len(rows)
        assert model.median < 0.03
        assert all(model.median < rival.median / 2 for rival in scores.values())


RIVALS = calibration.PREDICTORS


def test_hidden_rows_are_hidden() -> None:
    rows = [calibration._row({k: str(v) for k, v in line.items()}) for line in lines()[:12]]
    seen: list[set[str]] = []

    def spy(train: Any, test: Any) -> list[float]:
        seen.append({r.model for r in train} & {r.model for r in test})
        return [2 * row.measured for row in test]

    off = calibration.leave_out(rows, lambda r: r.model, spy)
    assert seen == [set(), set()]
    assert off == pytest.approx(np.ones(12))


def test_a_document_holds_the_calibration(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", lines(noise=0.01)[::2])
    rows = calibration.read_table(path)
    fitted, scores = calibration.calibrate(rows)
    document = json.loads(json.dumps(calibration.document(path, rows, fitted, scores)))
    again = step_time.calibration_of(document)
    assert again.constants == pytest.approx(fitted.constants, rel=1e-4)
    assert np.array(again.covariance) == pytest.approx(np.array(fitted.covariance), rel=1e-2)
    assert document["command"] == "ceg steptime --calibrate t.csv --write"
    assert document["table"]["rows"] == len(rows)
    assert "H100 from A100" in document["errors"]


def test_what_ships_is_whole_and_meets_its_bars() -> None:
    document = json.loads(step_time.CONSTANTS_FILE.read_text())
    assert set(document["constants"]) == set(Constants._fields) == set(calibration.PRIORS)
    for task in ("one size left out", "one length left out"):
        scores = document["errors"][task]
        assert scores["step-time model"]["median"] <= 0.04
        assert scores["step-time model"]["p90"] <= 0.13
    for scores in document["errors"].values():
        for rival in ("constant utilisation", "log-linear regression"):
            assert scores["step-time model"]["median"] < scores[rival]["median"]
    covariance = np.array(document["log_covariance"])
    assert covariance == pytest.approx(covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "8b"}, "line 3: model must be one of 125m, .*got '8b'"),
        ({"gpu": "abacus"}, "line 3: device must be one of v100"),
        ({"sharding": "HALF"}, "line 3: sharding must be one of"),
        ({"n_params": 1e9}, "line 3: n_params must be that of the MPT shape"),
        ({"tokens_per_s_per_gpu": 0}, "line 3: tokens_per_s_per_gpu must be above 0"),
        ({"micro_batch": 4096}, "line 3: the model must fit"),
        ({"seq_len": "long"}, "line 3: invalid literal"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    found = lines()[:2]
    found[1] |= change
    with pytest.raises(EvidenceError, match=words):
        calibration.read_table(table(tmp_path / "t.csv", found))


def test_all_bad_rows_at_once_and_no_table(tmp_path: Path) -> None:
    found = lines()[:3]
    found[0]["model"], found[2]["gpu"] = "8b", "abacus"
    with pytest.raises(EvidenceError) as refusal:
        calibration.read_table(table(tmp_path / "t.csv", found))
    assert len(refusal.value.problems) == 2
    with pytest.raises(EvidenceError, match="the file can be read"):
        calibration.read_table(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("model,seq_len\n")
    with pytest.raises(EvidenceError, match=r"the columns model, seq_len, n_gpus.* are needed"):
        calibration.read_table(tmp_path / "empty.csv")
