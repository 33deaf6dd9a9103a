"""The operators inside torch, on a CUDA device: compiled, captured, without a wait. Needs pytest, torch and triton.

python -m pytest -c /dev/null --rootdir . tests/kernels/test_operator_gpu.py    (with kernels/ on PYTHONPATH)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import operator_cases as cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
every_op = pytest.mark.parametrize("op", cases.available("triton"))


@every_op
@pytest.mark.parametrize("own", [False, True])
def test_opcheck(op, own):
    cases.passes_opcheck(op, "cuda", own=own)


@every_op
def test_compiled_without_a_graph_break(op):
    # Inductor may fuse what surrounds the operator, and add in another order.
    cases.compiles(op, "cuda", "inductor", 1e-5)


@every_op
def test_checkpointed(op):
    cases.checkpoints(op, "cuda")


@every_op
def test_autocast_leaves_parameters_in_fp32(op):
    cases.runs_under_autocast(op, "cuda")


@every_op
def test_functional_call(op):
    cases.is_functional(op, "cuda")


@every_op
@pytest.mark.parametrize("options", [{}, {"direction": "reverse"}, {"state": False}, {"lengths": ()}], ids=str)
def test_shapes_without_data(op, options):
    cases.has_shapes_without_data(op, "cuda", **options)


@every_op
def test_any_strides(op):
    # Loads of scattered inputs are other instructions, between which sums may be fused otherwise.
    cases.takes_any_strides(op, "cuda", 2e-6)


@every_op
def test_only_the_gradients_asked_for(op):
    cases.gives_only_the_gradients_asked_for(op, "cuda")


@every_op
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(op, dtype, bound):
    cases.is_near_in_half_precision(op, "cuda", dtype, bound)


def step(op, tensors, keywords, grads):
    """Outputs and gradients, with nothing that comes from the host."""
    got = cases.outputs(op, tensors, keywords)
    return [*got, *torch.autograd.grad(got, list(tensors.values()), grads)]


@every_op
def test_captured_once_and_replayed(op):
    """A graph replayed on other values, and on other borders of as many segments, is what a call gives."""
    tensors, keywords = cases.case(op, "cuda")
    grads = [torch.randn_like(r) for r in cases.outputs(op, tensors, keywords)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(op, tensors, keywords, grads)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(op, tensors, keywords, grads)
    for lengths in (cases.LENGTHS, (30, 1, 0, 44)):
        fresh, other = cases.case(op, "cuda", lengths=lengths, seed=5)
        with torch.no_grad():
            for name, leaf in tensors.items():
                leaf.copy_(fresh[name])
        keywords["cu_seqlens"].copy_(other["cu_seqlens"])
        for result in captured:
            result.detach().fill_(float("nan"))
        graph.replay()
        for a, b in zip(captured, step(op, fresh, other, grads), strict=True):
            assert torch.equal(a, b)


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_wait_for_the_device(op, dtype):
    tensors, keywords = cases.case(op, "cuda", own=True)
    tensors = cases.detached(tensors, dtype)
    grads = [torch.randn_like(r) for r in cases.outputs(op, tensors, keywords)]
    step(op, tensors, keywords, grads)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(op, tensors, keywords, grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_op
def test_first_call_of_a_new_number_of_tokens(op, monkeypatch, tmp_path):
    """No more is compiled than belongs to the shape: well under the two seconds that a user may wait."""
    # What another run compiled must not hide a compilation.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    times = {}
    for lengths in ((1000, 24), (1,), (17, 0, 5), (64,) * 300, (5000, 1), (100_003,), (16,)):
        tensors, keywords = cases.case(op, "cuda", lengths=lengths, E=64, N=16, state=False)
        tensors = cases.detached(tensors, torch.bfloat16)
        torch.cuda.synchronize()
        start = time.perf_counter()
        got = cases.outputs(op, tensors, keywords)
        torch.autograd.grad(sum(r.float().sum() for r in got), list(tensors.values()))
        torch.cuda.synchronize()
        times[lengths[0], len(lengths)] = time.perf_counter() - start
    _, *later = times.values()
    assert max(later) < 2, times


@every_op
def test_second_derivatives_are_refused(op):
    tensors, keywords = cases.case(op, "cuda", lengths=(3, 2))
    first = torch.autograd.grad(
        cases.loss(cases.outputs(op, tensors, keywords)).square(), list(tensors.values()), create_graph=True
    )
    with pytest.raises(RuntimeError, match=rf"{op}_backward.* no autograd formula"):
        torch.autograd.grad(sum(g.sum() for g in first), tensors["x"])
