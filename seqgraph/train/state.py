"""Where training is: what a checkpoint keeps so that a resumed run goes on as if nothing had happened."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has saved its state.

    Args:
        folder: the run, to be resumed.
        step: optimiser steps done.
    """

    def __init__(self, folder: Any, step: int) -> None:
        super().__init__(f"interrupted at step {step}; the state is in {folder}")
        self.folder, self.step = folder, step


@dataclass
class Progress:
    """Counts of a training.

    Attributes:
        epoch: epochs that are complete.
        step: steps of the optimiser.
        best: best value of the monitored metric so far.
        best_epoch: the epoch (from 1) that gave it.
        waited: evaluations since then.
        seconds: time spent in training and evaluation.
        tokens: tokens of this process in the current epoch.
        flops: floating-point operations of this process in the current epoch, where the task counts them.
        epoch_seconds: time spent in the current epoch.
        sums: name -> (2,) float64, this process's sum and size of each value in the current epoch.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    waited: int = 0
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    epoch_seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""
        return {**asdict(self), "sums": {name: sums.cpu() for name, sums in self.sums.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """From :meth:`state_dict`'s tree."""
        return cls(**{f.name: state[f.name] for f in fields(cls) if f.name in state})

    def begin_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self.sums, self.tokens, self.flops, self.epoch_seconds = {}, 0, 0.0, 0.0

    def is_better(self, value: float, mode: str) -> bool:
        """Whether a value of the monitored metric beats the best; NaN never does."""
        if value != value:
            return False
        return self.best is None or (value < self.best if mode == "min" else value > self.best)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (torch's on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng() -> dict[str, Any]:
    """The state of every global generator, as a tree."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng(state: dict[str, Any]) -> None:
    """Put every global generator back to :func:`get_rng`'s state."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
