"""The compiled CPU scan beside mambapy's pscan, in one process, turn and turn about.

    python benchmarks/kernels/selective_scan_cpu.py [--threads 2] [--repeats 7]

mambapy's path is what its ``MambaBlock.selective_scan`` does: exp(dt A) and dt B x as (B, L, D, N) tensors, a
Blelloch scan over them, and a product with C. Prints medians, the time per state update, errors against fp64 and the
memory that each adds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import time
from pathlib import Path

import torch
from mambapy.pscan import pscan

from seqgraph_kernels import selective_scan

B, L, D, N = 4, 1024, 128, 16


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """x, dt, A, B, C, D of B packed segments of L tokens."""
    g = torch.Generator().manual_seed(0)
    T = B * L
    x, C, Bm = torch.randn(T, D, generator=g), torch.randn(T, N, generator=g), torch.randn(T, N, generator=g)
    dt = torch.rand(T, D, generator=g) * 0.1
    A = -torch.arange(1, N + 1.0).repeat(D, 1)
    return [t.to(dtype).requires_grad_() for t in (x, dt, A, Bm, C, torch.ones(D))]


def ours(args: list[torch.Tensor], backend: str | None = None) -> torch.Tensor:
    return selective_scan(*args, cu_seqlens=torch.arange(0, B * L + 1, L), backend=backend)


def theirs(args: list[torch.Tensor]) -> torch.Tensor:
    x, dt, A, Bm, C, skip = args
    x, dt, Bm, C = (t.view(B, L, -1) for t in (x, dt, Bm, C))
    decay = torch.exp(dt.unsqueeze(-1) * A)
    h = pscan(decay, dt.unsqueeze(-1) * Bm.unsqueeze(2) * x.unsqueeze(-1))
    return ((h @ C.unsqueeze(-1)).squeeze(3) + skip * x).view(B * L, D)


def once(scan, grad: torch.Tensor) -> tuple[float, float]:
    """Seconds of a forward and of a backward."""
    args = inputs()
    start = time.perf_counter()
    y = scan(args)
    middle = time.perf_counter()
    y.backward(grad)
    return middle - start, time.perf_counter() - middle


def error(scan) -> float:
    """Largest relative error of output and gradients against the fp64 reference."""
    grad = torch.randn(B * L, D, generator=torch.Generator().manual_seed(1))
    results = []
    for args, f in ((inputs(), scan), (inputs(torch.float64), lambda a: ours(a, "reference"))):
        y = f(args)
        y.backward(grad.to(y.dtype))
        results.append([y.detach(), *(a.grad for a in args)])
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(*results))


def added_memory(name: str, threads: int, answer) -> None:
    """MiB that a forward and backward add to the peak of a fresh process which has compiled already."""
    torch.set_num_threads(threads)
    small = [t.detach()[:8].clone().requires_grad_() for t in inputs()[:2]]
    rest = inputs()[2:]
    selective_scan(*small, rest[0], *(t.detach()[:8].requires_grad_() for t in rest[1:3])).sum().backward()
    args, scan = inputs(), ours if name == "ours" else theirs
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    scan(args).sum().backward()
    answer.put(high_water() - before)


def high_water() -> float:
    """Peak resident memory of this process in MiB (Linux; getrusage would inherit the parent's)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure_memory(name: str, threads: int) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=added_memory, args=(name, threads, answer))
    process.start()
    value = answer.get()
    process.join()
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    grad = torch.randn(B * L, D, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    once(ours, grad)
    print(f"first call (import, compile or load from cache): {time.perf_counter() - start:.2f} s")
    once(theirs, grad)
    rows: dict[str, list[tuple[float, float]]] = {"ours": [], "mambapy": []}
    for _ in range(options.repeats):
        # Ours takes so little that one turn of theirs goes with several of ours.
        rows["ours"] += [once(ours, grad) for _ in range(5)]
        rows["mambapy"].append(once(theirs, grad))
    updates = B * L * D * N
    print(f"B {B}, L {L}, D {D}, N {N}: {updates / 1e6:.1f} M state updates, fp32, {options.threads} threads")
    medians = {}
    for name, times in rows.items():
        forward, backward = (statistics.median(t[i] for t in times) for i in (0, 1))
        medians[name] = forward + backward
        print(
            f"{name:8s} forward {forward * 1e3:8.2f} ms  backward {backward * 1e3:8.2f} ms  "
            f"{(forward + backward) / updates * 1e9:7.3f} ns/update  "
            f"error {error(ours if name == 'ours' else theirs):.1e}  "
            f"memory +{measure_memory(name, options.threads):.0f} MiB"
        )
    best = {n: min(f + b for f, b in t) for n, t in rows.items()}
    print(f"ratio {medians['mambapy'] / medians['ours']:.0f} (medians), {best['mambapy'] / best['ours']:.0f} (best)")
    print(f"a (T, D, N) tensor would be {updates * 4 / 2**20:.0f} MiB; the inputs are 4.5 MiB")


if __name__ == "__main__":
    main()
