"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from seqgraph.spinning import limit_spinning

limit_spinning()
# Several workers with a thread pool each would only get in each other's way; before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts a suite in the background has it ignore Ctrl-C, and whatever it starts; tests send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["seqgraph.testing.fixtures"]

ROOT = Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked gpu where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} of shared data")
    return folder


@pytest.fixture
def join_pairs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes one process's training batches those that two processes have in a step, from when it is called."""

    def join() -> None:
        import numpy as np

        from seqgraph.train.batching import TokenBatches

        cut = TokenBatches._make

        def joined(self, epoch):
            if not self.shuffle:
                return cut(self, epoch)
            self.world = 2
            batches = cut(self, epoch)
            self.world = 1
            assert len(batches) % 2 == 0
            return [np.concatenate(batches[i : i + 2]) for i in range(0, len(batches), 2)]

        monkeypatch.setattr(TokenBatches, "_make", joined)

    return join
