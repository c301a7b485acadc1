"""The source paper's Tables II and III as typed columns, and the arithmetic between their currencies.

Paper: Foley, Guo, Josephson, Qu, Sanderson (2025), "LLM-e Guess: Can LLMs Capabilities Advance Without
Hardware Progress?", arXiv 2505.04075v1; code: github.com/jcksanderson/llm-algorithmic-progress.

Table III ablates a small nanoGPT. Its CEG is a ratio of iterations x MFU at equal loss,

    CEG = (I_b * MFU_b) / (I * MFU),

so the ratio of iterations is CEG * MFU / MFU_b, and the ratio of times at equal loss is that times t_b / t,
where t is the time of a run of fixed length. Data: `data/paper_table2.csv`, `data/paper_table3.csv`, whose
columns up to `ceg_final` are printed, and whose last three are from results.ipynb in the repository's first
commit, 0685070, which computed the printed ones.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
GAINS = ("25k", "50k", "final")
"""Columns of gains in Table III."""
CHECKPOINTS = {"25k": 50, "50k": 100}
"""Checkpoint -> its number in evaluations, one every 500 iterations (config/train_gpt2_compact.py)."""

PAPER_PEAK = 1979e12
"""FLOP/s by which the paper's MFU divides (notebook, last cell: `MFU_vals * 312 / 1979`)."""
H100_DENSE_PEAK = 989.5e12
"""BF16 FLOP/s of the H100 SXM without 2:4 sparsity (NVIDIA H100 data sheet: 1,979 is "with sparsity")."""
A100_PEAK = 312e12
"""BF16 FLOP/s by which the code's `estimate_mfu` divides (nanoGPT model.py; NVIDIA A100 data sheet)."""
ABSTRACT_CEG = 3.5

LAYERS, D_MODEL, HEADS, SEQ_LEN, VOCAB = 8, 512, 8, 512, 50304
"""The ablated model (config/train_gpt2_compact.py at commit 0685070; vocabulary padded by train.py)."""
BATCH_TOKENS, ITERATIONS = 64 * 8 * SEQ_LEN, 50_000

CHILD_PARAMS_RATIO = 277 / 95
"""EnWik8 at 0.99 bits per byte: Transformer-XL 277M, Sparse Transformer 95M (arXiv 1904.10509, table 1)."""
CHILD_TIME_RATIO = 1.31 / 0.55
"""EnWik8, time per iteration: dense 1.31, fixed pattern 0.55 (arXiv 1904.10509, table 2)."""


@dataclass(frozen=True)
class Arm:
    """One row of Table III. Times in minutes, MFU in percent, gains keyed by `25k`, `50k`, `final`."""

    key: str
    label: str
    algorithm: str
    time_min: float
    mfu_percent: float
    ceg: Mapping[str, float]
    mfu_of_a100_percent: float
    reached: Mapping[str, int]
    """Evaluation at which the arm first reached the baseline's loss at the checkpoint (notebook)."""


@dataclass(frozen=True)
class Gain:
    """One gain of Table III in three currencies, all at equal loss against the baseline."""

    ceg: float
    """As printed: iterations x MFU."""
    iterations: float
    """Ratio of iterations, which is the ratio of FLOP where FLOP per iteration are equal."""
    time: float
    """Ratio of times on the paper's device."""


@dataclass(frozen=True)
class Claim:
    """One row of Table II: a gain that the paper takes from the literature (NaN: not given)."""

    label: str
    algorithm: str
    ceg: float
    low: float
    high: float
    currency: str
    note: str


@dataclass(frozen=True)
class Run:
    """A frontier training run as published."""

    label: str
    gpu_hours: float
    device: str
    active_params: float
    tokens: float
    flops: float
    source: str

    @property
    def flops_per_gpu_hour(self) -> float:
        """Achieved FLOP per GPU-hour."""
        return self.flops / self.gpu_hours

    @property
    def flops_per_second(self) -> float:
        """Achieved FLOP/s of one GPU."""
        return self.flops_per_gpu_hour / 3600


DEEPSEEK_V3 = Run(
    "DeepSeek-V3", gpu_hours=2.788e6, device="H800", active_params=37e9, tokens=14.8e12, flops=3.3e24,
    source="arXiv 2412.19437, table 1 (hours); FLOP as 6 N D",
)  # fmt: skip
LLAMA_405B = Run(
    "Llama 3.1 405B", gpu_hours=30.84e6, device="H100", active_params=405e9, tokens=15.6e12, flops=3.8e25,
    source="arXiv 2407.21783 (FLOP, tokens); Llama 3.1 model card (hours)",
)  # fmt: skip


class Table3:
    """Table III: the baseline and the five arms, in the printed order."""

    def __init__(self, arms: Mapping[str, Arm]) -> None:
        self.arms = dict(arms)
        self.baseline = self.arms["baseline"]
        self.treated = tuple(arm for arm in self.arms.values() if arm is not self.baseline)

    def gain(self, arm: str, checkpoint: str) -> Gain | None:
        """Gain of an arm in the three currencies; None where the paper prints none."""
        row, base = self.arms[arm], self.baseline
        if checkpoint not in row.ceg:
            return None
        ceg = row.ceg[checkpoint]
        iterations = ceg * row.mfu_percent / base.mfu_percent
        return Gain(ceg, iterations, iterations * base.time_min / row.time_min)

    def require(self, arm: str, checkpoint: str) -> Gain:
        """As `gain`, for an entry which the table has.

        Raises:
            KeyError: the paper prints no gain there.
        """
        gain = self.gain(arm, checkpoint)
        if gain is None:
            raise KeyError(f"Table III prints no gain for {arm} at {checkpoint}; use Table3.gain, which allows it")
        return gain

    def first_reached(self, arm: str, checkpoint: str) -> float:
        """Iteration gain when baseline and arm are both read at the first evaluation that reaches the loss.

        NaN where the arm never reached it.
        """
        return self.baseline.reached[checkpoint] / self.arms[arm].reached.get(checkpoint, math.nan)


