"""A short launch takes the kernel that Triton would take, and gives it the same arguments."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from seqgraph_kernels.launch import Launcher, launch

sys.path.insert(0, str(Path(__file__).parent))
import launched

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on: nothing is compiled"),
]
DATA = torch.zeros(64, dtype=torch.float32)


class Interpreted:
    """Says how often Triton's own way was taken, and gives no kernel back."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getitem__(self, grid):
        return lambda *args, **constants: self.calls.append((grid, args, constants))


@pytest.fixture
def kernel():
    """A kernel of two pointers and two numbers, the second of which Triton does not look at."""
    import launch_kernel

    return launch_kernel.add_number


@pytest.fixture
def launches(monkeypatch):
    """The kernels that were launched, by hash, and their arguments; compiled for sm_90, and not run."""
    from triton.compiler import CompiledKernel
    from triton.runtime import driver

    seen: list[tuple[str, tuple]] = []

    def handles(self):
        # Grid, stream, function, two metadata and two hooks come first.
        self.function, self._run = 0, lambda *args: seen.append((self.hash, args[:3] + args[9:]))

    monkeypatch.setattr(CompiledKernel, "_init_handles", handles)
    before = dict(vars(driver))
    driver.set_active(launched.NoDriver(90))
    yield seen
    vars(driver).update(before)


CALLS = [
    ((DATA, None), (5, 7)),
    ((DATA, None), (6, 7)),
    ((DATA, None), (32, 7)),
    ((DATA, None), (1, 7)),
    ((DATA, None), (16, 16)),
    ((DATA, None), (0, 1)),
    ((DATA[1:], None), (5, 7)),
    ((DATA[4:], None), (5, 7)),
    ((DATA, None), (5, 2**31)),
    ((DATA, None), (2**32, 7)),
    ((DATA, None), (6, 7)),
]


def test_triton_would_take_the_same_kernel(kernel, launches):
    launcher = Launcher(kernel, BLOCK=16, num_warps=1)
    chosen = []
    for pointers, numbers in CALLS:
        launcher((3, 1, 1), pointers, numbers)
        launcher((3, 1, 1), pointers, numbers)
        first, second = launches[-2:]
        kernel[(3, 1, 1)](*pointers, *numbers, BLOCK=16, num_warps=1)
        theirs = launches.pop()
        assert first[0] == second[0] == theirs[0], numbers
        for got in (first, second):
            assert [_address(v) for v in got[1]] == [_address(v) for v in theirs[1]], numbers
        chosen.append(theirs[0])
    assert len(set(chosen)) == 6, "the calls are to need several kernels"


def _address(value):
    return value.data_ptr() if isinstance(value, torch.Tensor) else value or 0


def test_a_known_launch_skips_triton(kernel, launches, monkeypatch):
    launcher = Launcher(kernel, BLOCK=16, num_warps=1)
    launcher((1, 1, 1), (DATA, None), (5, 7))
    monkeypatch.setattr(type(kernel), "run", None)
    launcher((2, 1, 1), (DATA[8:], None), (9, 8))
    assert launches[1][1] == (2, 1, 1, DATA[8:].data_ptr(), 0, 9, 8, 16)


def test_an_entry_is_that_part_of_its_tensor(kernel, launches):
    launcher = Launcher(kernel, BLOCK=16, num_warps=1)
    rows = torch.zeros(4, 8)
    for _ in range(2):
        launcher((1, 1, 1), ((rows, 3), None), (5, 7))
    assert [_address(args[3]) for _, args in launches] == [rows[3].data_ptr()] * 2


def test_what_gives_no_kernel_is_called_each_time():
    kernel = Interpreted()
    launcher = Launcher(kernel, BLOCK=16)
    for _ in range(3):
        launcher((1, 1, 1), (DATA, None), (5, 7))
    assert len(kernel.calls) == 3 and kernel.calls[2][2] == {"BLOCK": 16}


def test_types_constants_and_what_is_missing_choose_a_launcher(kernel, launches):
    """The second round must take what the first one kept for the same, and for nothing else."""
    low, constants = DATA.to(torch.bfloat16), {"BLOCK": 16, "num_warps": 1}
    calls = [
        ([DATA, None], constants),
        ([low, None], constants),
        ([DATA, DATA], constants),
        ([DATA, low], constants),
        ([DATA, None], constants | {"BLOCK": 32}),
    ]
    for _ in range(2):
        for pointers, given in calls:
            launch(kernel, (1, 1, 1), pointers, (5, 0.5), given)
    hashes = [name for name, _ in launches]
    assert hashes[:5] == hashes[5:] and len(set(hashes)) == 5
