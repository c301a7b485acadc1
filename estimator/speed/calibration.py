"""The constants of the step-time model from a table of measured training throughput, and how well they predict.

Ten constants are fitted to ln(tokens per second per GPU) with a Cauchy loss, since some rows of any such table are off
for reasons that no model knows (a slow node, an allocator at its limit), and a log-normal prior each from counts,
data sheets and published kernel speeds. Errors are those of rows that a fit has not seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from cegain.common.arrays import Array
from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape
from cegain.shapes.sizes import GPT_VOCABULARY, shape_of
from cegain.speed import hardware
from cegain.speed.step_time import Calibration, Constants, parts_of
from cegain.speed.step_work import SHARDINGS, Plan, Work, problems, work
from cegain.tables import csv_file
from cegain.tables.problems import EvidenceError, Problem, refusal

PRIORS: Mapping[str, tuple[float, float, str]] = {
    "matmul": (0.95, 0.10, "a whole step against the best shape; assumed"),
    "attention": (0.40, 0.40, "Triton's flash kernel on an A100 is quoted at 0.3-0.5 of its matrix products"),
    "hopper_attention": (
        0.55, 0.15, "FlashAttention-2 reaches 225 TFLOP/s on an A100, 335 on an H100 (arXiv 2307.08691, section 4.1)"
    ),
    "softmax": (17.0, 0.30, "FlashAttention-2 forward on an H100: 299 TFLOP/s at head width 64, 335 at 128"),
    "elementwise": (1.0, 0.30, "the count itself"),
    "cross_entropy": (34.0, 0.20, "16-bit logits written, cast, log-softmax in fp32 and back: a count of unfused code"),
    "link": (0.80, 0.20, "all-gather reaches 235 of 300 GB/s on 8 A100, 367 of 450 on 8 H100 (Bekman, ml-engineering)"),
    "exposed": (0.30, 0.40, "assumed: communication kernels share the processors and the memory"),
    "hop": (3e-6, 0.50, "assumed: a few microseconds"),
    "jitter": (0.01, 0.70, "assumed"),
}  # fmt: skip
"""Median, sd of the logarithm, and where from."""
NOISE = 0.03
"""Width of the loss: rows within it count by their square. Assumed: repeats of one run differ by 1-3%."""

MPT_SIZES: Mapping[str, tuple[int, int, int]] = {
    "125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 12), "1b": (24, 2048, 16), "3b": (32, 2560, 20),
    "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56), "70b": (80, 8192, 64),
}  # fmt: skip
"""Layers, width and heads of the MPT models (MosaicML, llm-foundry, scripts/train/yamls/pretrain)."""
COLUMNS = (
    "model", "seq_len", "n_gpus", "gpu", "micro_batch", "grad_accum", "mp_mode", "sharding", "act_ckpt", "n_params",
    "tokens_per_s_per_gpu",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One measured run."""

    model: str
    shape: ModelShape
    plan: Plan
    count: Work
    measured: float
    """Tokens per second and device."""

    def predicted(self, constants: Constants) -> float:
        """Tokens per second and device that the model gives."""
        seconds = sum(parts_of(self.count, self.shape, self.plan, constants).values())
        return self.count.tokens * self.plan.accumulate / seconds


class Score(NamedTuple):
    """Errors of predictions: |predicted / measured - 1| at the median and the 90% point, and their mean with sign."""

    rows: int
    median: float
    p90: float
    bias: float


def read_table(path: str | Path) -> list[Row]:
    """Rows of a table with the columns COLUMNS, of MPT models.

    Raises:
        EvidenceError: no such file, a column that is missing, or rows that break rules: all of them, by line.
    """
    bad_rows: list[Problem] = []
    header, lines = csv_file.read(Path(path), csv_file.text_of(Path(path), "a table of speeds", COLUMNS), bad_rows)
    by_column = [(number, dict(zip(header, cells, strict=True))) for number, cells in lines]
    missing = [column for column in COLUMNS if not by_column or column not in header]
    if missing:
        remedy = f"Add {', '.join(missing)}, and a row at least."
        raise refusal(f"{path}, line 1", f"the columns {', '.join(COLUMNS)} are needed", "", remedy)
    rows = []
    for number, cells in by_column:
        try:
            rows.append(_row(cells))
        except ValueError as error:
            rule = "; ".join(str(error).splitlines())
            bad_rows.append(Problem(f"{path}, line {number}", rule, "", "Correct the row or leave it out."))
    if bad_rows:
        raise EvidenceError(bad_rows)
    return rows


