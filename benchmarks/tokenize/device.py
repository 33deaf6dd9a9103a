"""Tokenizers and orders on one device: steps and subgraphs a second, waits for the device, and the CPU's own tokens.

Run: python benchmarks/tokenize/device.py [--device cuda] [--check FILE] [--write FILE]

Random graphs alone, so that neither data nor RDKit are needed. Tokens are the same on every device: ``--write`` keeps
their checksums, ``--check`` compares. A wait is a point where the host asks the device for a number.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from graphs import chains, machine, ring_and_random, seconds, uniform_pairs
from torch import Tensor

from seqgraph import order
from seqgraph.order.hashing import mix64
from seqgraph.tokenize import neighborhoods, walks
from seqgraph.tokenize.graph import read_graphs

NODES = 100_000


def checksum(*tensors: Tensor) -> int:
    """Of integers, in order; a few at a time, as 64-bit copies of all would not fit everywhere."""
    total, at = 0, 0
    for values in tensors:
        for part in values.flatten().split(1 << 22):
            number = torch.arange(at, at + len(part), device=part.device)
            total ^= int(mix64(mix64(part.long()) + number).sum())
            at += len(part)
    return total


def waits(function: Callable[[], Any], device: str) -> int | str:
    """How often one call asks a GPU for a number."""
    if device == "cpu":
        return "-"
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def walk_rows(device: str) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Name, steps, and what is timed."""
    cases = {
        "1,024 chains of 150": (chains(1024, 150), 1, 50),
        "20,000 nodes of degree 8": (SimpleNamespace(edge_index=ring_and_random(20_000, 8), num_nodes=20_000), 2, 50),
        "170,000 nodes of degree 14": (
            SimpleNamespace(edge_index=ring_and_random(170_000, 14), num_nodes=170_000),
            4,
            8,
        ),
    }
    for case, (data, rate, length) in cases.items():
        data.edge_index = data.edge_index.to(device)
        if hasattr(data, "batch"):
            data.batch = data.batch.to(device)
        graphs, steps = read_graphs(data), data.num_nodes * rate * length
        yield case, 0, lambda graphs=graphs: graphs
        for name, settings in {
            "no window": {"window": 0},
            "window 8": {"window": 8},
            "window 16": {"window": 16},
            "window 16, one length": {"window": 16, "sink": "stay"},
        }.items():

            def walk(graphs: Any = graphs, settings: Any = settings, rate: int = rate, length: int = length) -> Any:
                seed = torch.Generator().manual_seed(1)
                return walks(graphs, length=length, rate=rate, generator=seed, **settings)

            yield f"{case}, {name}", steps, walk


def subgraph_rows(device: str) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """The same for GMN's tokens, m = 4, s = 2, M = 4, nine a node."""
    for count in (128, 1024):
        data = chains(count, 150)
        data.edge_index, data.batch = data.edge_index.to(device), data.batch.to(device)
        graphs = read_graphs(data)
        for name, what in (("read once", graphs), ("all anew", data)):

            def find(what: Any = what) -> Any:
                seed = torch.Generator().manual_seed(1)
                return neighborhoods(what, max_length=4, walks=4, repeats=2, generator=seed)

            yield f"{count:,} chains of 150, {name}", data.num_nodes * 9, find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--orders", nargs="*", help="some orders; all by default (some are the CPU's: numba compiles them)"
    )
    parser.add_argument("--check", type=Path, help="a file of checksums to compare with")
    parser.add_argument("--write", type=Path, help="a file of checksums to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = json.loads(options.check.read_text()) if options.check else None
    sums: dict[str, int] = {}

    def agrees(name: str, *tensors: Tensor) -> str:
        sums[name] = checksum(*tensors)
        return "-" if known is None else {True: "yes", False: "NO"}[known[name] == sums[name]]

    print(machine(options.device))
    print("\n| walks | million steps/s | waits | as on the CPU |\n|---|---|---|---|")
    for name, steps, function in walk_rows(options.device):
        found = function()
        if not steps:  # the graph itself: where it differs, torch or numpy draw other graphs
            agrees(name, found.edge_index)
            continue
        same = agrees(name, found.stream.values, found.edge, found.features)
        del found
        speed = steps / seconds(function, options.repeats, options.device) / 1e6
        print(f"| {name} | {speed:.1f} | {waits(function, options.device)} | {same} |", flush=True)
    print("\n| subgraphs | million tokens/s | waits | as on the CPU |\n|---|---|---|---|")
    for name, tokens, function in subgraph_rows(options.device):
        found = function()
        same = agrees(name, found.stream.values, found.node, found.token, found.edge_index, found.edge)
        del found
        speed = tokens / seconds(function, options.repeats, options.device) / 1e6
        print(f"| {name} | {speed:.2f} | {waits(function, options.device)} | {same} |", flush=True)
    edges = uniform_pairs(NODES, 600_000).to(options.device)
    print(f"\n{NODES} nodes, {edges.shape[1]} stored edges\n\n| order | seconds | waits |\n|---|---|---|")
    for name, score in order.ORDERS.items():
        if options.orders is not None and name not in options.orders:
            continue

        def once(score: Any = score) -> Any:
            return score(edges, NODES)

        print(f"| {name} | {seconds(once, 1, options.device):.3f} | {waits(once, options.device)} |", flush=True)
    if options.write:
        options.write.write_text(json.dumps(sums, indent=1) + "\n")
    if known is not None and known != sums:
        raise SystemExit("the tokens differ from those of the CPU")


if __name__ == "__main__":
    main()