def _number(raw: str, where: str) -> float:
    """A positive number, or NaN for an empty cell."""
    if not raw:
        return math.nan
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where}: must be a positive number or empty, got {raw!r}; type the figure as printed")
    return value


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if tuple(reader.fieldnames or ()) != columns:
            raise ValueError(
                f"{path.name}: columns must be {','.join(columns)}, got {','.join(reader.fieldnames or ())}; "
                "restore the file from the package"
            )
        return list(reader)


def load_table3(path: Path = DATA / "paper_table3.csv") -> Table3:
    """Table III.

    Raises:
        ValueError: wrong columns, a cell that is not a positive number, or no row `baseline`.
    """
    text = ("arm", "label", "algorithm")
    columns = (*text, "time_min", "mfu_percent", *(f"ceg_{c}" for c in GAINS), "mfu_of_a100_percent")
    arms: dict[str, Arm] = {}
    for line, row in enumerate(_rows(path, (*columns, *(f"reached_{c}" for c in CHECKPOINTS))), start=2):
        number = {c: _number(row[c], f"{path.name}:{line}: {c}") for c in row if c not in text}
        for column in ("time_min", "mfu_percent", "mfu_of_a100_percent"):
            if math.isnan(number[column]):
                raise ValueError(f"{path.name}:{line}: {column} must be given, got ''; type it as printed")
        arms[row["arm"]] = Arm(
            row["arm"], row["label"], row["algorithm"],
            time_min=number["time_min"],
            mfu_percent=number["mfu_percent"],
            ceg={c: number[f"ceg_{c}"] for c in GAINS if row[f"ceg_{c}"]},
            mfu_of_a100_percent=number["mfu_of_a100_percent"],
            reached={c: int(number[f"reached_{c}"]) for c in CHECKPOINTS if row[f"reached_{c}"]},
        )  # fmt: skip
    if "baseline" not in arms:
        raise ValueError(f"{path.name}: one row must be the arm 'baseline', got {', '.join(arms)}; add it")
    return Table3(arms)


def load_table2(path: Path = DATA / "paper_table2.csv") -> tuple[Claim, ...]:
    """Table II.

    Raises:
        ValueError: wrong columns, a cell that is not a positive number, or a row with no figure at all.
    """
    claims = []
    for line, row in enumerate(_rows(path, ("label", "algorithm", "ceg", "low", "high", "currency", "note")), start=2):
        ceg, low, high = (_number(row[c], f"{path.name}:{line}: {c}") for c in ("ceg", "low", "high"))
        if math.isnan(ceg) and math.isnan(low):
            raise ValueError(f"{path.name}:{line}: ceg or low must be given, got neither; type one as printed")
        claims.append(Claim(row["label"], row["algorithm"], ceg, low, high, row["currency"], row["note"]))
    return tuple(claims)


def non_embedding_params() -> int:
    """Parameters of the ablated model, no embeddings: 12 L d^2 (arXiv 2001.08361, eq. 2.1; d_ff = 4 d)."""
    return 12 * LAYERS * D_MODEL**2


def paper_flops() -> float:
    """FLOP of one 50k-iteration run of Table III, non-embedding 6 N D."""
    return 6.0 * non_embedding_params() * BATCH_TOKENS * ITERATIONS


def counter_flops_per_token(kv_heads: int = HEADS) -> float:
    """Training FLOP per token as the paper's code counts them: 6 N + 12 L d T (nanoGPT `estimate_mfu`).

    N includes the tied embedding and excludes positions and biases; scores are counted without a causal mask.
    """
    saved = 2 * LAYERS * D_MODEL * (D_MODEL // HEADS) * (HEADS - kv_heads)
    params = non_embedding_params() - saved + VOCAB * D_MODEL
    return 6.0 * params + 12.0 * LAYERS * D_MODEL * SEQ_LEN


def implied_peak(arm: Arm) -> float:
    """Peak FLOP/s by which a run's MFU must have been divided: counted FLOP / (time x MFU)."""
    flops = counter_flops_per_token() * BATCH_TOKENS * ITERATIONS
    return flops / (arm.time_min * 60 * arm.mfu_percent / 100)


def hours_against_flops() -> dict[str, float]:
    """DeepSeek-V3 against Llama 3.1 405B: ratios (Llama over DeepSeek) and achieved FLOP/s of one GPU."""
    ours, theirs = DEEPSEEK_V3, LLAMA_405B
    return {
        "hours_ratio": theirs.gpu_hours / ours.gpu_hours,
        "flops_ratio": theirs.flops / ours.flops,
        "active_params_ratio": theirs.active_params / ours.active_params,
        "tokens_ratio": theirs.tokens / ours.tokens,
        "rate_ratio": theirs.flops_per_second / ours.flops_per_second,
        "deepseek_flops_per_second": ours.flops_per_second,
        "llama_flops_per_second": theirs.flops_per_second,
        "deepseek_6nd": 6 * ours.active_params * ours.tokens,
        "llama_6nd": 6 * theirs.active_params * theirs.tokens,
    }
