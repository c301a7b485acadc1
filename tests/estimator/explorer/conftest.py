"""Pages of the tests keep their answers together, and most of them hold fewer."""

import os
from collections.abc import Iterator

import pytest

from cegain.explorer import grids


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for this run, shared by its workers."""
    with pytest.MonkeyPatch.context() as patch:
        own = tmp_path_factory.getbasetemp()
        shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
        patch.setenv("CEG_CACHE", str(shared / "cegain-cache"))
        yield


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with one device, one length and one pair."""
    keep_few(monkeypatch)


def keep_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(grids, "DEVICES", ("h100",))
    patch.setattr(grids, "SEQ_LENS", (2048,))
    patch.setattr(grids, "PAIR_DEVICES", ("h100",))
    patch.setattr(grids, "PAIR_SEQ_LENS", (2048,))
    patch.setattr(grids, "NAMED", {"modern block": ("rmsnorm", "rope", "swiglu")})
    patch.setattr(grids, "_go_together", lambda one, other: (one, other) == ("moe", "rope"))
