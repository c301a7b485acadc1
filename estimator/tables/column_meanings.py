"""What the columns of somebody's table of runs mean, by their names, or by simple arithmetic on them.

`meaning` knows names that people use, with units in them: total_gflops, params (M), eval/loss. `Formula` reads
`total_gflops*1e9` or `6*N*D`; names of columns with odd letters are known, and may stand in braces, as in {eval/loss}.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
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
        "cumflops", "cumulativeflops", "flopsbudget", "flopbudget", "computebudget", "isoflop", "isoflops",
    ),
    "loss": (
        "lossnatspertoken", "finalvalloss", "valloss", "validationloss", "evalloss", "finalevalloss", "testloss",
        "evalpalomamacroloss", "evalpalomac4enloss", "bestvalloss", "finalloss", "loss", "celoss", "crossentropy",
        "trainloss", "trainingloss", "finaltrainloss",
    ),
    "bits_per_byte": ("lossbitsperbyte", "bitsperbyte", "valbpb", "evalbpb", "bpb", "finalvalbpb"),
    "variant": (
        "variant", "arm", "arch", "architecture", "method", "recipe", "algorithm", "optimizer", "optimiser", "group",
        "config", "model", "modelname", "corpus", "experiment",
    ),
    "seed": ("seed", "randomseed", "trainseed"),
    "step": ("step", "globalstep", "currentstep", "currentsteps", "iteration", "iter", "checkpoint"),
    "state": ("state", "status"),
    "run": ("run", "runid", "runname", "name", "id", "hyperid", "jobname", "jobid", "trial", "trialid", "file"),
    "steps_in_all": ("totalsteps", "maxsteps", "numsteps", "trainsteps"),
    "share_done": ("portionstepselapsed", "progress", "sharedone"),
}  # fmt: skip
"""Names by meaning, small letters and digits only, the best first."""
TRAINING_LOSSES = frozenset(("trainloss", "trainingloss", "finaltrainloss"))
SETTINGS = frozenset((
    "lr", "learningrate", "peaklr", "maxlr", "minlr", "baselr", "initlr", "initiallr", "peaklearningrate", "lrpeak",
    "batchsize", "globalbatchsize", "tokensperbatch", "batchtokens", "batch", "bs", "bsz", "gradaccum",
    "warmup", "warmupsteps", "warmupfrac", "warmupratio", "warmuptokens", "weightdecay", "wd",
    "beta1", "beta2", "betas", "momentum", "eps", "epsilon", "adameps", "dropout", "schedule", "lrschedule",
    "scheduler", "lrscheduler", "decay", "decayfrac", "cooldown", "cooldownfrac", "gradclip", "clip", "maxgradnorm",
    "init", "initstd", "initscale", "initseedscale", "zloss", "layers", "nlayer", "nlayers", "numlayers", "depth",
    "width", "dmodel", "nembd", "hiddensize", "hiddendim", "nhead", "nheads", "heads", "numheads", "headdim", "dff",
    "mlpratio", "aspectratio",
))  # fmt: skip
"""Columns of what is tried and tuned, shapes included: runs of one size and budget that differ in them are a sweep."""
_TUNED = re.compile(r"(lr|learningrate|weightdecay|batchsize|warmupsteps|lrmult)$")
YARDSTICKS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("tokenizer", "tokeniser", "tok", "tokenizername"),
    "vocabulary": ("vocab", "vocabsize", "nvocab", "vocabularysize"),
    "corpus": ("corpus", "dataset", "data", "datasetname", "trainset", "traindata", "trainingdata", "datamix"),
    "evaluation": ("evalset", "valset", "evaldata", "valdata", "evaldataset", "validationset", "testset"),
    "sequence length": ("seqlen", "sequencelength", "seqlength", "contextlength", "context", "ctxlen", "blocksize",
                        "maxseqlen", "contextwindow"),
}  # fmt: skip
"""Columns of what a loss is measured with: arms that differ in them are not compared in nats per token."""
LETTERS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
WORDS = {"thousand": 1e3, "million": 1e6, "millions": 1e6, "mn": 1e6, "billion": 1e9, "billions": 1e9, "bn": 1e9,
         "trillion": 1e12, "trillions": 1e12}  # fmt: skip
COUNTS = ("N", "D", "C")
"""What can be counted in thousands, millions and so on."""
_IN_BRACKETS = re.compile(r"\s*[(\[]\s*([a-z]+)\s*[)\]]\s*$")
_BEHIND = re.compile(r"[_\s]([a-z]+)$")
_FLOP_UNIT = re.compile(r"(.*?)(kilo|mega|giga|tera|peta|exa|zetta|[kmgtpez])(flops?)")
_BRACED = re.compile(r"\{([^{}]*)\}")


class Meaning(NamedTuple):
    """What a column is, how good a name it has for that (0 is best), and what its numbers are multiplied by."""

    of: str
    rank: int
    factor: float


def meaning(name: str) -> Meaning | None:
    """What a column's name says that it is; None where it says nothing that is known."""
    for text in dict.fromkeys((name, _last(name))):
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
    return _known(flop[1] + flop[3], LETTERS[flop[2][0]]) if flop else None


