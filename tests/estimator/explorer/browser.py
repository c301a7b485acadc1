"""A headless browser for the tests of the report's page; a test skips where there is none.

Playwright (the extra `browser`) drives its own Chromium if it has one, else one that is on the PATH.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Nothing that a fresh profile would fetch by itself, so that a request seen is one of the page's.
FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A Playwright Browser; skips the test where Playwright or a browser is missing."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        pytest.skip("no browser: Playwright is not installed (pip install '.[browser]', or make test-all)")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # whose processes Chromium's sandbox refuses
    flags = [*FLAGS, *(["--no-sandbox"] if root else [])]
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(args=flags)
        except Error:  # Playwright has none of its own, or it lacks a library
            found = next(filter(None, map(shutil.which, NAMES)), None)
            if found is None:
                pytest.skip(
                    "no browser: none of Playwright's starts and none is on the PATH (make test-all installs one)"
                )
            started = playwright.chromium.launch(executable_path=found, args=flags)
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def page_of(html: str | Path, **settings: Any) -> Iterator[Any]:
    """A Playwright Page that shows `html` (text, or a file) from file://, as a reader's double click does.

    `settings` go to `Browser.new_context` (viewport, color_scheme, ...). `page.errors` holds what the page throws,
    and what it writes to the console as an error, from loading on.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(html, str):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "page.html"
            path.write_text(html, encoding="utf-8")
        else:
            path = html
        page = stack.enter_context(browser()).new_page(**settings)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
        page.goto(path.resolve().as_uri())
        yield page
