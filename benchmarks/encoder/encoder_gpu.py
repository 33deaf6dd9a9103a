"""Tokens per second of a bidirectional stack of LC-PLM's size on a GPU, beside a transformer of ESM-2 650M's.

    python benchmarks/encoder/encoder_gpu.py [--mixer ssd] [--lengths 1024 ...] [--skip peers memory ...]
    (with the repository and kernels/ on PYTHONPATH; needs torch and triton, no more)

bf16 parameters and activations, fp32 residual stream, 65,536 tokens a batch. One layer, norm and residual included,
is timed (median of ``triton.testing.do_bench``) and scaled to 48; ``memory`` checks the scaling on a true stack. MFU
counts matrix products and the scan's operations, each projection that the directions share once, against 989 TFLOP/s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial

import naive
import torch
import transformer
import triton
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule
from triton.testing import do_bench

from seqgraph.encode import Encoder
from seqgraph.stream import TokenStream

WIDTH, LAYERS, TOKENS, PEAK = 1536, 48, 65536, 989e12
LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
# Recorded on an H100, 2026-11-22: mamba-ssm's CUDA scan on flipped copies, thousand tokens a second.
NAIVE = {256: (41, 13), 1024: (41, 14), 4096: (40, 13), 8192: (39, 13), 16384: (39, 13), 32768: (38, 13)}


def ragged() -> list[int]:
    """Lengths of proteins, more or less: log-normal around 300, up to 8,192, and what is missing to the batch."""
    g = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    while (left := TOKENS - sum(lengths)) > 0:
        drawn = int(torch.empty(1).log_normal_(5.7, 0.9, generator=g).clamp(20, 8192))
        lengths.append(min(drawn, left))
    return lengths


def encoder(mixer: str, layers: int = 1, **options) -> Encoder:
    torch.manual_seed(0)
    sizes = {"d_state": 16} if mixer == "s6" else {"d_state": 128, "headdim": 64}
    return Encoder(WIDTH, layers, mixer=mixer, share="projections", **sizes, **options).to("cuda", torch.bfloat16)


def inputs(width: int = WIDTH) -> Tensor:
    g = torch.Generator("cuda").manual_seed(1)
    return torch.randn(TOKENS, width, device="cuda", generator=g, dtype=torch.bfloat16)


def borders(lengths: Iterable[int]) -> Tensor:
    cu = torch.tensor([0, *lengths]).cumsum(0)
    return cu.to("cuda", torch.int32)


def times(call: Callable[[], Iterable[Tensor]], leaves: list[Tensor], rep: int) -> tuple[float, float]:
    """Median ms of a forward pass without gradients, and of a forward and backward pass."""

    def training() -> None:
        outputs = tuple(call())
        torch.autograd.grad(outputs, leaves, grads)

    with torch.no_grad():
        grads = tuple(torch.randn_like(y) for y in call())
        forward = do_bench(call, warmup=rep // 4, rep=rep, return_mode="median")
    return forward, do_bench(training, warmup=rep // 4, rep=rep, return_mode="median")


def block_call(model: Encoder, lengths: list[int]) -> tuple[Callable[[], tuple[Tensor, Tensor]], list[Tensor]]:
    """A layer between others: branch and stream in, branch and stream out."""
    block, branch, stream = model.layers[0], inputs().requires_grad_(), inputs().float().requires_grad_()
    call = partial(block, branch, stream, borders(lengths), max_seqlen=max(lengths))
    return call, [branch, stream, *block.parameters()]


def flops(model: Encoder) -> float:
    """Of a layer's forward pass over the batch: weights in products, and 6 (s6) or 4 (ssd) operations a state."""
    mixer = model.layers[0].mixer
    products = sum(p.numel() for n, p in mixer.named_parameters() if n.endswith("proj.weight"))
    inner = mixer.mamba_fwd
    states = 2 * inner.d_inner * inner.d_state
    return TOKENS * (2.0 * products + states * (6 if hasattr(inner, "x_proj") else 4))


