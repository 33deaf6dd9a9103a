"""The Triton scan on a GPU beside mamba-ssm's CUDA scan as recorded on an H100.

    python benchmarks/kernels/selective_scan_gpu.py [--quick]     (with kernels/ on PYTHONPATH)

bf16 inputs, fp32 A, with D, gate, bias and softplus; medians of ``triton.testing.do_bench``, the second cache emptied
before each call. "replayed" is the same call captured in a CUDA graph, and the graph timed likewise: what the GPU takes
where the host does not hold it up. The recorded peer: H100 80 GB HBM3, torch 2.11.0+cu130, triton 3.6.0, mamba-ssm
2.3.2 built for sm_90, 2026-11-22; "both directions" there is a second call on flipped copies, ragged batches padded.
Where mamba_ssm can be imported, it is measured too.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.testing import do_bench

from seqgraph_kernels import selective_scan


@dataclass(frozen=True)
class Case:
    """A shape; ``mean`` is the true length of segments that a padded peer stretches to ``L``."""

    name: str
    B: int
    L: int
    D: int
    N: int
    direction: str
    peer_forward: float
    peer_both: float
    mean: int | None = None


CASES = [
    Case("both directions", 8, 4096, 2048, 16, "both", 3.151, 13.935),
    Case("forward only", 8, 4096, 2048, 16, "forward", 1.160, 5.934),
    Case("one long segment, both", 1, 131072, 1536, 16, "both", 11.246, 45.893),
    Case("short batch, both", 16, 1024, 2048, 16, "both", 1.559, 6.904),
    Case("200 graphs (mean 151 of 444), both", 200, 444, 192, 16, "both", 1.379, 4.684, 151),
    Case("2048 histories of 50", 2048, 50, 128, 32, "forward", 2.207, 8.750),
    Case("2048 histories of 200", 2048, 200, 128, 32, "forward", 5.096, 23.468),
]


def lengths(case: Case) -> torch.Tensor:
    if case.mean is None:
        return torch.full((case.B,), case.L)
    g = torch.Generator().manual_seed(0)
    drawn = torch.empty(case.B).exponential_(1 / case.mean, generator=g).round().long()
    return drawn.clamp(8, case.L)


def tensors(case: Case) -> tuple[dict[str, Any], int]:
    """Arguments of a scan on the GPU, and the number of tokens."""
    torch.manual_seed(0)
    size = lengths(case)
    T, D, N = int(size.sum()), case.D, case.N
    low = {"dtype": torch.bfloat16, "device": "cuda"}
    args = {"x": torch.randn(T, D, **low), "dt": torch.randn(T, D, **low) * 0.5, "z": torch.randn(T, D, **low)}
    args |= {"B": torch.randn(T, N, **low), "C": torch.randn(T, N, **low), "D": torch.ones(D, device="cuda")}
    args |= {"A": -torch.arange(1, N + 1.0, device="cuda").repeat(D, 1), "dt_bias": torch.full((D,), -4.0).cuda()}
    args = {k: v.requires_grad_() for k, v in args.items()}
    cu = torch.zeros(case.B + 1, dtype=torch.int32)
    cu[1:] = size.cumsum(0)
    return args | {"cu_seqlens": cu.cuda(), "max_seqlen": int(size.max())}, T


def timed(call: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> tuple[float, float]:
    """Median ms of a forward without gradients, and of a forward and backward."""
    with torch.no_grad():
        forward = do_bench(call, return_mode="median")
    grad = torch.randn_like(call())
    both = do_bench(lambda: torch.autograd.grad(call(), leaves, grad), return_mode="median")
    return forward, both


def replayed(call: Callable[[], object]) -> float:
    """Median ms of a graph that a call was captured in."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()  # its memory is the graph's
    time = do_bench(graph.replay, return_mode="median")
    del kept
    return time


def timed_replayed(call: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> tuple[float, float]:
    """As ``timed``, from graphs."""
    with torch.no_grad():
        forward = replayed(call)
    grad = torch.randn_like(call())
    return forward, replayed(lambda: torch.autograd.grad(call(), leaves, grad))


def floors(case: Case, T: int, updates: int) -> tuple[float, float]:
    """Least ms of a forward, and of a forward and backward: bytes in bf16 or exponentials, whichever takes longer.

    On an H100 a copy moves 3.02 TB/s and a loop of exponentials makes 4.17 T/s. Bytes: x, dt, z and the output; then
    those and the output's gradient again, and three gradients. The backward needs every decay once more.
    """
    wide = T * case.D * 2 / 3.02e9
    exponentials = updates / 4.17e9
    return max(4 * wide, exponentials), max(11 * wide, 2 * exponentials)


def measure(case: Case) -> None:
    args, T = tensors(case)
    leaves = [v for v in args.values() if isinstance(v, torch.Tensor) and v.requires_grad]

    def ours() -> torch.Tensor:
        return selective_scan(**args, dt_softplus=True, direction=case.direction)

    forward, both = timed(ours, leaves)
    forward_replayed, both_replayed = timed_replayed(ours, leaves)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(ours().sum(), leaves)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    updates = T * case.D * case.N * (2 if case.direction == "both" else 1)
    low, low_both = floors(case, T, updates)
    print(
        f"{case.name:36s} {f'{case.B} x {case.L}, D {case.D}, N {case.N}':28s} "
        f"{forward:8.3f} {both:9.3f} | {forward_replayed:8.3f} {both_replayed:9.3f} | "
        f"{case.peer_forward:8.3f} {case.peer_both:9.3f} | "
        f"{case.peer_forward / forward:5.2f} {case.peer_both / both:5.2f} | {low:6.3f} {low_both:6.3f} | "
        f"{updates / forward / 1e9:5.2f} T/s | {peak:6.0f} MiB",
        flush=True,
    )
    if importlib.util.find_spec("mamba_ssm"):
        peer(case)


def peer(case: Case) -> None:
    """mamba-ssm on the padded batch, in this process."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    low = {"dtype": torch.bfloat16, "device": "cuda"}
    x, dt, z = (torch.randn(case.B, case.D, case.L, **low).requires_grad_() for _ in range(3))
    Bm, C = (torch.randn(case.B, case.N, case.L, **low).requires_grad_() for _ in range(2))
    A = (-torch.arange(1, case.N + 1.0, device="cuda").repeat(case.D, 1)).requires_grad_()
    skip, bias = torch.ones(case.D, device="cuda"), torch.full((case.D,), -4.0, device="cuda")

    def one(flip: bool) -> torch.Tensor:
        moved = [t.flip(-1) if flip else t for t in (x, dt, Bm, C, z)]
        y = selective_scan_fn(moved[0], moved[1], A, moved[2], moved[3], skip, moved[4], bias, delta_softplus=True)
        return y.flip(-1) if flip else y

    def call() -> torch.Tensor:
        return one(False) + one(True) if case.direction == "both" else one(False)

    forward, both = timed(call, [x, dt, z, Bm, C, A])
    print(f"{'    mamba-ssm here':65s} {forward:8.3f} {both:9.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the two shapes of short segments only")
    parser.add_argument("--cases", type=int, nargs="+", metavar="ROW", help="these rows only, counted from 0")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    heads = " | ".join(f"{head:>8s} {'fwd+bwd':>9s}" for head in ("ours", "replayed", "recorded"))
    print(f"{'':65s} {heads} | ratios      | floors        |")
    rows = options.cases or ([4, 5] if options.quick else range(len(CASES)))
    for row in rows:
        measure(CASES[row])


if __name__ == "__main__":
    main()