def _row(line: Mapping[str, str]) -> Row:
    if line["model"] not in MPT_SIZES:
        raise ValueError(f"model must be one of {', '.join(MPT_SIZES)}, got {line['model']!r}")
    if line["sharding"].lower() not in SHARDINGS:
        raise ValueError(f"sharding must be one of {', '.join(SHARDINGS)}, got {line['sharding']!r}")
    shape = shape_of(*MPT_SIZES[line["model"]], GPT_VOCABULARY, int(line["seq_len"]))
    plan = Plan(
        device=hardware.find(line["gpu"]),
        devices=int(line["n_gpus"]),
        micro_batch=int(line["micro_batch"]),
        accumulate=int(line["grad_accum"]),
        sharding=SHARDINGS[line["sharding"].lower()],
        recompute=line["act_ckpt"] == "True",
        # Composer's PURE reduces gradients in 16 bits, DEFAULT in fp32
        gradient_bytes=2 if line["mp_mode"] == "PURE" else 4,
    )
    broken = list(problems(shape, plan))
    count = architecture.parameters(shape).total
    stated, measured = float(line["n_params"]), float(line["tokens_per_s_per_gpu"])
    if not abs(count / stated - 1) < 0.005:
        broken.append(f"n_params must be that of the MPT shape, {count}, got {stated:.0f}")
    if not measured > 0:
        broken.append(f"tokens_per_s_per_gpu must be above 0, got {measured}")
    if broken:
        raise ValueError("\n".join(broken))
    return Row(line["model"], shape, plan, work(shape, plan), measured)


def fit(rows: Sequence[Row]) -> Calibration:
    """Constants at the mode of their posterior, and its curvature there."""
    centre = np.array([PRIORS[name][0] for name in Constants._fields])
    spread = np.array([PRIORS[name][1] for name in Constants._fields])

    def residuals(z: Array) -> Array:
        constants = Constants(*(centre * np.exp(z)).tolist())
        off = np.array([math.log(row.predicted(constants) / row.measured) for row in rows]) / NOISE
        return np.concatenate([np.sign(off) * np.sqrt(np.log1p(off**2)), z / spread])

    solution = least_squares(residuals, np.zeros(len(centre)), method="lm")
    constants = Constants(*(centre * np.exp(solution.x)).tolist())
    jacobian = np.asarray(solution.jac)
    covariance = np.linalg.inv(jacobian.T @ jacobian)
    off = np.array([math.log(row.predicted(constants) / row.measured) for row in rows])
    return Calibration(constants, tuple(map(tuple, covariance.tolist())), float(np.sqrt(np.mean(off**2))))


def errors(rows: Sequence[Row], predicted: Sequence[float]) -> Array:
    """Relative errors, with sign."""
    return np.array([p / row.measured - 1 for p, row in zip(predicted, rows, strict=True)])


def score(residuals: Array) -> Score:
    """Summary of relative errors."""
    size = np.abs(residuals)
    return Score(len(size), float(np.median(size)), float(np.quantile(size, 0.9)), float(np.mean(residuals)))


Predict = Callable[[Sequence[Row], Sequence[Row]], list[float]]
"""Predictions for the second rows by what is learned from the first."""


def by_model(train: Sequence[Row], test: Sequence[Row]) -> list[float]:
    """The step-time model."""
    constants = fit(train).constants
    return [row.predicted(constants) for row in test]


def by_utilisation(train: Sequence[Row], test: Sequence[Row]) -> list[float]:
    """Constant hardware utilisation: the median of the device's rows, or of all where it has none."""

    def cost(row: Row) -> float:
        full = architecture.flops_per_token(row.shape, "full")
        return full * (4 / 3 if row.plan.recompute else 1) / row.plan.device.peak[row.plan.used_precision]

    def used(row: Row) -> float:
        same = [r.measured * cost(r) for r in train if r.plan.device == row.plan.device]
        return float(np.median(same or [r.measured * cost(r) for r in train]))

    return [used(row) / cost(row) for row in test]


def by_regression(train: Sequence[Row], test: Sequence[Row]) -> list[float]:
    """ln(tokens/s over the device's peak) linear in ln parameters, ln length, ln devices, recomputation and device."""
    devices = sorted({row.plan.device.name for row in train})[1:]

    def features(row: Row) -> list[float]:
        plan = row.plan
        n = architecture.parameters(row.shape).total
        own = [float(plan.device.name == name) for name in devices]
        return [1.0, math.log(n), math.log(row.shape.seq_len), math.log(plan.devices), float(plan.recompute), *own]

    def peak(row: Row) -> float:
        return row.plan.device.peak[row.plan.used_precision]

    x = np.array([features(row) for row in train])
    weights = np.linalg.lstsq(x, np.array([math.log(row.measured / peak(row)) for row in train]), rcond=None)[0]
    return [peak(row) * math.exp(float(np.dot(features(row), weights))) for row in test]


PREDICTORS: Mapping[str, Predict] = {
    "step-time model": by_model,
    "constant utilisation": by_utilisation,
    "log-linear regression": by_regression,
}