def table(options) -> None:
    model, peer = encoder(options.mixer), transformer.Layer().to("cuda", torch.bfloat16)
    print(f"\nThousand tokens a second, {LAYERS} layers (ms a layer | MFU); forward, then training")
    print(f"{'length':>8s} | {'ours':^46s} | {'naive':>9s} | {'ESM-2 650M shape':^46s} | ratio")
    for length in [*options.lengths, None]:
        lengths = [length] * (TOKENS // length) if length else ragged()
        forward, training = times(*block_call(model, lengths), options.rep)
        each = flops(model)
        row = f"{length or 'ragged':>8} | {rate(forward, each, LAYERS)} {rate(training, 3 * each, LAYERS)}"
        row += " | {:>4} {:>4} | ".format(*NAIVE.get(length, ("", "")))
        if length and "peers" not in options.skip:
            x = inputs(transformer.WIDTH).view(-1, length, transformer.WIDTH).requires_grad_()
            call = partial(peer, x, *transformer.angles(length, "cuda"))
            theirs = times(lambda: [call()], [x, *peer.parameters()], options.rep)  # noqa: B023
            each, depth = transformer.flops(length, TOKENS), transformer.LAYERS
            row += f"{rate(theirs[0], each, depth)} {rate(theirs[1], 3 * each, depth)} | "
            row += f"{theirs[0] * depth / forward / LAYERS:.2f} {theirs[1] * depth / training / LAYERS:.2f}"
        print(row, flush=True)


def rate(milliseconds: float, operations: float, layers: int) -> str:
    thousand = TOKENS / milliseconds / layers
    return f"{thousand:6.1f} ({milliseconds:6.2f} |{operations / milliseconds / PEAK * 1e5:5.1f}%)"


def measure_naive(options) -> None:
    """The published form with our scan, at one length."""
    model, u = encoder("s6"), inputs().view(-1, 1024, WIDTH).requires_grad_()
    mixer = model.layers[0].mixer
    forward, training = times(lambda: [naive.forward(mixer, u)], [u, *mixer.parameters()], options.rep)
    print(f"\nNaive form with our scan, length 1024, no norm: {rate(forward, 0, LAYERS)} {rate(training, 0, LAYERS)}")


def part_of(name: str, shapes: list) -> str:
    """Which part of a layer an operator belongs to; products are told by their sizes, '' is the rest."""
    if name.startswith("seqgraph::"):
        return name.removeprefix("seqgraph::").removesuffix("_backward")
    if name not in ("aten::mm", "aten::addmm"):
        return ""
    sizes = {size for shape in shapes for size in shape}
    if max(size for size in sizes if size != TOKENS) >= 4 * WIDTH:
        return "in_proj"
    return "dt_proj" if 96 in sizes else "x_proj" if 128 in sizes else "out_proj"


def breakdown(options) -> None:
    """Milliseconds of each part of a layer, from the profiler: sums over kernels."""
    model = encoder(options.mixer)
    call, leaves = block_call(model, [1024] * (TOKENS // 1024))

    grads = [torch.ones_like(y) for y in call()]

    def training() -> None:
        torch.autograd.grad(call(), leaves, grads)

    columns = []
    for run in (torch.no_grad()(call), training):
        # The profiler's own buffers are asked for in its first steps.
        steps = schedule(wait=0, warmup=3, active=5)
        both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with profile(activities=both, schedule=steps, record_shapes=True, acc_events=True) as seen:
            for _ in range(8):
                run()
                torch.cuda.synchronize()
                seen.step()
        events = seen.key_averages(group_by_input_shape=True)
        parts: dict[str, float] = {}
        for event in events:
            if part := part_of(event.key, event.input_shapes):
                inside = event.device_time_total if event.key.startswith("seqgraph::") else event.self_device_time_total
                parts[part] = parts.get(part, 0.0) + inside / 5e3
        # The step's own marker spans its kernels, and the gaps between them.
        kernels = [e for e in events if e.device_type.name == "CUDA" and not e.key.startswith("ProfilerStep")]
        whole = sum(event.self_device_time_total for event in kernels) / 5e3
        columns.append(parts | {"rest": whole - sum(parts.values()), "all": whole})
        if options.verbose:
            print(seen.key_averages(group_by_input_shape=True).table(sort_by="self_device_time_total", row_limit=45))
    print("\nA layer's kernels at length 1024, ms: forward, training")
    for name in columns[1]:
        print(f"  {name:16s} {columns[0].get(name, 0.0):7.3f} {columns[1][name]:7.3f}")


def memory(options) -> None:
    """A true stack: time a layer, and the peak, with and without recomputation."""
    cu = borders([1024] * (TOKENS // 1024))
    source = torch.arange(TOKENS, device="cuda")
    print(f"\nStack of {options.stack} layers, training at length 1024; peaks are above the parameters")
    base = 0.0
    for again in (False, True):
        model, values = encoder(options.mixer, options.stack, checkpoint=again), inputs().requires_grad_()
        stream = TokenStream(values, cu, source, max_seqlen=1024)
        leaves = [values, *model.parameters()]
        forward, training = times(lambda: [model(stream).values], leaves, options.rep)  # noqa: B023
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(model(stream).values.sum(), leaves)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        base = base or training
        row = f"  checkpoint {again!s:5s}: {forward / options.stack:.2f}, {training / options.stack:.2f} ms a layer"
        row += f" ({training / base - 1:+.0%}), peak {peak:.1f} GiB, {peak / options.stack:.2f} a layer"
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixer", choices=["s6", "ssd"], default="s6")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--rep", type=int, default=150, help="milliseconds of each measurement")
    parser.add_argument("--stack", type=int, default=4, help="layers of the true stack")
    parser.add_argument("--skip", nargs="*", default=[], choices=["table", "peers", "naive", "breakdown", "memory"])
    parser.add_argument("--verbose", action="store_true", help="every operator of the breakdown")
    options = parser.parse_args()
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}; mixer {options.mixer}")
    for name, section in (("table", table), ("naive", measure_naive), ("breakdown", breakdown), ("memory", memory)):
        if name not in options.skip:
            section(options)


if __name__ == "__main__":
    main()
