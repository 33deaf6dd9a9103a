"""Seconds for every order of a graph of 100,000 nodes.

Run: python benchmarks/tokenize/orders.py [--device cpu] [--threads 2] [--repeats 3] [NAME ...]

600,000 random pairs; a power law with as many (preferential attachment); a grid of 316 x 316; labels are shuffled.
"""

from __future__ import annotations

import argparse

import torch
from graphs import grid, machine, power_law, seconds, uniform_pairs

from seqgraph import order

NODES = 100_000
ROWS = {
    **{name: (function, {}) for name, function in order.ORDERS.items()},
    "rwse, landing": (order.rwse, {"kind": "landing"}),
    "personalized-pagerank, epsilon 1e-6": (order.personalized_pagerank, {"epsilon": 1e-6}),
    "canonical_key (for ties)": (order.canonical_key, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="orders; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    graphs = {"random": (uniform_pairs(NODES, 600_000), NODES), "power law": (power_law(NODES, 6), NODES)}
    graphs["grid"] = (grid(316), 316 * 316)
    print(machine(options.device))
    for name, (edges, _) in graphs.items():
        print(f"{name}: {edges.shape[1]} stored edges, largest degree {int(torch.bincount(edges[0]).max())}")
    print("\n| order, seconds | " + " | ".join(graphs) + " |\n|---|" + "---|" * len(graphs))
    for name, (function, settings) in ROWS.items():
        if options.names and name not in options.names:
            continue
        cells = []
        for edges, size in graphs.values():
            moved = edges.to(options.device)

            def once(moved=moved, size=size, function=function, settings=settings) -> object:
                return function(moved, size, **settings)

            cells.append(f"{seconds(once, options.repeats, options.device):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
