"""Positional encodings of our own: any graph with at least one node, the same answer on every run.

PyG's ``AddLaplacianEigenvectorPE(k)`` fails for graphs of k nodes or fewer, and its answer above 100 nodes depends
on a start vector that no seed reaches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numba
import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.csgraph
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from seqgraph.errors import DataError
from seqgraph_graph_mamba.graph import Graph, GraphBatch
from seqgraph_graph_mamba.norm import RowNorm

Encoding = Literal["none", "rwse", "laplacian"]
Known = Literal["rwse", "laplacian"]

# Eigenvalue of a vector that a small graph does not have; real ones are never negative.
ABSENT = -1.0
_DENSE_LIMIT = 2048
# Deviations from the mean that a normalised probability is cut at.
_FARTHEST = 10.0


def random_walk_encoding(
    edge_index: np.ndarray, num_nodes: int, steps: int, borders: np.ndarray | None = None
) -> np.ndarray:
    """The chance that a walk of 1, 2, .. steps ends where it began (RWSE; Dwivedi et al., 2022).

    Args:
        edge_index: (2, M) integers; a walk follows the edges, parallel ones count twice.
        num_nodes: V >= 1. A node without an outgoing edge gets zeros.
        steps: K.
        borders: node borders of several graphs, (S + 1,); by default all nodes are one graph.

    Returns:
        (V, K) float32. Each walk's distribution is followed by itself, over the nodes that it has reached: memory is
        one number a node of the largest graph, and time what the walks can reach.
    """
    source, target = edge_index.astype(np.int64)
    rowptr = np.zeros(num_nodes + 1, dtype=np.int64)
    np.cumsum(np.bincount(source, minlength=num_nodes), out=rowptr[1:])
    col = target[np.argsort(source, kind="stable")]
    whole = np.array([0, num_nodes]) if borders is None else borders
    landing = np.zeros((num_nodes, steps), dtype=np.float32)
    _follow_walks(rowptr, col, whole.astype(np.int64), landing)
    return landing


@numba.njit(cache=True, nogil=True)
def _follow_walks(rowptr, col, borders, landing):
    longest = (borders[1:] - borders[:-1]).max()
    now, then = np.zeros(longest), np.zeros(longest)
    here, there = np.empty(longest, np.int64), np.empty(longest, np.int64)
    reached = np.full(longest, -1, np.int64)
    turn = 0
    for g in range(len(borders) - 1):
        first = borders[g]
        for start in range(first, borders[g + 1]):
            here[0], size = start - first, 1
            now[start - first] = 1.0
            for step in range(landing.shape[1]):
                grown = 0
                turn += 1
                for i in range(size):
                    node = here[i]
                    low, high = rowptr[first + node], rowptr[first + node + 1]
                    share = now[node] / max(high - low, 1)
                    now[node] = 0.0
                    for e in range(low, high):
                        other = col[e] - first
                        if reached[other] != turn:
                            reached[other] = turn
                            there[grown] = other
                            grown += 1
                        then[other] += share
                now, then = then, now
                here, there = there, here
                size = grown
                landing[start, step] = now[start - first]
            for i in range(size):
                now[here[i]] = 0.0


def laplacian_encoding(edge_index: np.ndarray, num_nodes: int, k: int) -> np.ndarray:
    """The k lowest eigenvectors of the unnormalised Laplacian, each with its eigenvalue (LapPE as in GraphGPS).

    Edges are read as undirected and simple; self-loops do not count. The trivial vector is kept, as GraphGPS does.
    A vector's sign is chosen so that its entries' cubes sum to a positive number (then: so that the first of its
    largest entries is positive). Vectors of equal eigenvalues are only fixed up to a rotation.

    Args:
        edge_index: (2, M) integers.
        num_nodes: V >= 1, at most a few thousand (a dense decomposition) unless k is far smaller.
        k: how many; a graph with V < k gets zero vectors with the eigenvalue -1 for the rest.

    Returns:
        (V, k, 2) float32: the vectors' entries, and the eigenvalues.

    Raises:
        DataError: if a large graph's vectors are not found.
    """
    encoding = np.zeros((num_nodes, k, 2), dtype=np.float32)
    encoding[:, :, 1] = ABSENT
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    if num_nodes <= _DENSE_LIMIT:
        dense = np.zeros((num_nodes, num_nodes))
        dense[source, target] = dense[target, source] = -1.0
        np.fill_diagonal(dense, -dense.sum(1))
        wanted = (0, min(k, num_nodes) - 1)
        values, vectors = scipy.linalg.eigh(dense, subset_by_index=wanted, overwrite_a=True, check_finite=False)
    else:
        adjacency = sp.csr_matrix((np.ones(len(source)), (source, target)), shape=(num_nodes, num_nodes))
        adjacency = ((adjacency + adjacency.T) > 0).astype(np.float64)
        values, vectors = _sparse_pairs(adjacency, k)
    found = min(k, len(values))
    values, vectors = values[:found].clip(min=0.0), vectors[:, :found]
    skew = (vectors**3).sum(0)
    top = vectors[np.abs(vectors).round(6).argmax(0), np.arange(found)]
    sign = np.where(np.abs(skew) > 1e-6, np.sign(skew), np.where(top < 0, -1.0, 1.0))
    encoding[:, :found, 0] = vectors * sign
    encoding[:, :found, 1] = values
    return encoding


def _sparse_pairs(adjacency: sp.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k lowest eigenvalues of the Laplacian, rising, and their vectors (V, k).

    Each component has one vector of eigenvalue 0, equal on its nodes; Lanczos' iteration, which starts from one vector,
    does not find many of one eigenvalue. So they are written down, largest component first, and the others are looked
    for in each component apart.
    """
    nodes = adjacency.shape[0]
    count, owner = sp.csgraph.connected_components(adjacency, directed=False)
    size = np.bincount(owner)
    if count == 1:
        return _connected_pairs(adjacency, k)
    largest = np.argsort(-size, kind="stable")
    trivial = largest[:k]
    values, vectors = [np.zeros(len(trivial))], [(owner[:, None] == trivial) / np.sqrt(size[trivial])]
    more = k - len(trivial)
    for component in largest if more else ():
        if size[component] == 1:
            break
        own = np.flatnonzero(owner == component)
        found, parts = _connected_pairs(adjacency[own][:, own], more + 1)
        spread = np.zeros((nodes, len(found) - 1))
        spread[own] = parts[:, 1:]
        values.append(found[1:])
        vectors.append(spread)
    together = np.concatenate(values)
    rank = np.argsort(together, kind="stable")[:k]
    return together[rank], np.concatenate(vectors, axis=1)[:, rank]


