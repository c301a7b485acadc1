"""Logs of training as text: the lines with an evaluation, one record each.

nanoGPT writes "step 500: train loss 3.10, val loss 3.20", its speed runs "step:125/6200 val_loss:6.30", llm.c "s:250
tel:6.40", nanochat "Step 00250 | Validation bpb: 0.91", a trainer's console "{'eval_loss': 3.21, 'epoch': 1.0}". All
are names, a colon, an equal sign or a blank, and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?"
_STEP = re.compile(
    rf"\b(?:global_)?(?:step|iter|iteration|it|s)\b['\"]?\s*[:= ]\s*({_NUMBER})(?:\s*/\s*({_NUMBER}))?", re.I
)
_PAIR = re.compile(
    rf"([A-Za-z][\w/ .-]*?)['\"]?\s*[:=]?\s+?({_NUMBER})(?![\w%])|([A-Za-z][\w/.-]*)['\"]?[:=]({_NUMBER})(?![\w%])"
)
EVALUATIONS = ("val", "valid", "validation", "eval", "test")
_SHORT = {"tel": "test_loss", "trl": "train_loss"}
"""Names of llm.c."""


def records(lines: Iterable[str]) -> tuple[list[dict[str, str]], str]:
    """Cells by name of every line with an evaluation, of every line with a loss where there is no evaluation; and what
    was read, in words. Empty where no line has a loss beside a step.
    """
    evaluated, trained = [], []
    for line in lines:
        lowered = line.lower()
        if len(line) > 2000 or not ("loss" in lowered or "bpb" in lowered or "tel:" in lowered or "trl:" in lowered):
            continue
        cells = _cells(line)
        if any(_is_evaluation(name) for name in cells):
            evaluated.append(cells)
        elif "step" in cells and any("loss" in name for name in cells):
            trained.append({("train_loss" if name == "loss" else name): cell for name, cell in cells.items()})
    if any("step" in cells for cells in evaluated):  # others are lines of the program, which stands in some logs
        evaluated = [cells for cells in evaluated if "step" in cells]
    if evaluated:
        return evaluated, f"a log: {len(evaluated)} evaluations"
    return trained, f"a log: {len(trained)} training losses, no evaluation"


def _cells(line: str) -> dict[str, str]:
    """Names and numbers of a line; the step, and all steps where it says so, under one name each."""
    cells: dict[str, str] = {}
    for named, number, short, joined in _PAIR.findall(line):
        name = re.sub(r"[\s|]+", "_", (named or short).strip(" |,'\"{")).lower()
        cells.setdefault(_SHORT.get(name, name), (number or joined).rstrip(","))
    step = _STEP.search(line)
    if step:
        cells = {
            name: cell
            for name, cell in cells.items()
            if not re.fullmatch(r"(global_)?(step|iter|iteration|it|s)", name)
        }
        cells = {"step": step[1].rstrip(","), **({"total_steps": step[2]} if step[2] else {}), **cells}
    return cells


def _is_evaluation(name: str) -> bool:
    """Whether a name is that of a loss on text held out."""
    parts = re.split(r"[_/ .-]+", name)
    measured = any(part in ("loss", "bpb", "nll", "ce") or part.endswith("loss") for part in parts)
    return measured and any(part in EVALUATIONS or part.startswith(("val", "eval", "test")) for part in parts)
