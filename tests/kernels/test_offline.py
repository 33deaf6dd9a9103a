"""Every Triton kernel of a call compiles for GPUs that are not here, and within its registers."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import launched

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on: nothing is compiled"),
]
# Registers of a thread and bytes that it spills, at most, by case and kernel, on either GPU; what is not named here
# must not spill. `python tests/kernels/launched.py` prints what is used.
BUDGETS: dict[str, dict[str, tuple[int, int]]] = {
    "conv both": {"outputs": (128, 0), "gradients": (255, 0)},
    "conv forward": {"outputs": (64, 0), "gradients": (128, 0)},
    "scan both": {"local_states": (168, 0), "outputs": (168, 40), "gradients": (255, 256)},
    "scan forward, N 32": {"outputs": (168, 40), "gradients": (255, 256)},
    "scan reverse, N 128": {"local_states": (255, 0), "outputs": (168, 40), "gradients": (255, 256)},
}  # fmt: skip
# All registers there are.
UNNAMED = (255, 0)
# Bytes of shared memory that a program can have.
SHARED = {80: 163 * 1024, 90: 227 * 1024}


# A scan takes half a minute to compile, so that the older GPU gets one case of each operator.
COMPILED = [(case, 90) for case in BUDGETS] + [("conv both", 80), ("scan both", 80)]


@pytest.mark.parametrize(("case", "capability"), COMPILED)
def test_compiles_within_its_budget(case, capability):
    kernels = launched.kernels_of(launched.CASES[case], capability)
    assert BUDGETS[case].keys() <= {kernel.name for kernel in kernels}, "a budget of a kernel that is not launched"
    for kernel in kernels:
        registers, stack = BUDGETS[case].get(kernel.name, UNNAMED)
        assert kernel.registers <= registers and kernel.stack <= stack and kernel.shared <= SHARED[capability], kernel
