"""Every Triton kernel of a call compiles for GPUs that are not here, and within its registers."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from seqgraph_kernels import selective_scan
from seqgraph_kernels.selective_scan.arguments import ScanArguments

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


def test_calls_are_alike_whatever_their_tokens(monkeypatch):
    """Also where rows do not lie in rows: a stride that is the number of tokens is no new kind."""
    from seqgraph_kernels.selective_scan import triton_kind  # imports triton, which may not be there

    monkeypatch.setattr(triton_kind, "_kinds", {})

    def kind(tokens, E=8, turned=False, dtype=torch.float32):
        x = torch.empty(E, tokens, dtype=dtype).t() if turned else torch.empty(tokens, E, dtype=dtype)
        rows = torch.empty(tokens, 4)
        given = [x, x, torch.empty(E, 4), rows, rows, None, x, *[None] * 9]
        return triton_kind.kind_of(ScanArguments(*given, launched.borders(tokens, 1), False, "forward", "sum", tokens))

    one = kind(10)
    assert kind(20) is one and kind(1) is one and kind(10, turned=True) is one and kind(20, turned=True) is one
    assert kind(10, E=9) is not one and kind(10, dtype=torch.bfloat16) is not one


def test_the_first_scan_compiles_for_all_shapes(monkeypatch):
    """Whatever is cut, and however many channels a lane has; with the longest length and without."""
    from seqgraph_kernels.selective_scan import triton_kind

    monkeypatch.setattr(triton_kind, "_kinds", {})

    def compiled_for(tokens, segments, **options):
        low, E, N = torch.bfloat16, 64, 4
        with launched.compiling(90) as compiled, launched.OnMeta():
            result = selective_scan(
                *(launched.empty(tokens, E, dtype=low) for _ in "xd"), launched.empty(E, N, dtype=torch.float32),
                *(launched.empty(tokens, N, dtype=low) for _ in "BC"), direction="both",
                cu_seqlens=launched.borders(tokens, segments), backend="triton", **options,
            )  # fmt: skip
            torch.autograd.backward([result], [torch.empty_like(result)])
        return {kernel.hash for _, kernel in compiled}

    first = compiled_for(1024, 1)
    assert len(first) == 10, "outputs of one and two channels to a lane, states either way, gradients, B and C, sums"
    for tokens, segments, longest in ((16, 1, 16), (65_536, 8, 8192), (65_536, 2048, None), (100_000, 1, None)):
        assert compiled_for(tokens, segments, max_seqlen=longest) <= first