def leave_out(rows: Sequence[Row], key: Callable[[Row], Hashable], predict: Predict) -> Array:
    """Relative error of each row, predicted without any row of its group."""
    residuals = np.zeros(len(rows))
    for group in dict.fromkeys(key(row) for row in rows):
        test = [i for i, row in enumerate(rows) if key(row) == group]
        predicted = predict([row for row in rows if key(row) != group], [rows[i] for i in test])
        residuals[test] = errors([rows[i] for i in test], predicted)
    return residuals


def validate(rows: Sequence[Row]) -> dict[str, dict[str, Score]]:
    """Scores of the model and its rivals where they must extrapolate: by task, then predictor."""
    total = {row.model: architecture.parameters(row.shape).total for row in rows}
    sizes = sorted(total, key=lambda name: total[name])
    lengths = sorted({row.shape.seq_len for row in rows})
    scores = {
        task: {name: score(leave_out(rows, key, predict)) for name, predict in PREDICTORS.items()}
        for task, key in {
            "one size left out": lambda row: row.model,
            "one length left out": lambda row: row.shape.seq_len,
        }.items()
    }
    hidden: dict[str, Callable[[Row], bool]] = {
        f"smallest size, {sizes[0]}": lambda row: row.model == sizes[0],
        f"largest sizes, {' and '.join(sizes[-2:])}": lambda row: row.model in sizes[-2:],
        f"shortest, {lengths[0]}": lambda row: row.shape.seq_len == lengths[0],
        f"longest, {' and '.join(map(str, lengths[-2:]))}": lambda row: row.shape.seq_len in lengths[-2:],
        "64 GPUs and more from fewer": lambda row: row.plan.devices >= 64,
        "H100 from A100": lambda row: row.plan.device.generation == "hopper",
    }
    for task, is_hidden in hidden.items():
        test = [row for row in rows if is_hidden(row)]
        train = [row for row in rows if not is_hidden(row)]
        if test and train:
            scores[task] = {name: score(errors(test, predict(train, test))) for name, predict in PREDICTORS.items()}
    return scores


def calibrate(rows: Sequence[Row]) -> tuple[Calibration, dict[str, dict[str, Score]]]:
    """The calibration on all rows, its residual sd that of rows of sizes that a fit has not seen; and the scores."""
    fitted = fit(rows)
    residuals = np.log1p(leave_out(rows, lambda row: row.model, by_model))
    return fitted._replace(residual_sd=float(np.sqrt(np.mean(residuals**2)))), validate(rows)


def document(
    path: str | Path, rows: Sequence[Row], fitted: Calibration, scores: Mapping[str, Mapping[str, Score]]
) -> dict[str, Any]:
    """What `data/step_time.json` holds: constants with priors and errors, covariance, scores, the table's hash."""
    deviations = np.sqrt(np.diag(np.array(fitted.covariance)))
    constants = {
        name: {"value": float(f"{value:.6g}"), "log_sd": round(float(sd), 4)}
        | dict(zip(("prior", "prior_log_sd", "prior_source"), PRIORS[name], strict=True))
        for (name, value), sd in zip(fitted.constants._asdict().items(), deviations, strict=True)
    }
    return {
        "command": f"ceg steptime --calibrate {Path(path).name} --write",
        "table": {
            "rows": len(rows),
            "devices": sorted({row.plan.device.name for row in rows}),
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        },
        "constants": constants,
        "log_covariance": [[float(f"{x:.4g}") for x in row] for row in fitted.covariance],
        "residual_sd": round(fitted.residual_sd, 4),
        "errors": {
            task: {name: {k: round(v, 4) for k, v in s._asdict().items()} for name, s in predictors.items()}
            for task, predictors in scores.items()
        },
    }


def render(console: Any, document: Mapping[str, Any]) -> None:
    """Tables for a terminal of what `document` holds."""
    from rich.table import Table

    constants = Table(title=f"Constants from {document['table']['rows']} rows")
    for column in ("constant", "value", "sd of ln", "prior", "its sd", "prior from"):
        constants.add_column(column, justify="left" if column in ("constant", "prior from") else "right")
    for name, entry in document["constants"].items():
        constants.add_row(
            name, f"{entry['value']:.3g}", f"{entry['log_sd']:.2f}", f"{entry['prior']:.3g}",
            f"{entry['prior_log_sd']:.2f}", entry["prior_source"],
        )  # fmt: skip
    console.print(constants)
    title = "Error of tokens/s per GPU on rows that the fit has not seen: median, 90% point, mean with sign"
    errors = Table(title=title)
    errors.add_column("hidden")
    errors.add_column("rows", justify="right")
    for name in PREDICTORS:
        errors.add_column(name, justify="right")
    for task, predictors in document["errors"].items():
        scores = [f"{s['median']:.1%} {s['p90']:.1%} {s['bias']:+.1%}" for s in predictors.values()]
        errors.add_row(task, str(next(iter(predictors.values()))["rows"]), *scores)
    console.print(errors)
    console.print(f"sd of ln(time) that the constants do not explain: {document['residual_sd']:.3f}")
