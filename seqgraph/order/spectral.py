"""Eigenvector centrality of every connected component of a batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph.order.graph import Adjacency, check_graph, components, simple_edges, snap

_KRYLOV = 40
_KEPT = 10
_RESTARTS = 400
_RESIDUAL = 1e-12


def eigenvector(
    edge_index: Tensor, num_nodes: int, batch: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Eigenvector centrality (Bonacich, 1972) on the simple undirected graph; the most central last.

    Every connected component has its own positive (Perron) vector x with largest eigenvalue r, scaled to a root mean
    square of 1, and a node scores (A x)_i = r x_i: the centralities of its neighbours. So a disconnected graph has no
    component of zeros, a node without neighbours scores 0, the nodes of a d-regular component score d, and in a
    connected graph the order is that of the usual centrality. The sign is fixed by Perron's theorem, nothing is
    random.

    Restarted Lanczos from the vector of ones, in float64, for all components in the same matrix-free steps. Scores
    nearer than 1e-6 of the graph's largest are taken as tied.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted, or None.
        generator: not used; the scores are deterministic.

    Returns:
        Scores (V,) float64, 0 or more.

    Raises:
        DataError: for a malformed graph.
    """
    edge_index, batch = check_graph(edge_index, num_nodes, batch)
    graph = simple_edges(edge_index, num_nodes)
    if not num_nodes:
        return torch.zeros(0, dtype=torch.float64, device=edge_index.device)
    component = torch.unique(components(graph), return_inverse=True)[1]
    size = torch.bincount(component)
    x = _perron(graph, component, size)
    neighbors = torch.zeros_like(x).index_add(0, graph.row, x[graph.col]).clamp_min(0)
    return snap(neighbors * size[component].double().sqrt(), batch, rtol=1e-6)


def _perron(graph: Adjacency, component: Tensor, size: Tensor) -> Tensor:
    """Unit Perron vector of each component, side by side, (V,), by Lanczos with thick restarts (Wu & Simon, 2000)."""
    steps = min(_KRYLOV, int(size.max()))
    kept = min(_KEPT, steps - 1)
    basis = (1.0 / size[component].double().sqrt())[:, None]  # (V, 1)
    ritz = basis.new_zeros(len(size), 0)
    for _ in range(_RESTARTS):
        basis, projected, following = _extend(graph, component, basis, ritz, steps)
        value, vector = torch.linalg.eigh(projected)  # (C, k), (C, k, k)
        x = (vector[component, :, -1] * basis).sum(1)
        x = x * torch.where(_sum(x, component, size) < 0, -1.0, 1.0)[component]
        residual = torch.zeros_like(x).index_add(0, graph.row, x[graph.col]) - value[component, -1] * x
        if float(residual.abs().max()) <= _RESIDUAL:
            break
        best = [(vector[component, :, -1 - i] * basis).sum(1) for i in range(kept)]
        basis, ritz = torch.stack([*best, following], 1), value.flip(1)[:, :kept]
    return x


def _sum(x: Tensor, component: Tensor, size: Tensor) -> Tensor:
    """Sum over each component: (V, ...) to (C, ...)."""
    return x.new_zeros(len(size), *x.shape[1:]).index_add(0, component, x)


def _extend(
    graph: Adjacency, component: Tensor, start: Tensor, ritz: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Grow the orthonormal basis of each component from start (V, j) to (V, k).

    All columns of ``start`` but the last are Ritz vectors, with values ``ritz`` (C, j - 1).

    Returns:
        The basis, A projected onto it (C, k, k), and the unit vector that would come next (V,).
    """
    size = torch.bincount(component)
    basis = start.new_zeros(len(start), steps)
    done = ritz.shape[1]
    basis[:, :done], following = start[:, :done], start[:, done]
    projected = start.new_zeros(len(size), steps, steps)
    projected[:, range(done), range(done)] = ritz
    for j in range(done, steps):
        basis[:, j] = following
        w = torch.zeros_like(basis[:, 0]).index_add(0, graph.row, basis[graph.col, j])
        # Twice is enough to keep the basis orthogonal (Parlett).
        for turn in range(2):
            along = _sum(basis[:, : j + 1] * w[:, None], component, size)  # (C, j + 1)
            w = w - (along[component] * basis[:, : j + 1]).sum(1)
            if turn == 0:
                projected[:, j, : j + 1] = projected[:, : j + 1, j] = along
        norm = _sum(w * w, component, size).sqrt()
        # A component whose Krylov space is complete goes on with zeros, which add nothing to its vector.
        norm = torch.where(norm > 1e-10, norm, torch.inf)
        following = w / norm[component]
    return basis, projected, following
