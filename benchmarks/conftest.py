"""Options of the benchmarks, the session's lab, and the parameters of `test_kernels.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cegain.benchmarks import suite
from cegain.benchmarks.clock import Rounds
from cegain.benchmarks.lab import ROUNDS, Lab

_LABS = pytest.StashKey[Lab]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seq-lens`, `--rounds` and `--full`."""
    group = parser.getgroup("ceg kernels")
    group.addoption("--seq-lens", type=_whole_numbers, default=(), metavar="256,512,...",
                    help="Tokens of a sequence, a cache or a layer, in place of each family's own.")  # fmt: skip
    group.addoption(
        "--rounds", type=_whole_number, metavar="N", help="Rounds of everything, in place of what time allows."
    )
    group.addoption(
        "--full", action="store_true", help="All lengths, shapes and comparisons; peak memory on a CPU too."
    )


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_whole_number, text.split(",")))


def _whole_number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise pytest.UsageError(
            f"--seq-lens, --rounds: whole numbers of at least 1 are needed, got {text!r}; try --seq-lens 256,1024"
        )
    return value


def _lab(config: pytest.Config) -> Lab:
    if _LABS not in config.stash:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        full, count = config.getoption("--full"), config.getoption("--rounds")
        rounds = Rounds(0.0, count, count) if count else ROUNDS[device.type, full]
        config.stash[_LABS] = Lab(device, rounds, full)
    return config.stash[_LABS]


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    """The session's device and all that was measured on it."""
    return _lab(pytestconfig)


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether everything is asked for."""
    return bool(pytestconfig.getoption("--full"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case, implementation and pass of the family that a test function is named after."""
    if "entry" not in metafunc.fixturenames:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    family = metafunc.function.__name__.removeprefix("test_")
    lengths, full = metafunc.config.getoption("--seq-lens"), metafunc.config.getoption("--full")
    found = suite.entries(suite.cases(family, device.type, lengths, full), device)
    metafunc.parametrize("entry", found, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ceilings before everything else."""
    items.sort(key=lambda item: not item.name.startswith("test_ceilings"))


@pytest.fixture(autouse=True)
def _one_case_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give a GPU's memory back between tests, so that the next case has it."""
    yield
    if "lab" in request.fixturenames and torch.cuda.is_available():
        torch.cuda.empty_cache()


def pytest_report_header(config: pytest.Config) -> str:
    """What is measured on."""
    if config.getoption("benchmark_skip", False):
        return ""
    lab = _lab(config)
    return f"kernels: {lab.environment['device']}, commit {lab.environment['commit']}, {lab.rounds}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The session's ceilings."""
    if _LABS in config.stash and "ceilings" in config.stash[_LABS].__dict__:
        found = config.stash[_LABS].ceilings
        rates = f"{found.flops_per_s / 1e12:.4g} TFLOP/s (matrix product), {found.bytes_per_s / 1e9:.4g} GB/s (copy)"
        terminalreporter.write_line(f"ceilings: {rates}")