def _connected_pairs(adjacency: sp.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of a connected graph, at most as many as it has nodes."""
    nodes = adjacency.shape[0]
    laplacian = sp.diags(np.asarray(adjacency.sum(1)).ravel()) - adjacency
    if nodes <= max(_DENSE_LIMIT, k):
        wanted = (0, min(k, nodes) - 1)
        return scipy.linalg.eigh(laplacian.toarray(), subset_by_index=wanted, check_finite=False)
    # shift-invert just below zero; a fixed start vector, or the answer changes from run to run
    start = np.random.default_rng(0).standard_normal(nodes)
    try:
        values, vectors = scipy.sparse.linalg.eigsh(laplacian.tocsc(), k=k, sigma=-1e-2, v0=start)
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        raise DataError(
            f"the {k} lowest eigenvectors of a graph of {nodes:,} nodes were not found",
            hint="choose fewer with model.pe_size, or model.pe=rwse, which any graph has",
        ) from error
    rank = np.argsort(values)
    return values[rank], vectors[:, rank]


def encode_positions(graph: Graph, kind: Known, size: int) -> Tensor:
    """The encoding of one graph, (V, size) for "rwse", (V, size, 2) for "laplacian"; float32, on the CPU."""
    function = random_walk_encoding if kind == "rwse" else laplacian_encoding
    return torch.from_numpy(function(graph.edge_index.cpu().numpy(), graph.num_nodes, size))


def encode_batch(batch: GraphBatch, kind: Encoding, size: int) -> Tensor | None:
    """The encodings of a batch's graphs, computed on the CPU, each as if the graph were alone.

    A whole data set may be one batch: the walks of "rwse" are one loop over all nodes.
    """
    if kind == "none":
        return None
    borders, edges = batch.cu_seqlens.cpu().numpy().astype(np.int64), batch.edge_index.cpu().numpy()
    if kind == "rwse":
        return torch.from_numpy(random_walk_encoding(edges, batch.num_nodes, size, borders)).to(batch.device)
    owner = batch.batch.cpu().numpy()[edges[0]]
    # each graph's edges together, once, and not a search through all of them for every graph
    edges = edges[:, np.argsort(owner, kind="stable")]
    cuts = np.cumsum(np.bincount(owner, minlength=batch.num_graphs))[:-1]
    parts = [
        laplacian_encoding(own - start, end - start, size)
        for own, (start, end) in zip(np.split(edges, cuts, axis=1), pairwise(borders.tolist()), strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts)).to(batch.device)


class RandomWalkEncoder(nn.Module):
    """A linear layer on return probabilities (V, K) -> (V, d_out).

    GraphGPS and GNN+ put a batch norm before it; by default there is none here, since probabilities have a scale
    already. A step at which few graphs have any return has next to no variance: three steps in Peptides, where 15
    molecules have a ring of three, whose atoms are 35 deviations from the mean. Normalised values are cut at 10, which
    the published codes do not do: what multiplies them later on would make anything of them.
    """

    def __init__(self, steps: int, d_out: int, *, norm: bool = False) -> None:
        super().__init__()
        self.norm = RowNorm(steps) if norm else nn.Identity()
        self.linear = nn.Linear(steps, d_out)

    def forward(self, pe: Tensor, graphs: GraphBatch) -> Tensor:
        if isinstance(self.norm, RowNorm):
            pe = self.norm(pe).clamp(-_FARTHEST, _FARTHEST)
        return self.linear(pe)


class LaplacianEncoder(nn.Module):
    """GraphGPS's DeepSet of two layers over eigenvectors: (V, k, 2) -> (V, d_out).

    While training, every vector of every graph has its sign flipped with probability one half (GraphGPS draws one
    sign for all graphs of a batch).
    """

    def __init__(self, d_out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2 * d_out)
        self.outer = nn.Linear(2 * d_out, d_out)

    def forward(self, pe: Tensor, graphs: GraphBatch) -> Tensor:
        present = (pe[..., 1:] >= 0).to(pe.dtype)  # (V, k, 1)
        if self.training:
            flip = torch.randint(0, 2, (graphs.num_graphs, pe.shape[1]), device=pe.device) * 2 - 1
            pe = torch.stack([pe[..., 0] * flip[graphs.batch], pe[..., 1]], dim=-1)
        hidden = torch.relu(self.outer(torch.relu(self.inner(pe * present))))
        return (hidden * present).sum(1)
