"""Graphs and packed batches of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from seqgraph.errors import DataError


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph.

    Attributes:
        x: node features (V, F), integer codes or floating; V >= 1.
        edge_index: from row 0 to row 1, (2, M) int64; an undirected edge is there in both directions.
        edge_attr: edge features (M, Fe), integer codes or floating, or None.
        y: targets (K,) float32, NaN where unknown, or None.
        pe: positional encoding (V, ...) float32, or None: see :mod:`seqgraph_graph_mamba.positional`.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None = None
    y: Tensor | None = None
    pe: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def num_nodes(self) -> int:
        """V."""
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        """M, directions counted apart."""
        return self.edge_index.shape[1]

    def validate(self, where: str = "graph") -> Graph:
        """Check shapes and values; returns itself.

        Raises:
            DataError: for no nodes, an edge that ends nowhere, or features that are not finite.
        """
        if self.x.ndim != 2 or not len(self.x):
            raise DataError(f"{where}: x must be (V, F) with at least one node, not {tuple(self.x.shape)}")
        if self.edge_index.ndim != 2 or self.edge_index.shape[0] != 2 or self.edge_index.is_floating_point():
            raise DataError(f"{where}: edge_index must be (2, M) of integers, not {tuple(self.edge_index.shape)}")
        if self.num_edges and (int(self.edge_index.min()) < 0 or int(self.edge_index.max()) >= self.num_nodes):
            raise DataError(f"{where}: an edge names a node outside 0..{self.num_nodes - 1}")
        if self.edge_attr is not None and (self.edge_attr.ndim != 2 or len(self.edge_attr) != self.num_edges):
            raise DataError(f"{where}: {self.num_edges} edges but edge_attr {tuple(self.edge_attr.shape)}")
        for name in ("x", "edge_attr", "pe"):
            value = getattr(self, name)
            if value is not None and value.is_floating_point() and not bool(value.isfinite().all()):
                raise DataError(
                    f"{where}: {name} has NaN or infinite values, first in row {_first_bad(value)}",
                    "fill or remove them; unknown targets may be NaN, features may not",
                )
        return self


def _first_bad(value: Tensor) -> int:
    return int((~value.isfinite().flatten(1).all(1)).nonzero()[0])


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Several graphs laid end to end, without padding.

    Attributes:
        x: node features (V, F), int64 codes or float32.
        edge_index: (2, M) int64, into the rows of the whole batch.
        cu_seqlens: node borders of the graphs, (S + 1,) int32.
        edge_attr: (M, Fe), int64 codes or float32, or None.
        y: (S, K) float32, or None.
        pe: (V, ...) float32, or None.
    """

    x: Tensor
    edge_index: Tensor
    cu_seqlens: Tensor
    edge_attr: Tensor | None = None
    y: Tensor | None = None
    pe: Tensor | None = None

    @property
    def num_graphs(self) -> int:
        """S."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_nodes(self) -> int:
        """V."""
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        """M."""
        return self.edge_index.shape[1]

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def batch(self) -> Tensor:
        """The graph of each node, (V,) int64."""
        lengths = (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()
        graphs = torch.arange(self.num_graphs, device=self.device)
        return torch.repeat_interleave(graphs, lengths, output_size=self.num_nodes)

    def __len__(self) -> int:
        return self.num_graphs

    def _map(self, change: Any) -> GraphBatch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: None if v is None else change(v) for k, v in values.items()}
        return GraphBatch(**changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GraphBatch:
        """Move every tensor to a device."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GraphBatch:
        """Copy every tensor to page-locked memory."""
        return self._map(Tensor.pin_memory)


def _widen(parts: list[Tensor]) -> Tensor:
    joined = torch.cat(parts)
    return joined.float() if joined.is_floating_point() else joined.long()


def collate(graphs: Sequence[Graph]) -> GraphBatch:
    """Pack graphs into one batch; codes become int64 and features float32.

    Raises:
        DataError: for no graphs, or when only some of them have edge features, targets or encodings (a graph
            without edges may lack edge features).
    """
    if not graphs:
        raise DataError("a batch needs at least one graph")
    sizes = torch.tensor([g.num_nodes for g in graphs])
    cu_seqlens = torch.zeros(len(graphs) + 1, dtype=torch.int32)
    cu_seqlens[1:] = sizes.cumsum(0)
    shifts = cu_seqlens[:-1].tolist()
    optional: dict[str, Tensor | None] = {}
    for name in ("edge_attr", "y", "pe"):
        held = [getattr(g, name) for g in graphs]
        found = [v for v in held if v is not None]
        lacking = [i for i, v in enumerate(held) if v is None and not (name == "edge_attr" and not graphs[i].num_edges)]
        if found and lacking:
            raise DataError(f"graph {lacking[0]} of the batch has no {name}, others have")
        if name == "y":
            optional[name] = torch.stack([v.reshape(-1) for v in found]).float() if found else None
        else:
            optional[name] = _widen(found) if found else None
    return GraphBatch(
        x=_widen([g.x for g in graphs]),
        edge_index=torch.cat([g.edge_index.long() + s for g, s in zip(graphs, shifts, strict=True)], dim=1),
        cu_seqlens=cu_seqlens,
        **optional,
    )


def from_pyg(data: Any, where: str = "graph") -> Graph:
    """Take a ``torch_geometric.data.Data``: x, edge_index, and edge_attr, y where it has them.

    A molecule that carries ``smiles`` is checked for OGB's codes, because PyG's ``from_smiles`` uses others in the
    same shapes.

    Raises:
        DataError: for a graph that cannot be used, named by ``where``.
    """
    if getattr(data, "x", None) is None:
        raise DataError(f"{where}: the Data has no x", "give every node at least one feature")
    edge_index = data.edge_index if data.edge_index is not None else torch.empty(2, 0, dtype=torch.int64)
    edge_attr = data.edge_attr
    if edge_attr is not None and edge_attr.ndim == 1:
        edge_attr = edge_attr[:, None]
    y = None if data.y is None else data.y.reshape(-1).float()
    graph = Graph(data.x, edge_index.long(), edge_attr, y).validate(where)
    if not graph.x.is_floating_point():
        from seqgraph_graph_mamba.features import check_pyg_molecule

        check_pyg_molecule(graph, data, where)
    return graph


def from_networkx(graph: Any, *, node: str = "x", edge: str | None = None, where: str = "graph") -> Graph:
    """Take a networkx graph whose nodes hold a feature list under ``node``, and edges under ``edge``.

    Nodes are numbered in networkx's own order; an undirected edge is written in both directions, a self-loop once.

    Raises:
        DataError: for nodes without the feature, or a graph that cannot be used.
    """
    index = {name: i for i, name in enumerate(graph.nodes)}
    missing = [name for name, held in graph.nodes(data=True) if node not in held]
    if missing:
        raise DataError(f"{where}: node {missing[0]!r} has no {node!r}", f"set graph.nodes[n][{node!r}] for every node")
    ends: list[tuple[int, int]] = []
    features: list[Any] = []
    for a, b, held in graph.edges(data=True):
        both = [(index[a], index[b])] if graph.is_directed() or a == b else [(index[a], index[b]), (index[b], index[a])]
        ends += both
        if edge is not None:
            features += [held[edge]] * len(both)
    x = torch.as_tensor([held[node] for _, held in graph.nodes(data=True)])
    return Graph(
        x=x.reshape(len(index), -1),
        edge_index=torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        edge_attr=torch.as_tensor(features).reshape(len(ends), -1) if edge is not None and ends else None,
    ).validate(where)
