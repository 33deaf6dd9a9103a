"""Several processes on one job, as torchrun starts them: each takes every n-th part, and rank 0 begins and ends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from seqgraph.errors import ConfigError, UserError

_T = TypeVar("_T")
# Ranks may finish hours apart, and wait for one another at the end.
_PATIENCE = timedelta(days=30)


class OtherRankError(Exception):
    """Rank 0 has met an error, and has said so; the others stop without a word."""


@dataclass(frozen=True)
class Ranks:
    """This process among its like.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Ranks]:
        """The ranks that the environment speaks of (RANK, WORLD_SIZE, LOCAL_RANK), able to talk to one another.

        Raises:
            ConfigError: when they cannot find one another.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            yield cls()
            return
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set",
                "start it with torchrun, or unset WORLD_SIZE",
            )
        # Only a few words are exchanged, and on the CPU: gloo serves whatever the devices are.
        distributed.init_process_group("gloo", timeout=_PATIENCE)
        try:
            rank = distributed.get_rank()
            yield cls(rank, world, int(os.environ.get("LOCAL_RANK", rank)))
        finally:
            distributed.destroy_process_group()

    def device(self, cpu: bool) -> str:
        """The CPU, or this rank's GPU where there is one."""
        if cpu or not torch.cuda.is_available():
            return "cpu"
        index = self.local % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return f"cuda:{index}"

    def first(self, call: Callable[[], _T]) -> _T:
        """What rank 0 gets from a call, on every rank.

        Raises:
            UserError: on rank 0, what the call raises.
            OtherRankError: on the others, when it does.
        """
        if self.world == 1:
            return call()
        box: list = [None, None]
        error: UserError | None = None
        if self.rank == 0:
            try:
                box[0] = call()
            except UserError as caught:
                error = caught
                box[1] = str(caught)
        distributed.broadcast_object_list(box, src=0)
        if error is not None:
            raise error
        if box[1] is not None:
            raise OtherRankError(box[1])
        return box[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            distributed.barrier()