def key_of(name: str) -> str:
    """A column's name, or its last part (config/lr), in small letters and digits."""
    return re.sub(r"[^a-z0-9]", "", _last(name).lower())


def _last(name: str) -> str:
    """The last part of a name such as config/lr, model.arch or optim::lr."""
    return re.split(r"[/.:]+", name.strip("/.:"))[-1]


def is_setting(name: str) -> bool:
    """Whether a column's name says that it holds something tuned or tried."""
    key = key_of(name)
    return key in SETTINGS or (_TUNED.search(key) is not None and meaning(name) is None)


def yardstick(name: str) -> str | None:
    """What of the measurement a column tells (`YARDSTICKS`); None where it is another column."""
    key = key_of(name)
    return next((what for what, names in YARDSTICKS.items() if key in names), None)


_LOSS_LIKE = re.compile(r"loss|perplexity|ppl|crossentropy|nll|bpb|bpc|bitsper")


def looks_like_a_loss(name: str) -> bool:
    """Whether a name that is no known one may hold a loss or perplexities."""
    return _LOSS_LIKE.search(re.sub(r"[^a-z0-9]", "", name.lower())) is not None


def is_perplexity(name: str) -> bool:
    """Whether a name says that its column holds perplexities."""
    return re.search(r"perplexity|ppl", re.sub(r"[^a-z0-9]", "", name.lower())) is not None


def _braced(text: str, columns: Iterable[str]) -> str:
    """The text of a formula with braces about names of columns that would be read as arithmetic, a/b."""
    odd = [name for name in columns if not name.isidentifier() and not set("{}").intersection(name) and name.strip()]
    present = sorted((name for name in odd if name in text), key=len, reverse=True)
    if not present:
        return text
    pattern = re.compile(r"\{[^{}]*\}|" + "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in present))
    return pattern.sub(lambda found: found[0] if found[0].startswith("{") else f"{{{found[0]}}}", text)


_LONGEST = 500
"""Letters of a formula; nobody writes a longer one by hand."""


class Formula:
    """Arithmetic on columns: + - * /, numbers and log(), nothing else.

    Raises:
        ValueError: it is something else; the message says what may stand in it.
    """

    OPERATORS: Mapping[type[ast.operator], Callable[[Array, Array], Array]] = {
        ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    }  # fmt: skip

    FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {"log": np.log, "exp": np.exp, "log2": np.log2}

    def __init__(self, text: str, columns: Mapping[str, object]) -> None:
        self.text = text
        self.names: dict[str, str] = {}
        whole = text if text in columns else text.strip()
        if whole in columns:  # a name is a formula, however odd its letters
            self.names["column_0"] = whole
            self.tree: ast.expr = ast.Name("column_0")
            return
        if len(whole) > _LONGEST:
            raise ValueError(f"a formula is at most {_LONGEST} letters long (found {len(whole)})")
        try:
            self.tree = ast.parse(_BRACED.sub(self._placed, _braced(whole, columns)), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"columns, numbers, + - * / and log() are needed (found {text[:100]!r})") from None
        called = {id(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and id(node) not in called:
                self.names.setdefault(node.id, node.id)
        self._check(self.tree)

    def _placed(self, braced: re.Match[str]) -> str:
        key = f"column_{len(self.names)}"
        self.names[key] = braced[1]
        return key

    def _check(self, node: ast.AST) -> None:
        known = ast.BinOp | ast.UnaryOp | ast.Constant | ast.Name | ast.Call | ast.operator | ast.unaryop | ast.Load
        for part in ast.walk(node):
            wrong = not isinstance(part, known)
            wrong |= isinstance(part, ast.BinOp) and type(part.op) not in self.OPERATORS
            if isinstance(part, ast.Call):
                named = isinstance(part.func, ast.Name) and part.func.id in self.FUNCTIONS
                wrong |= not named or len(part.args) != 1 or bool(part.keywords)
            wrong |= isinstance(part, ast.UnaryOp) and not isinstance(part.op, ast.USub | ast.UAdd)
            wrong |= isinstance(part, ast.Constant) and (
                isinstance(part.value, bool) or not isinstance(part.value, int | float)
            )
            if wrong:
                raise ValueError(f"columns, numbers, + - * / and log() are needed (found {self.text[:100]!r})")

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
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            return self.FUNCTIONS[node.func.id](self._of(node.args[0], numbers))
        assert isinstance(node, ast.Constant)
        return np.asarray(node.value, dtype=np.float64)  # divided by 0 it is infinite, and no error
