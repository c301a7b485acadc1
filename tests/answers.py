"""Every number of the answers that must not move while the code is rearranged, as `path in the JSON: value`.

`python -m tests.answers BIN` asks the commands in the folder BIN (another checkout's `.venv/bin`, say) and stores what
they say; `tests/test_answers.py` asks this checkout's and compares. Both go when an answer changes on purpose.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STORED = Path(__file__).parent / "answers.json.gz"
ALGORITHMS = (
    "flash_attention", "gqa", "layernorm", "mixed_precision", "mla", "moe", "mqa", "multi_token_prediction", "muon",
    "pipeline_parallelism", "rmsnorm", "rope", "sliding_window", "sparse_attention", "swiglu", "tensor_parallelism",
    "transformer", "zero", "layernorm+rope", "rmsnorm+rope+swiglu",
)  # fmt: skip
CURRENCIES = ("flop", "time", "usd", "decode")
TABLES = {  # made-up runs, the same digits from any version: truth, budgets, noise, seed
    "constant": ("constant", "9", "0.004", "1"),
    "power_law": ("power-law", "8", "0.002", "2"),
    "fading": ("fading", "12", "0.001", "3"),
}
NO_NUMBERS = ("schema_version", "version", "evidence_sha256", "sha256")


def questions() -> dict[str, list[str]]:
    """The commands to ask, by a name of each; `{table}` stands for a folder that holds the tables."""
    found = {}
    for name in ALGORITHMS:
        for currency in CURRENCIES:
            asked = ["ceg-estimate", "--algo", name, "--flops", "1e18,1e21,1e24,1e26", "--currency", currency]
            found[f"estimate {name} {currency}"] = [*asked, "--json"]
    for name in TABLES:
        table = f"{{tables}}/{name}.csv"
        arms = ["--baseline", "baseline", "--variant", "treatment", "--at", "1e19,1e22"]
        found[f"fit {name}"] = ["ceg", "fit", table, *arms, "--json"]
        found[f"law {name}"] = ["ceg", "fit", table, "--variant", "baseline", "--at", "1e22", "--json"]
        found[f"backtest {name}"] = ["ceg", "backtest", table, "--jobs", "1", "--json"]
    for stack in ("bare", "modern"):
        found[f"own runs {stack}"] = ["ceg", "ladder", "--stack", stack, "--json"]
        for name in ("moe", "rope", "transformer", "swiglu"):
            found[f"own runs {stack} {name}"] = ["ceg", "ladder", "--algo", name, "--stack", stack, "--json"]
    found["coverage"] = ["ceg", "coverage", "--json"]
    return found


def numbers(document: object, path: str = "") -> Iterator[tuple[str, float | bool | None]]:
    """Numbers, truth values and blanks of a JSON document, each with its path; texts are not looked at."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key not in NO_NUMBERS:
                yield from numbers(value, f"{path}/{key}")
    elif isinstance(document, list):
        for i, value in enumerate(document):
            yield from numbers(value, f"{path}/{i}")
    elif not isinstance(document, str):
        yield path, document  # type: ignore[misc]


def ask(folder: Path, names: list[str]) -> dict[str, dict[str, float | bool | None]]:
    """What the commands in `folder` answer to the named questions; a refusal is its exit code."""
    with tempfile.TemporaryDirectory() as tables:
        for name, (truth, rungs, noise, seed) in TABLES.items():
            options = ["--truth", truth, "--rungs", rungs, "--noise", noise, "--seed", seed]
            subprocess.run(
                [folder / "ceg", "synthetic", "-o", f"{tables}/{name}.csv", *options], check=True, capture_output=True
            )

        def one(name: str) -> dict[str, float | bool | None]:
            command, *arguments = [part.format(tables=tables) for part in questions()[name]]
            done = subprocess.run([folder / command, *arguments], capture_output=True, text=True, check=False)
            answer = json.loads(done.stdout) if done.stdout.strip() else {}
            return {"/exit_code": done.returncode, **dict(numbers(answer))}

        with ThreadPoolExecutor(2) as pool:
            return dict(zip(names, pool.map(one, names), strict=True))


def main() -> None:
    """Store the answers of the commands in a folder."""
    answers = ask(Path(sys.argv[1]).absolute(), list(questions()))
    text = json.dumps(answers, indent=0)
    STORED.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(answers)} questions, {sum(map(len, answers.values()))} numbers")


if __name__ == "__main__":
    main()
