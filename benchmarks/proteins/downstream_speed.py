"""Tokens a second and peak memory against the length of proteins: lc-plm beside esm2 of the same parameter count.

    python benchmarks/proteins/downstream_speed.py --out OUT [--sizes 8m 35m] [--device cuda]
    (with the repository, kernels/ and plugins/ on PYTHONPATH, or seqgraph installed)

Forward (logits of every seventh token, no gradient) and training (with backward pass and AdamW's step), under bfloat16
on CUDA. A batch holds ``--tokens`` tokens, or one protein where that is longer; proteins of a batch have one length, so
that ESM-2 pays for no padding. "esm2 sdpa" is fair-esm's class with torch's fused attention, "esm2 fair-esm" the class
as it is. Median of at most ``--repeats`` after two warm-ups; peak is of the device's allocations. What does not fit
says so. The lengths at which lc-plm overtakes are interpolated on log-log lines.

``--limit`` bounds everything: each model has its share of what is left, shorter lengths first, and what has no time is
missing. Every result is printed, and written to OUT/speed.json, as soon as it is there; OUT/speed.md at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from seqgraph.config import load_config
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import ProteinAlphabet

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def model_of(kind: str, size: str) -> torch.nn.Module:
    """The model of a preset, with random weights."""
    import seqgraph as sg

    family = kind.split()[0]
    fields = dict(load_config(f"{family}-{size}").model.fields)
    if family == "esm2":
        fields["attention"] = kind.split()[1]
    torch.manual_seed(0)
    return sg.create_model(family, **fields)


def proteins(length: int, tokens: int, device: str) -> TokenStream:
    """Random residues: as many proteins of so many tokens as the budget holds, at least one."""
    many = max(1, tokens // length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 24, (many, length), generator=generator)
    ids[:, 0], ids[:, -1] = ProteinAlphabet.cls_id, ProteinAlphabet.eos_id
    return TokenStream.from_dense(ids).to(device)


class OutOfTime(Exception):
    """The limit."""


def measure(kind: str, size: str, options: argparse.Namespace, until: float) -> Iterator[dict[str, Any]]:
    """One result for each length and way, as many as there is time for."""
    cuda = options.device == "cuda"
    model = model_of(kind, size).to(options.device)
    count = sum(p.numel() for p in model.parameters())
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=cuda)
    ways, left = ["forward", "training"], 2 * len(options.lengths)
    for length in options.lengths:
        stream = proteins(length, options.tokens, options.device)
        where = torch.arange(1, stream.num_tokens - 1, 7, device=options.device)
        target = stream.values[where]
        for way in list(ways):
            model.train(way == "training")

            def step(way: str = way, stream: TokenStream = stream, where: Any = where, target: Any = target) -> None:
                context: AbstractContextManager = (
                    torch.autocast("cuda", torch.bfloat16) if options.device == "cuda" else nullcontext()
                )
                with context, torch.set_grad_enabled(way == "training"):
                    loss = F.cross_entropy(model(stream, where).float(), target)
                if way == "training":
                    loss.backward()
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)

            found: dict[str, Any] = {
                "model": kind, "size": size, "parameters": count, "way": way, "length": length,
                "tokens": stream.num_tokens,
            }  # fmt: skip
            began = time.monotonic()
            if began > until:
                return
            try:
                found |= timed(step, options.repeats, min(options.patience, (until - began) / left), cuda)
                found["tokens_per_second"] = round(stream.num_tokens / found["seconds"])
            except torch.OutOfMemoryError:
                found["failed"] = "out of memory"
                optimiser.zero_grad(set_to_none=True)
            if cuda:
                torch.cuda.empty_cache()
            left -= 1
            found["measuring"] = time.monotonic() - began
            yield found
            if "failed" in found or found["seconds"] > options.patience:
                ways.remove(way)  # longer ones would be worse


def timed(step: Callable[[], None], repeats: int, patience: float, cuda: bool) -> dict[str, Any]:
    """Median seconds and peak GiB of a step, of as many repeats as ``patience`` seconds allow."""

    def once() -> float:
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    second = once()  # the first after all is compiled
    many = max(1, min(repeats, int(patience / second)))
    seconds = [once() for _ in range(many)]
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else None
    return {"seconds": median(seconds), "repeats": many, "peak_gib": peak}


def crossing_point(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """The length from which ours is larger for good, on log-log lines between those measured; the shortest one that was
    measured if it always is, nothing if it is not at the longest."""
    shared = sorted(ours.keys() & theirs.keys())
    lead = [math.log(ours[n] / theirs[n]) for n in shared]
    if not shared or lead[-1] <= 0:
        return None
    for i in range(len(shared) - 1, 0, -1):
        if lead[i - 1] <= 0:
            a, b = math.log(shared[i - 1]), math.log(shared[i])
            return math.exp(a + (b - a) * -lead[i - 1] / (lead[i] - lead[i - 1]))
    return shared[0]


def crossing(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """:func:`crossing_point` in words."""
    shared = sorted(ours.keys() & theirs.keys())
    point = crossing_point(ours, theirs)
    if point is None:
        return f"not up to {shared[-1]:,}" if shared else "not measured"
    return f"from below {shared[0]:,} on" if point == shared[0] else f"from {point:,.0f} on"


def table_of(results: list[dict[str, Any]]) -> str:
    """Tokens a second and peak GiB: a line for each way and model, a column a length; then the crossings."""
    lengths = sorted({r["length"] for r in results})
    head = ["way", "model", "parameters", *(f"{n:,}" for n in lengths)]
    lines = ["tokens/s (peak GiB)", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for r in results:
        groups.setdefault((r["size"], r["way"], r["model"]), {})[r["length"]] = r
    for (size, way, model), found in groups.items():
        cells = []
        for n in lengths:
            r = found.get(n, {"failed": ""})
            peak = f" ({r['peak_gib']:.2f})" if r.get("peak_gib") is not None else ""
            cells.append(r["failed"] if "failed" in r else f"{r['tokens_per_second']:,}{peak}")
        count = next(iter(found.values()))["parameters"]
        lines.append("| " + " | ".join([way, f"{model} {size}", f"{count:,}", *cells]) + " |")
    lines.append("")
    for (size, way, model), found in groups.items():
        ours = groups.get((size, way, "lc-plm"), {})
        if model == "lc-plm" or not ours:
            continue
        fast = [{n: r["tokens_per_second"] for n, r in g.items() if "failed" not in r} for g in (ours, found)]
        lean = [{n: 1 / r["peak_gib"] for n, r in g.items() if r.get("peak_gib")} for g in (ours, found)]
        lines.append(f"{way}, {size}: faster than {model} {crossing(*fast)}, leaner {crossing(*lean)}")
    return "\n".join(lines)


def line(found: dict[str, Any]) -> str:
    """A result in words."""
    said = found.get("failed") or (
        f"{found['tokens_per_second']:,} tokens/s, {found['repeats']} x {found['seconds'] * 1e3:,.1f} ms, "
        f"{found['peak_gib']} GiB"
    )
    return f"{found['model']} {found['size']} {found['way']} {found['length']:,}: {said}; {found['measuring']:.1f} s"


def main() -> None:
    """See the module."""
    # The imports above count too: nearly all of what the process has computed until here.
    began = time.monotonic() - time.process_time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["8m"], choices=["8m", "35m"])
    parser.add_argument("--models", nargs="+", default=["esm2 sdpa", "esm2 fair-esm", "lc-plm"])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=32768, help="of a batch")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds of a step after which a model stops")
    parser.add_argument("--limit", type=float, default=600, help="seconds for everything")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    # cuDNN makes a plan for each shape; the flash kernels need none, and training uses them.
    torch.backends.cuda.enable_cudnn_sdp(False)
    deadline = began + options.limit

    def stop(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - 0.5 - time.monotonic()))
    results: list[dict[str, Any]] = []
    wanted = [(size, kind) for size in options.sizes for kind in options.models]
    try:
        for i, (size, kind) in enumerate(wanted):
            share = (deadline - 1 - time.monotonic()) / (len(wanted) - i)
            before = len(results)
            for found in measure(kind, size, options, time.monotonic() + share):
                results.append(found)
                (options.out / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
                print(line(found) + f", {time.monotonic() - began:.1f} s in", flush=True)
            if len(results) - before < 2 * len(options.lengths) and not any("failed" in r for r in results[before:]):
                print(f"no time for more of {kind} {size}", flush=True)
    except OutOfTime:
        print(f"stopped at the limit, in {kind} {size}", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    text = f"{where}, torch {torch.__version__}\n\n{table_of(results)}"
    (options.out / "speed.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
