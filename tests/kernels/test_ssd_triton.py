"""The Triton form of ssd without a GPU: right in the interpreter, and compiling for one within its registers."""

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from seqgraph_kernels import ready, ssd

sys.path.insert(0, str(Path(__file__).parent))
import launched
from offline import interpreted, interpreter_works

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CASES = [
    "forward", "reverse", "both", "both-own", "both-own-apart", "both-apart", "shifted", "shifted-reverse",
    "whole-chunks", "wide", "empty", "no-segments", "fp16", "huge-steps",
]  # fmt: skip


@pytest.fixture(scope="module")
def errors():
    if not interpreter_works():
        pytest.skip("Triton's interpreter before 3.9 fails on loops with numpy 2.4 and later")
    return interpreted("interpreter_ssd.py")


@pytest.mark.parametrize("case", CASES)
def test_interpreted(errors, case):
    assert errors[case]["error"] < (2e-3 if case == "fp16" else 5e-6), errors[case]


def test_every_case_is_looked_at(errors):
    assert set(errors) == set(CASES)


def call(low, *, H=32, P=64, N=128, own=False, segments=8, **options):
    """32,768 tokens in equal segments, and all that a block of Mamba-2 (or, with its ``own``, of Hydra) gives."""
    T, fp32 = 32768, torch.float32
    empty = partial(launched.empty, dtype=low)
    wide = {"x": empty(T, H, P), "z": empty(T, H, P), "A": launched.empty(H, dtype=fp32)}
    wide["D"] = launched.empty(*((T, H) if own else (H,)), dtype=fp32)
    for suffix in ("", "_rev") if own else ("",):
        wide |= {f"dt{suffix}": empty(T, H), f"dt_bias{suffix}": launched.empty(H, dtype=fp32)}
        wide |= {f"B{suffix}": empty(T, 1, N), f"C{suffix}": empty(T, 1, N)}
    return ssd(**wide, dt_softplus=True, cu_seqlens=launched.borders(T, segments), backend="triton", **options)


BF16 = torch.bfloat16
HYDRA = {"direction": "both", "own": True, "shift": True}
# Bytes that a thread may spill beyond its 255 registers, by kernel; what is not named must not spill.
SPILLS = {
    (90, "bf16 both"): {"outputs": 280, "token_gradients": 900, "projection_gradients": 64},
    (90, "bf16 hydra"): {"outputs": 900, "token_gradients": 700, "projection_gradients": 64},
    (80, "bf16 both"): {"walk": 96, "outputs": 96, "token_gradients": 256},
    (90, "bf16 N 64"): {"outputs": 280, "token_gradients": 900},
    (90, "bf16 apart"): {"outputs": 560, "token_gradients": 900, "projection_gradients": 64},
    (90, "fp32 forward"): {
        "outputs": 4096, "token_gradients": 4096, "projection_gradients": 2048, "step_gradients": 8,
    },
}  # fmt: skip
CALLS = {
    "bf16 both": partial(call, BF16, direction="both"),
    "bf16 apart": partial(call, BF16, direction="both", combine="none"),
    "bf16 hydra": partial(call, BF16, **HYDRA),
    "bf16 N 64": partial(call, BF16, N=64, direction="both"),
    "fp32 forward": partial(call, torch.float32),
}
SHARED = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on: nothing is compiled")
@pytest.mark.parametrize(("capability", "name"), SPILLS)
def test_compiles_within_its_registers(capability, name):
    for kernel in launched.kernels_of(CALLS[name], capability):
        spilled = SPILLS[capability, name].get(kernel.name, 0)
        # Where ptxas gives up, it leaves 32 registers and spills the rest.
        assert kernel.registers > 32 or kernel.stack == 0, kernel
        assert kernel.stack <= spilled and kernel.shared <= SHARED[capability], kernel


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on: nothing is compiled")
def test_few_launches(monkeypatch):
    """One per kernel forward; backward two more walks and both projections."""
    from seqgraph_kernels.ssd import triton  # imports triton, which may not be there

    monkeypatch.setattr(triton, "is_first", lambda *_: False)
    with launched.compiling(90) as compiled, launched.OnMeta():
        CALLS["bf16 both"]()
        forward = len(compiled)
    assert forward == 5


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on: nothing is compiled")
def test_the_first_call_compiles_for_all_lengths(monkeypatch):
    monkeypatch.setattr(ready, "_seen", set())

    def compiled_for(segments):
        with launched.compiling(90) as compiled, launched.OnMeta():
            result = call(BF16, H=2, P=16, N=16, segments=segments, direction="both")
            torch.autograd.backward([result], [torch.empty_like(result)])
        return {kernel.hash for _, kernel in compiled}

    first = compiled_for(8)
    assert compiled_for(2048) <= first and compiled_for(1) <= first
    assert len(first) > len(compiled_for(8)), "both lengths of chunks have kernels of their own"
