"""`ceg report`: one HTML file that answers by itself, with the answers as data and scripts that look them up.

`document` gathers what the page knows, `html` puts it into one file with the page's own scripts and plotly.js. Nothing
in the file asks a network for anything, and its policy forbids it to.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cegain import algorithms
from cegain.common import verdict
from cegain.explorer import grids, sections, stored
from cegain.gain import answer, prior, question
from cegain.gain.evidence import load
from cegain.speed import device_hours, two_models
from cegain.tables import provenance
from cegain.tables.published_gains import Evidence, PublishedGain

SCHEMA_VERSION = 2
START = "moe"
START_FLOPS = 1e24
"""What the page shows first, if nothing else is asked for."""
FLOPS = (10.0 ** grids.ENDS[0], 10.0 ** grids.ENDS[1])
"""Ends of the page's slider (FLOP)."""
THRESHOLD_NAMES = {1e25: "EU AI Act", 1e26: "US order of 2023"}
"""Whose reporting thresholds they are; see `question.THRESHOLDS`."""
PRESETS = {
    "mixture of experts": ("moe",),
    "Transformer": ("transformer",),
    "fused attention": ("flash_attention",),
    **grids.NAMED,
}
"""Choices that are one click away."""
LIBRARY = "plotly"
SCRIPTS = (
    "answers.js", "words.js", "chart.js", "parts.js", "facts.js", "classes.js", "trust.js", "ladders.js", "kernels.js",
    "sections.js", "question.js", "plot.js", "answer.js", "files.js", "page.js",
)  # fmt: skip
"""The page's own scripts, each using those before it."""
FOLDER = Path(__file__).parent
SCRIPT_FOLDER = FOLDER / "scripts"
ENDS_SCRIPT = re.compile(r"</script|<!--", re.IGNORECASE)
"""What no script in the page may hold: it would end its element, or begin a comment in it."""
_AGAIN = "Try: pip install --force-reinstall plotly."
Progress = Callable[[int, int], None]
# The same in data: these are written as escapes.
_UNSAFE = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class LibraryError(RuntimeError):
    """plotly.js is not where the package plotly keeps it, or is nothing that a page can hold."""


def document(
    tables: Evidence,
    *,
    evidence: Sequence[str] = (),
    only_evidence: bool = False,
    algo: Sequence[str] = (START,),
    flops: float = START_FLOPS,
) -> dict[str, Any]:
    """All that the page knows beside its answers, as plain JSON values without NaN.

    `evidence` names the tables that are the user's own (only the last part of a path is kept), and `only_evidence` says
    that the shipped ones are left out of `tables`. The page begins with `algo` at `flops` (FLOP), within `FLOPS`.
    """
    return {
        "schema": "ceg.report",
        "schema_version": SCHEMA_VERSION,
        "about": {
            "version": provenance.version("cegain"), "method": answer.METHOD, "commit": provenance.commit(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "evidence_sha256": tables.sha256, "evidence": [Path(name).name for name in evidence],
            "only_evidence": only_evidence,
        },
        "page": page(algo, flops),
        "sections": sections.document(tables),
    }  # fmt: skip


def answers(
    tables: Evidence, with_own: bool, stacks: Sequence[Sequence[str]], progress: Progress | None = None
) -> bytes:
    """Answers to all that the page can be asked: compressed JSON of `grids.answers`, from the cache where it is there.

    `with_own` says that some rows are the user's, `stacks` what the page holds besides its usual ones. `progress` is
    called as answers come, with how many stacks are there and how many there will be.
    """
    shipped = frozenset(load().rows) if with_own else None
    asked = grids.Asked(tables, shipped, prior.frozen())
    wanted = grids.stacks(asked, stacks)
    key = stored.key(tables.sha256, tables.remarks, algorithms.own(), with_own, wanted, grids.settings_by_size())
    return stored.load(key) or stored.keep(key, grids.answers(asked, wanted, done=progress))


def page(algo: Sequence[str], flops: float) -> dict[str, Any]:
    """What stands in the page's controls: names for people, limits, marks on the scale, and the first choice."""
    entries = {name: algorithms.get(name) for name in algorithms.names()}
    return {
        "algorithms": [
            {
                "name": name, "title": entry.title, "summary": entry.summary, "paper": entry.paper,
                "baseline": entry.replaces[0], "paper_class": entry.paper_class,
            }
            for name, entry in entries.items()
        ],
        "presets": [{"name": name, "algorithms": list(parts)} for name, parts in PRESETS.items()],
        "currencies": list(question.CURRENCIES),
        "devices": list(grids.DEVICES),
        "seq_lens": list(grids.SEQ_LENS),
        "start": {"algorithms": sorted(algo), "flops": flops, "device": question.DEVICE, "seq_len": two_models.SEQ_LEN},
        "flops_range": list(FLOPS),
        "thresholds": [{"flops": t, "name": THRESHOLD_NAMES[t]} for t in question.THRESHOLDS],
        "runs": [
            {"name": run.name, "flops": run.reported_flops, "source": run.source}
            for run in sorted(device_hours.RUNS, key=lambda run: run.reported_flops)
        ],
        "evidence_columns": list(PublishedGain._fields),
        "far_decades": verdict.FAR_DECADES,
        "class_slope": verdict.CLASS_SLOPE,
        "undetermined": verdict.UNDETERMINED,
    }  # fmt: skip


def html(data: dict[str, Any], answered: bytes) -> bytes:
    """The page of a document, and of the grids of its answers as `answers` gives them.

    Raises:
        LibraryError: plotly.js is not there, or cannot go into a page.
        ValueError: a number of the document is not finite.
    """
    library = plotly()
    scripts = [(SCRIPT_FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS]
    parts = {
        "policy": _policy([library, *scripts]),
        "style": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "data": escaped(data),
        "grids": base64.b64encode(answered).decode("ascii"),
        "plotly": library,
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    # In one pass: what is put in is not searched for further places.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template).encode()


def escaped(data: object) -> str:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[" + "".join(_UNSAFE) + "]", lambda unsafe: _UNSAFE[unsafe[0]], text)


def plotly() -> str:
    """plotly.js as the installed package ships it, found without importing the package.

    Raises:
        LibraryError: it is not there, cannot be read, or would end the script element that holds it.
    """
    spec = importlib.util.find_spec(LIBRARY)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        path = Path(folder) / "package_data" / "plotly.min.js"
        if not path.exists():
            continue
        try:
            script = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LibraryError(f"plotly.js can be read (found {str(path)!r}: {error}). {_AGAIN}") from None
        ends = ENDS_SCRIPT.search(script)
        if ends:
            raise LibraryError(f"plotly.js holds no </script and no <!-- (found {ends[0]} in {str(path)!r}). {_AGAIN}")
        return script
    raise LibraryError("plotly.js is installed with the package plotly (found none). Try: pip install plotly.")


def _policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: no connection at all, and no script but these.

    plotly.js writes style attributes and makes pictures through blob: and data: addresses.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
