"""One run in several processes: what torchrun says, and sums over all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from cegain.training.run.config import Config

ONE_THREAD = 2**17
"""Numbers in the states of a micro-batch (tokens x d_model) up to which one CPU thread does all the work. More gain
little on matrices so small, and lose much where they wait for each other on a machine with other work."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share the steps of a run."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files and reports."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def first_does(self, work: Callable[[], None], error: type[Exception]) -> None:
        """Let the first process do something; where it raises `error`, so do all others."""
        said: list[str | None] = [None]
        if self.first:
            try:
                work()
            except error as found:
                if self.world == 1:
                    raise
                said = [str(found)]
        if self.world > 1:
            distributed.broadcast_object_list(said, 0)
        if said[0] is not None:
            raise error(said[0])

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world > 1:
            distributed.barrier()


def set_threads(config: Config, threads: int | None = None) -> None:
    """Use this many CPU threads; None: one if a micro-batch's states hold few numbers (`ONE_THREAD`), else as torch
    would. Rounding depends on threads."""
    if threads is None and config.micro_batch * config.shape.seq_len * config.shape.d_model <= ONE_THREAD:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


def world_size() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Join the others: NCCL on CUDA devices, gloo on CPUs, nothing where there is one process.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda", or "cuda:1".
    """
    world, rank = world_size(), int(os.environ.get("RANK", "0"))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = torch.device(name)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world > 1:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, place)
    finally:
        if world > 1:
            distributed.destroy_process_group()
