"""`python -m tests.estimator.explorer.timing`: how long the explorer takes to write, to open, and to follow the slider.

One line per repeat, so that a busy minute is seen, then medians; the load of the machine stands first.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.estimator.calls import Calls
from tests.estimator.explorer.browser import browser

REPEATS = 5
SLIDER_STEPS = 50
VIEWS = ("#algo=moe&flops=1e24", "#algo=moe,muon,rmsnorm,rope&flops=1e24&currency=usd&device=h200&seq-len=8192")
SLIDE = """async (steps) => {
  const slider = document.getElementById("slider");
  const taken = [];
  for (let i = 0; i < steps; i++) {
    slider.value = String(16 + (10 * i) / steps);
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    taken.push(Number(document.body.dataset.drawMs));
  }
  return taken;
}"""
"""Moves the slider step by step; the milliseconds of each drawing."""


def opened(shown: Any, path: Path, view: str) -> dict[str, float]:
    """Milliseconds: `interactive`, `picture` since navigation, `library` (plotly.js's own); slider `median`, `p90`."""
    context = shown.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(path.as_uri() + view)
    page.wait_for_selector("body[data-picture]", state="attached")
    found = page.evaluate("({...document.body.dataset})")
    taken = sorted(page.evaluate(SLIDE, SLIDER_STEPS))
    context.close()
    times = {name: float(found[name]) for name in ("interactive", "picture", "library")}
    return times | {"median": statistics.median(taken), "p90": taken[int(0.9 * SLIDER_STEPS)]}


def main() -> None:
    print("load: {:.1f}, {:.1f}, {:.1f}".format(*os.getloadavg()))
    with tempfile.TemporaryDirectory() as folder, browser() as shown:
        path = Path(folder) / "ceg.html"
        kept: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            began = time.perf_counter()
            result = Calls("report").call("-o", path)
            assert result.exit_code == 0, result.output
            made = time.perf_counter() - began
            kept.setdefault("made in, s", []).append(made)
            line = [f"made in {made:.1f} s"]
            for view in VIEWS:
                times = opened(shown, path, view)
                line.append(", ".join(f"{name} {ms:.0f}" for name, ms in times.items()) + " ms")
                for name, ms in times.items():
                    kept.setdefault(f"{view} {name}, ms", []).append(ms)
            print("; ".join(line), flush=True)
    for name, values in kept.items():
        print(f"{name}: median {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})")


if __name__ == "__main__":
    main()
