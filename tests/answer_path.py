"""Which files the main job goes through: `python -m tests.answer_path` prints those whose functions are called.

What is only imported (definitions, data) is not counted; what reads the registry's own entries is one file.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUESTION = ["ceg-estimate", "--algo", "moe", "--flops", "1e24"]
_CODE = f"""
import inspect, os, sys
entered = set()
def note(frame, event, argument):
    function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # no body of a module or a class
    if event == "call" and function and frame.f_code.co_name[0] != "<":
        entered.add(os.path.realpath(frame.f_code.co_filename))
sys.argv = {QUESTION!r}
from cegain.commands.ceg import estimate_command
sys.setprofile(note)
try:
    estimate_command()
finally:
    sys.setprofile(None)
    print(*sorted(entered), sep="\\n", file=sys.stderr)
"""


def entered() -> list[str]:
    """The project's files that are entered, relative to the checkout; class bodies are no entry."""
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    files = [Path(line) for line in done.stderr.splitlines()]
    ours = [f for f in files if f.is_file() and f.is_relative_to(ROOT) and ".venv" not in f.parts]
    return [f.relative_to(ROOT).as_posix() for f in ours]


if __name__ == "__main__":
    files = entered()
    print(*files, sep="\n")
    print(len(files), "files")
