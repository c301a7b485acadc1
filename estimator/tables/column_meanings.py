"""What the columns of somebody's table of runs mean, by their names, or by simple arithmetic on them.

`meaning` knows names that people use, with units in them: total_gflops, params (M), eval/loss. `Formula` reads
`total_gflops*1e9` or `6*N*D`; names with odd letters stand in braces, as in {eval/loss}.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array

ALIASES: Mapping[str, tuple[str, ...]] = {
    "N": (
        "n", "nparamsactive", "activeparams", "activeparameters", "paramsactive", "numactiveparams", "params",
        "nparams",
        "numparams", "parametercount", "parameters", "numparameters", "nparameters", "paramcount", "modelparams",
        "modelparameters",
        "modelsize", "totalparams", "paramstotal", "nparamstotal", "totalparameters", "numscalingparams", "size",
    ),
    "D": (
        "d", "tokens", "ntokens", "numtokens", "totaltokens", "traintokens", "trainingtokens", "numtrainingtokens",
        "tokensseen", "totaltokensseen", "trainedtokens", "tokenstrained", "tokenstotal",
    ),
    "C": (
        "c", "flops", "flop", "totalflops", "totalflop", "trainflops", "trainingflops", "trainingflop",
        "totaltrainingflops",
        "compute", "totalcompute", "trainingcompute", "computeflops", "computeflop", "modelflops", "flopstotal",
    ),
    "loss": (
        "lossnatspertoken", "finalvalloss", "valloss", "validationloss", "evalloss", "finalevalloss", "testloss",
        "evalpalomamacroloss", "evalpalomac4enloss", "bestvalloss", "finalloss", "loss", "celoss", "crossentropy",
    ),
    "bits_per_byte": ("lossbitsperbyte", "bitsperbyte", "valbpb", "evalbpb", "bpb", "finalvalbpb"),
    "variant": (
        "variant", "arm", "arch", "architecture", "method", "recipe", "algorithm", "optimizer", "optimiser", "group",
        "config", "model", "modelname", "corpus", "experiment",
    ),
    "seed": ("seed", "randomseed", "trainseed"),
    "step": ("step", "globalstep", "currentstep", "currentsteps", "iteration", "iter", "checkpoint"),
    "state": ("state", "status"),
    "run": ("run", "runid", "runname", "name", "id"),
}  # fmt: skip
"""Names by meaning, small letters and digits only, the best first."""
LETTERS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
WORDS = {"thousand": 1e3, "million": 1e6, "millions": 1e6, "mn": 1e6, "billion": 1e9, "billions": 1e9, "bn": 1e9,
         "trillion": 1e12, "trillions": 1e12}  # fmt: skip
COUNTS = ("N", "D", "C")
"""What can be counted in thousands, millions and so on."""
_IN_BRACKETS = re.compile(r"\s*[(\[]\s*([a-z]+)\s*[)\]]\s*$")
_BEHIND = re.compile(r"[_\s]([a-z]+)$")
_FLOP_UNIT = re.compile(r"(.*)([kmgtpez])(flops?)")
_BRACED = re.compile(r"\{([^{}]*)\}")


class Meaning(NamedTuple):
    """What a column is, how good a name it has for that (0 is best), and what its numbers are multiplied by."""

    of: str
    rank: int
    factor: float


def meaning(name: str) -> Meaning | None:
    """What a column's name says that it is; None where it says nothing that is known."""
    for text in dict.fromkeys((name, name.rsplit("/", 1)[-1])):
        found = _known(text, 1.0) or _with_unit(text.lower())
        if found is not None:
            return found
    return None


def _known(text: str, factor: float) -> Meaning | None:
    key = re.sub(r"[^a-z0-9]", "", text.lower())
    for of, names in ALIASES.items():
        if key in names:
            return Meaning(of, names.index(key), factor) if factor == 1.0 or of in COUNTS else None
    return None


def _with_unit(text: str) -> Meaning | None:
    for pattern in (_IN_BRACKETS, _BEHIND):
        unit = pattern.search(text)
        factor = (LETTERS | WORDS).get(unit[1].removesuffix("flops").removesuffix("flop")) if unit else None
        if unit and factor and (found := _known(text[: unit.start()], factor)):
            return found
    flop = _FLOP_UNIT.fullmatch(re.sub(r"[^a-z0-9]", "", text))
    return _known(flop[1] + flop[3], LETTERS[flop[2]]) if flop else None


_LONGEST = 500
"""Letters of a formula; nobody writes a longer one by hand."""


class Formula:
    """Arithmetic on columns: + - * / and numbers, nothing else.

    Raises:
        ValueError: it is something else; the message says what may stand in it.
    """

    OPERATORS: Mapping[type[ast.operator], Callable[[Array, Array], Array]] = {
        ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    }  # fmt: skip

    def __init__(self, text: str, columns: Mapping[str, object]) -> None:
        self.text = text
        self.names: dict[str, str] = {}
        whole = text.strip()
        if whole in columns:  # a name is a formula, however odd its letters
            self.names["column_0"] = whole
            self.tree: ast.expr = ast.Name("column_0")
            return
        if len(whole) > _LONGEST:
            raise ValueError(f"a formula is at most {_LONGEST} letters long (found {len(whole)})")
        try:
            self.tree = ast.parse(_BRACED.sub(self._placed, whole), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"columns, numbers and + - * / are needed (found {text[:100]!r})") from None
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name):
                self.names.setdefault(node.id, node.id)
            elif not isinstance(node, ast.BinOp | ast.UnaryOp | ast.Constant | ast.operator | ast.unaryop | ast.Load):
                raise ValueError(f"columns, numbers and + - * / are needed (found {text[:100]!r})")
        self._check(self.tree)

    def _placed(self, braced: re.Match[str]) -> str:
        key = f"column_{len(self.names)}"
        self.names[key] = braced[1]
        return key

    def _check(self, node: ast.AST) -> None:
        for part in ast.walk(node):
            wrong = isinstance(part, ast.BinOp) and type(part.op) not in self.OPERATORS
            wrong |= isinstance(part, ast.UnaryOp) and not isinstance(part.op, ast.USub | ast.UAdd)
            wrong |= isinstance(part, ast.Constant) and (
                isinstance(part.value, bool) or not isinstance(part.value, int | float)
            )
            if wrong:
                raise ValueError(f"columns, numbers and + - * / are needed (found {self.text!r})")

    @property
    def columns(self) -> list[str]:
        """Names of the columns in it."""
        return list(self.names.values())

    def value(self, numbers: Mapping[str, Array]) -> Array:
        """Its value for every row; `numbers` by name of column."""
        return self._of(self.tree, numbers)

    def _of(self, node: ast.expr, numbers: Mapping[str, Array]) -> Array:
        if isinstance(node, ast.BinOp):
            return self.OPERATORS[type(node.op)](self._of(node.left, numbers), self._of(node.right, numbers))
        if isinstance(node, ast.UnaryOp):
            value = self._of(node.operand, numbers)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Name):
            return numbers[self.names[node.id]]
        assert isinstance(node, ast.Constant)
        return np.asarray(node.value, dtype=np.float64)  # divided by 0 it is infinite, and no error
