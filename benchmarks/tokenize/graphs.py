"""Graphs and clocks that the benchmarks share."""

from __future__ import annotations

import csv
import gzip
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

# What `import seqgraph` does for its users, and before torch is imported: otherwise torch's waiting threads spin on the
# cores that the next function is timed on.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "graph"


def both_ways(pairs: Tensor) -> Tensor:
    """Every edge in both directions, (2, 2 M)."""
    return torch.cat([pairs, pairs.flip(0)], 1)


def ring_and_random(nodes: int, degree: int) -> Tensor:
    """A ring, so that no node is without an edge, and random pairs up to the mean degree."""
    start = torch.arange(nodes)
    pairs = torch.randint(0, nodes, (2, nodes * (degree - 2) // 2), generator=torch.Generator().manual_seed(0))
    return both_ways(torch.cat([torch.stack([start, (start + 1) % nodes]), pairs], 1))


def uniform_pairs(nodes: int, pairs: int) -> Tensor:
    """As many random pairs."""
    return both_ways(torch.randint(0, nodes, (2, pairs), generator=torch.Generator().manual_seed(0)))


def power_law(nodes: int, each: int) -> Tensor:
    """Preferential attachment: every node draws so many ends of the edges before it; then shuffled labels."""
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(nodes), each)
    ends = np.zeros(2 * len(source), np.int64)
    ends[::2] = source
    for i, place in enumerate((rng.random(len(source)) * 2 * np.arange(len(source))).astype(np.int64).tolist()):
        ends[2 * i + 1] = ends[place]
    labels = torch.from_numpy(rng.permutation(nodes))
    return both_ways(labels[torch.from_numpy(ends.reshape(-1, 2).T.copy())])


def grid(side: int) -> Tensor:
    """A square grid with shuffled labels: a long way from end to end."""
    node = torch.arange(side * side)
    right, down = node[node % side < side - 1], node[: side * (side - 1)]
    pairs = torch.cat([torch.stack([right, right + 1]), torch.stack([down, down + side])], 1)
    return both_ways(torch.randperm(side * side, generator=torch.Generator().manual_seed(0))[pairs])


def chains(graphs: int, nodes: int) -> SimpleNamespace:
    """A batch shaped like peptides, without their file: each node joined to one of the three before it, and rings."""
    rng = np.random.default_rng(0)
    node = np.arange(1, nodes)
    before = node - 1 - rng.integers(0, np.minimum(node, 3), (graphs, nodes - 1))
    ring = np.arange(6, nodes, 15)
    source = np.concatenate([np.broadcast_to(node, before.shape), np.broadcast_to(ring, (graphs, len(ring)))], 1)
    target = np.concatenate([before, np.broadcast_to(ring - 5, (graphs, len(ring)))], 1)
    pairs = np.stack([source, target]) + nodes * np.arange(graphs)[:, None]
    return SimpleNamespace(
        edge_index=both_ways(torch.from_numpy(pairs.reshape(2, -1))),
        num_nodes=graphs * nodes,
        batch=torch.arange(graphs).repeat_interleave(nodes),
    )


def peptides(count: int) -> list[SimpleNamespace]:
    """The first molecules of Peptides-func (LRGB), with ``edge_index`` and ``num_nodes``.

    Raises:
        SystemExit: when the file is not there.
    """
    path = SHARED / "peptides-func" / "peptide_multi_class_dataset.csv.gz"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: LRGB's CSV belongs in it")
    from rdkit import Chem

    found = []
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            molecule = Chem.MolFromSmiles(row["smiles"])
            bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()]
            pairs = torch.tensor(bonds, dtype=torch.int64).reshape(-1, 2).T
            found.append(SimpleNamespace(edge_index=both_ways(pairs), num_nodes=molecule.GetNumAtoms()))
            if len(found) == count:
                break
    return found


def join(graphs: list[SimpleNamespace]) -> SimpleNamespace:
    """One batch of them."""
    sizes = torch.tensor([graph.num_nodes for graph in graphs])
    shifts = (sizes.cumsum(0) - sizes).tolist()
    return SimpleNamespace(
        edge_index=torch.cat([graph.edge_index + shift for graph, shift in zip(graphs, shifts, strict=True)], 1),
        num_nodes=int(sizes.sum()),
        batch=torch.repeat_interleave(torch.arange(len(graphs)), sizes),
    )


def seconds(function: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Of the fastest run, after one to compile."""
    function()
    times = []
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def machine(device: str = "cpu") -> str:
    """What the numbers were taken on."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return f"{model}, {load}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
