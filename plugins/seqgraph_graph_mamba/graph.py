"""Graphs and packed batches of graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from seqgraph.errors import DataError

Level = Literal["graph", "node"]


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph.

    Attributes:
        x: node features (V, F), integer codes or floating; V >= 1.
        edge_index: from row 0 to row 1, (2, M) int64; an undirected edge is there in both directions.
        edge_attr: edge features (M, Fe), integer codes or floating, or None.
        y: targets of the graph (K,) float32, NaN where unknown; or a class of each node (V,) int64, -1 where unknown
            or not asked for; or None.
        pe: positional encoding (V, ...) float32, or None: see :mod:`seqgraph_graph_mamba.positional`.
        pairs: pairs of nodes that a link task asks about, (2, L) int64, or None.
        pair_y: whether each pair belongs together, (L,) float32 of 0 and 1, or None.
        columns: what else is known of each node, (V, ...) by name.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None = None
    y: Tensor | None = None
    pe: Tensor | None = None
    pairs: Tensor | None = None
    pair_y: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

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
            DataError: for no nodes, an edge that ends nowhere, a class for each but some nodes, or features that are
                not finite.
        """
        if self.x.ndim != 2 or not len(self.x):
            raise DataError(f"{where}: x must be (V, F) with at least one node, not {tuple(self.x.shape)}")
        if self.edge_index.ndim != 2 or self.edge_index.shape[0] != 2 or self.edge_index.is_floating_point():
            raise DataError(f"{where}: edge_index must be (2, M) of integers, not {tuple(self.edge_index.shape)}")
        if self.num_edges and (int(self.edge_index.min()) < 0 or int(self.edge_index.max()) >= self.num_nodes):
            raise DataError(f"{where}: an edge names a node outside 0..{self.num_nodes - 1}")
        if self.edge_attr is not None and (self.edge_attr.ndim != 2 or len(self.edge_attr) != self.num_edges):
            raise DataError(f"{where}: {self.num_edges} edges but edge_attr {tuple(self.edge_attr.shape)}")
        if self.y is not None and not self.y.is_floating_point() and self.y.shape != (self.num_nodes,):
            raise DataError(f"{where}: {self.num_nodes} nodes but classes of nodes y {tuple(self.y.shape)}")
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
        y: targets of graphs (S, K) float32, or classes of nodes (V,) int64, or None.
        pe: (V, ...) float32, or None.
        pairs: (2, L) int64, into the rows of the whole batch, or None.
        pair_y: (L,) float32, or None.
        columns: what else is known of each node, (V, ...) by name.
        longest: nodes of the largest graph where the host knows it: reading it from ``cu_seqlens`` waits for a GPU.
    """

    x: Tensor
    edge_index: Tensor
    cu_seqlens: Tensor
    edge_attr: Tensor | None = None
    y: Tensor | None = None
    pe: Tensor | None = None
    pairs: Tensor | None = None
    pair_y: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    longest: int | None = None

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

    @cached_property
    def batch(self) -> Tensor:
        """The graph of each node, (V,) int64; computed once."""
        lengths = (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()
        graphs = torch.arange(self.num_graphs, device=self.device)
        return torch.repeat_interleave(graphs, lengths, output_size=self.num_nodes)

    def __len__(self) -> int:
        return self.num_graphs

    def with_longest(self, longest: int) -> GraphBatch:
        """The same tensors with another bound of the graphs' nodes, at least the largest's."""
        found = replace(self, longest=longest)
        if "batch" in self.__dict__:
            found.__dict__["batch"] = self.batch
        return found

    def _map(self, change: Any) -> GraphBatch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        columns = {name: change(value) for name, value in self.columns.items()}
        return replace(self, **changed, columns=columns)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GraphBatch:
        """Move every tensor to a device; itself when they are there."""
        if torch.device(device) == self.device:
            return self
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GraphBatch:
        """Copy every tensor to page-locked memory."""
        return self._map(Tensor.pin_memory)


def widen(values: Tensor) -> Tensor:
    """Features as a batch holds them: codes int64, numbers float32."""
    return values.float() if values.is_floating_point() else values.long()


def collate(graphs: Sequence[Graph]) -> GraphBatch:
    """Pack graphs into one batch; codes become int64 and features float32.

    Raises:
        DataError: for no graphs, or when only some of them have edge features, targets, encodings, pairs or a column
            (a graph without edges may lack edge features).
    """
    if not graphs:
        raise DataError("a batch needs at least one graph")
    sizes = torch.tensor([g.num_nodes for g in graphs])
    cu_seqlens = torch.zeros(len(graphs) + 1, dtype=torch.int32)
    cu_seqlens[1:] = sizes.cumsum(0)
    shifts = cu_seqlens[:-1].tolist()
    edgeless = [not g.num_edges for g in graphs]
    edge_attr = _gathered("edge_attr", [None if e else g.edge_attr for g, e in zip(graphs, edgeless)], edgeless)
    y, pairs = _gathered("y", [g.y for g in graphs]), _gathered("pairs", [g.pairs for g in graphs])
    pe, pair_y = _gathered("pe", [g.pe for g in graphs]), _gathered("pair_y", [g.pair_y for g in graphs])
    names = {name for g in graphs for name in g.columns}
    columns = {name: _gathered(f"column {name!r}", [g.columns.get(name) for g in graphs]) for name in sorted(names)}
    return GraphBatch(
        x=widen(torch.cat([g.x for g in graphs])),
        edge_index=torch.cat([g.edge_index.long() + s for g, s in zip(graphs, shifts)], dim=1),
        cu_seqlens=cu_seqlens,
        edge_attr=widen(torch.cat(edge_attr)) if edge_attr else None,
        y=join_targets(y) if y else None,
        pe=widen(torch.cat(pe)) if pe else None,
        pairs=torch.cat([p.long() + s for p, s in zip(pairs, shifts)], dim=1) if pairs else None,
        pair_y=torch.cat(pair_y).float() if pair_y else None,
        columns={name: torch.cat(parts) for name, parts in columns.items()},
        longest=int(sizes.max()),
    )


def join_targets(y: Sequence[Tensor]) -> Tensor:
    """Targets of several graphs: (S, K) float32 from one row each, (V,) int64 from classes of nodes.

    Raises:
        DataError: when some graphs have the one and others the other.
    """
    floating = {v.is_floating_point() for v in y}
    if len(floating) > 1:
        raise DataError("some graphs have targets of their own, others classes of nodes", "make y alike")
    return torch.stack([v.reshape(-1) for v in y]).float() if floating == {True} else torch.cat(list(y)).long()


def _gathered(name: str, held: Sequence[Tensor | None], may_lack: Sequence[bool] | None = None) -> list[Tensor]:
    """What is there of an optional attribute, if all that must have it do, or none does."""
    found = [value for value in held if value is not None]
    for i, value in enumerate(held if found else ()):
        if value is None and not (may_lack and may_lack[i]):
            raise DataError(f"graph {i} of the batch has no {name}, others have")
    return found


def standardize(graph: Graph, features: Mapping[str, Sequence[float]]) -> Graph:
    """Floating features as the model was trained on them: less a mean, over a deviation, column by column.

    Args:
        graph: with raw features.
        features: ``assets["features"]`` of a model: "x_mean", "x_std" and "edge_mean", "edge_std" where it has them.
    """
    x, edge_attr = graph.x, graph.edge_attr
    if "x_mean" in features:
        x = (x.float() - torch.tensor(features["x_mean"])) / torch.tensor(features["x_std"])
    if "edge_mean" in features and edge_attr is not None:
        edge_attr = (edge_attr.float() - torch.tensor(features["edge_mean"])) / torch.tensor(features["edge_std"])
    return Graph(x, graph.edge_index, edge_attr, graph.y, columns=graph.columns)


def from_pyg(data: Any, where: str = "graph", *, level: Level = "graph", codes: Literal["ogb", "any"] = "ogb") -> Graph:
    """Take a ``torch_geometric.data.Data``: x, edge_index, and edge_attr, y where it has them.

    A molecule that carries ``smiles`` is checked for OGB's codes, because PyG's ``from_smiles`` uses others in the
    same shapes; without ``smiles`` its hybridisations are looked at, which give most molecules away.

    Args:
        data: the object; ``edge_label_index`` and ``edge_label`` become pairs.
        where: how an error should name it.
        level: "node" reads ``y`` as a class of each node.
        codes: "any" takes molecules in other codes too, for a model with ``node_features: codes``.

    Raises:
        DataError: for a graph that cannot be used, named by ``where``.
    """
    if getattr(data, "x", None) is None:
        raise DataError(f"{where}: the Data has no x", "give every node at least one feature")
    edge_index = data.edge_index if data.edge_index is not None else torch.empty(2, 0, dtype=torch.int64)
    y = getattr(data, "y", None)
    if y is not None:
        y = y.reshape(-1).long() if level == "node" else y.reshape(-1).float()
    pairs, pair_y = getattr(data, "edge_label_index", None), getattr(data, "edge_label", None)
    graph = Graph(
        _as_columns(data.x),
        edge_index.long(),
        None if data.edge_attr is None else _as_columns(data.edge_attr),
        y,
        pairs=None if pairs is None else pairs.long(),
        pair_y=None if pair_y is None else pair_y.float(),
    ).validate(where)
    if codes == "ogb" and not graph.x.is_floating_point():
        from seqgraph_graph_mamba.features import check_pyg_molecule

        check_pyg_molecule(graph, data, where)
    return graph


def _as_columns(features: Tensor) -> Tensor:
    return features[:, None] if features.ndim == 1 else features


def from_networkx(
    graph: Any,
    *,
    node: str = "x",
    edge: str | None = None,
    target: str | None = None,
    level: Level = "graph",
    where: str = "graph",
) -> Graph:
    """Take a networkx graph whose nodes hold a feature list under ``node``, and edges under ``edge``.

    Nodes are numbered in networkx's own order; an undirected edge is written in both directions, a self-loop once.

    Args:
        graph: the graph.
        node: attribute of the nodes' features.
        edge: attribute of the edges' features, or None.
        target: what is to be learnt: an attribute of the graph (``graph.graph[target]``), or, with ``level="node"``,
            of the nodes, where a node without it is not asked for.
        level: whose target it is.
        where: how an error should name it.

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
        if edge is not None and edge not in held:
            raise DataError(f"{where}: the edge {a!r}, {b!r} has no {edge!r}", f"set {edge!r} for every edge, or none")
        if edge is not None:
            features += [held[edge]] * len(both)
    x = torch.as_tensor([held[node] for _, held in graph.nodes(data=True)])
    y = None
    if target is not None and level == "node":
        y = torch.tensor([held.get(target, -1) for _, held in graph.nodes(data=True)], dtype=torch.int64)
    elif target is not None:
        if target not in graph.graph:
            raise DataError(f"{where} has no {target!r}", f"set graph.graph[{target!r}]")
        y = torch.as_tensor(graph.graph[target], dtype=torch.float32).reshape(-1)
    return Graph(
        x=x.reshape(len(index), -1),
        edge_index=torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        edge_attr=torch.as_tensor(features).reshape(len(ends), -1) if edge is not None and ends else None,
        y=y,
    ).validate(where)
