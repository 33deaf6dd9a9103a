"""A data set's graphs in a few flat tensors, from which batches are cut by index, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph_graph_mamba.graph import Graph, GraphBatch, join_targets, widen

_ARRAYS = ("x", "edge_index", "edge_attr", "y", "node_ptr", "edge_ptr", "pairs", "pair_y", "pair_ptr")


@dataclass(frozen=True, eq=False)
class GraphTable:
    """Many graphs end to end.

    The borders stay on the CPU, so that the sizes of a batch are known without waiting for a GPU.

    Attributes:
        x: (V, F); codes may be uint8 here, batches widen them.
        edge_index: (2, M) int32, node numbers within each graph.
        edge_attr: (M, Fe) or None.
        y: targets of graphs (S, K) float32, or classes of nodes (V,) int64.
        node_ptr: borders of the graphs' nodes, (S + 1,) int64.
        edge_ptr: borders of their edges, (S + 1,) int64.
        pe: (V, ...) float32 or None.
        pairs: pairs of nodes that a link task asks about, (2, L) int32, node numbers within each graph, or None.
        pair_y: (L,) uint8 or None.
        pair_ptr: borders of the graphs' pairs, (S + 1,) int64, or None.
        columns: what else is known of each node, (V, ...) by name.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    y: Tensor
    node_ptr: Tensor
    edge_ptr: Tensor
    pe: Tensor | None = None
    pairs: Tensor | None = None
    pair_y: Tensor | None = None
    pair_ptr: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_graphs(cls, graphs: Sequence[Graph], where: str = "") -> GraphTable:
        """Lay graphs end to end; ``where`` stands before a graph's number in messages.

        Raises:
            DataError: for a graph without y or pairs, with other columns than the first, or when only some of those
                with edges have edge_attr.
        """
        for i, graph in enumerate(graphs):
            if graph.y is None and graph.pairs is None:
                raise DataError(f"{where}graph {i} has no targets", "set Graph.y, with NaN where a target is unknown")
        _check_alike(where, "x", dict(enumerate(g.x for g in graphs)))
        # empty tensors of edgeless graphs may lack the columns of the others
        attributes = [g.edge_attr for g in graphs if g.edge_attr is not None and g.num_edges]
        if attributes and sum(map(len, attributes)) != sum(g.num_edges for g in graphs):
            raise DataError("only some of the graphs have edge features", "give edge_attr to all of them, or to none")
        found = ((i, g.edge_attr) for i, g in enumerate(graphs) if g.num_edges)
        _check_alike(where, "edge_attr", {i: attributes for i, attributes in found if attributes is not None})
        pairs = [g.pairs for g in graphs if g.pairs is not None and g.pair_y is not None]
        if pairs and len(pairs) != len(graphs):
            raise DataError("only some of the graphs have pairs", "give pairs and pair_y to all of them, or to none")
        y = [g.y for g in graphs if g.y is not None]
        return cls(
            x=torch.cat([g.x for g in graphs]),
            edge_index=torch.cat([g.edge_index for g in graphs], dim=1).int(),
            edge_attr=torch.cat(attributes) if attributes else None,
            y=join_targets(y) if len(y) == len(graphs) else torch.empty(len(graphs), 0),
            node_ptr=borders([g.num_nodes for g in graphs]),
            edge_ptr=borders([g.num_edges for g in graphs]),
            pairs=torch.cat(pairs, dim=1).int() if pairs else None,
            pair_y=torch.cat([g.pair_y for g in graphs if g.pair_y is not None]).byte() if pairs else None,
            pair_ptr=borders([p.shape[1] for p in pairs]) if pairs else None,
        )

    def __len__(self) -> int:
        return len(self.node_ptr) - 1

    @property
    def num_nodes(self) -> np.ndarray:
        """Nodes of each graph, (S,) int64."""
        return np.diff(self.node_ptr.numpy())

    @property
    def device(self) -> torch.device:
        """Where all but the borders are."""
        return self.x.device

    @property
    def node_level(self) -> bool:
        """Whether the targets are classes of nodes."""
        return not self.y.is_floating_point()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        held = [getattr(self, name) for name in (*_ARRAYS, "pe")] + list(self.columns.values())
        return sum(value.numel() * value.element_size() for value in held if value is not None)

    # ------------------------------------------------------------------ what is taken out
    def __getitem__(self, index: int) -> Graph:
        """One graph, without copying."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        nodes, edges = _span(self.node_ptr, index), _span(self.edge_ptr, index)
        pairs = None if self.pair_ptr is None else _span(self.pair_ptr, index)
        return Graph(
            x=self.x[nodes],
            edge_index=self.edge_index[:, edges],
            edge_attr=None if self.edge_attr is None else self.edge_attr[edges],
            y=self.y[nodes] if self.node_level else None if pairs is not None else self.y[index],
            pe=None if self.pe is None else self.pe[nodes],
            pairs=None if self.pairs is None else self.pairs[:, pairs],
            pair_y=None if self.pair_y is None else self.pair_y[pairs],
            columns={name: value[nodes] for name, value in self.columns.items()},
        )

    def batch(self, rows: np.ndarray | Sequence[int]) -> GraphBatch:
        """Some graphs as one batch, where the table is: what ``collate`` of them gives.

        One small copy to the device and a few gathers, whose sizes the host knows: it does not wait for the device.

        Args:
            rows: their numbers, (S,) integers, on the host.
        """
        rows = np.asarray(rows, dtype=np.int64)
        spans = {"node": self.node_ptr, "edge": self.edge_ptr}
        if self.pair_ptr is not None:
            spans["pair"] = self.pair_ptr
        plan, sizes = [np.append(rows, 0)], {}
        for name, borders_of in spans.items():
            starts = borders_of.numpy()[rows]
            ends = np.concatenate([[0], (borders_of.numpy()[rows + 1] - starts).cumsum()])
            # item i of the batch is item i + shift of the table
            plan += [ends, np.append(starts - ends[:-1], 0)]
            sizes[name] = int(ends[-1])
        longest = int(np.diff(plan[1]).max(initial=0))
        held = torch.from_numpy(np.stack(plan))
        if self.device.type == "cuda":
            held = held.pin_memory().to(self.device, non_blocking=True)
        index, rest = held[0, :-1], held[1:].view(len(spans), 2, -1)

        def gather(place: int, size: int) -> tuple[Tensor, Tensor]:
            """The graph of each item of the batch, and its place in the table."""
            ends, shift = rest[place]
            owner = torch.repeat_interleave(ends[1:] - ends[:-1], output_size=size)
            return owner, torch.arange(size, device=self.device) + shift[owner]

        first = rest[0, 0]
        of_node, nodes = gather(0, sizes["node"])
        of_edge, edges = gather(1, sizes["edge"])
        pairs = pair_y = None
        if self.pairs is not None and self.pair_y is not None:
            of_pair, chosen = gather(2, sizes["pair"])
            pairs = self.pairs.index_select(1, chosen) + first[of_pair]
            pair_y = self.pair_y.index_select(0, chosen).float()
        found = GraphBatch(
            x=widen(self.x.index_select(0, nodes)),
            edge_index=self.edge_index.index_select(1, edges) + first[of_edge],
            cu_seqlens=first.int(),
            edge_attr=None if self.edge_attr is None else widen(self.edge_attr.index_select(0, edges)),
            y=None if pairs is not None else self.y.index_select(0, nodes if self.node_level else index),
            pe=None if self.pe is None else self.pe.index_select(0, nodes),
            pairs=pairs,
            pair_y=pair_y,
            columns={name: value.index_select(0, nodes) for name, value in self.columns.items()},
            longest=longest,
        )
        found.__dict__["batch"] = of_node  # the cached property, which came by the way
        return found

    # ------------------------------------------------------------------ other tables
    def with_pe(self, pe: Tensor | None) -> GraphTable:
        """The same graphs with another positional encoding (V, ...)."""
        return replace(self, pe=pe)

    def to(self, device: torch.device | str) -> GraphTable:
        """The same graphs on a device; the borders stay on the CPU."""
        names = [name for name in (*_ARRAYS, "pe") if not name.endswith("_ptr")]
        moved = {name: getattr(self, name).to(device) for name in names if getattr(self, name) is not None}
        return replace(self, **moved, columns={name: value.to(device) for name, value in self.columns.items()})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`from_arrays` needs, without the encoding and the columns."""
        return {name: getattr(self, name).numpy() for name in _ARRAYS if getattr(self, name) is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> GraphTable:
        """A table from :meth:`to_arrays`."""
        tensors: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return cls(**{"edge_attr": None, **tensors})

    def validate(self, where: str = "graphs") -> GraphTable:
        """Check every graph as :meth:`Graph.validate` does, all at once; returns itself.

        Raises:
            DataError: naming the first graph that cannot be used.
        """
        sizes, edges = self.num_nodes, np.diff(self.edge_ptr.numpy())
        wrong = torch.zeros(self.edge_index.shape[1], dtype=torch.bool)
        owner = torch.from_numpy(np.repeat(np.arange(len(self)), edges))
        for ends in self.edge_index:
            wrong |= (ends < 0) | (ends >= torch.from_numpy(sizes)[owner])
        suspects = [*np.flatnonzero(sizes < 1)[:1], *owner[wrong][:1].tolist()]
        for value, ptr in ((self.x, self.node_ptr), (self.edge_attr, self.edge_ptr)):
            if value is not None and value.is_floating_point():
                bad = (~value.isfinite().all(1)).nonzero()[:1, 0]
                suspects += (torch.searchsorted(ptr, bad, right=True) - 1).tolist()
        if suspects:
            first = int(min(suspects))
            self[first].validate(f"{where}, graph {first}")
        return self


def borders(lengths: Sequence[int] | np.ndarray) -> Tensor:
    """Where things of these lengths begin and end when laid end to end, (S + 1,) int64."""
    ends = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    ends[1:] = torch.as_tensor(lengths, dtype=torch.int64).cumsum(0)
    return ends


def _check_alike(where: str, name: str, features: dict[int, Tensor]) -> None:
    """See that features (rows, F) of the graphs of these numbers can lie in one tensor."""
    first = next(iter(features), 0)
    for i, rows in features.items():
        like = features[first]
        if rows.shape[1:] != like.shape[1:] or rows.is_floating_point() != like.is_floating_point():
            raise DataError(
                f"{where}graph {i}: {name} has {rows.shape[1]} columns of {rows.dtype}, "
                f"that of graph {first} {like.shape[1]} of {like.dtype}",
                "give all graphs the same features",
            )


def _span(ptr: Tensor, index: int) -> slice:
    return slice(int(ptr[index]), int(ptr[index + 1]))


class GraphRow(Graph):
    """A graph of a table by its number; cut out when something of it is asked for, and never when it is only batched.

    Args:
        table: all graphs.
        row: which.
    """

    def __init__(self, table: GraphTable, row: int) -> None:
        self.__dict__.update(table=table, row=row)

    @cached_property
    def graph(self) -> Graph:
        """The graph itself."""
        return self.__dict__["table"][self.__dict__["row"]]

    def __len__(self) -> int:
        table, row = self.__dict__["table"], self.__dict__["row"]
        return int(table.node_ptr[row + 1] - table.node_ptr[row])

    @property
    def x(self) -> Tensor:  # type: ignore[override]
        return self.graph.x

    @property
    def edge_index(self) -> Tensor:  # type: ignore[override]
        return self.graph.edge_index

    @property
    def edge_attr(self) -> Tensor | None:  # type: ignore[override]
        return self.graph.edge_attr

    @property
    def y(self) -> Tensor | None:  # type: ignore[override]
        return self.graph.y

    @property
    def pe(self) -> Tensor | None:  # type: ignore[override]
        return self.graph.pe

    @property
    def pairs(self) -> Tensor | None:  # type: ignore[override]
        return self.graph.pairs

    @property
    def pair_y(self) -> Tensor | None:  # type: ignore[override]
        return self.graph.pair_y

    @property
    def columns(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        return self.graph.columns


class GraphSubset(Sequence[Graph]):
    """Some graphs of a table, by index.

    Args:
        table: all graphs.
        rows: which, (n,) integers.
    """

    def __init__(self, table: GraphTable, rows: np.ndarray) -> None:
        self.table, self.rows = table, np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Graph: ...
    @overload
    def __getitem__(self, place: slice) -> GraphSubset: ...
    def __getitem__(self, place: int | slice) -> Graph | GraphSubset:
        if isinstance(place, slice):
            return GraphSubset(self.table, self.rows[place])
        return GraphRow(self.table, int(self.rows[place]))

    @property
    def y(self) -> Tensor:
        """Targets, (n, K) float32, or the classes of all their nodes, (sum of nodes,) int64."""
        if not self.table.node_level:
            return self.table.y[torch.from_numpy(self.rows)]
        return torch.cat([self.table.y[_span(self.table.node_ptr, row)] for row in self.rows.tolist()])

    @property
    def lengths(self) -> np.ndarray:
        """Nodes of each graph, (n,)."""
        return self.table.num_nodes[self.rows]

    @property
    def sizes(self) -> np.ndarray:
        """Edges of each graph, and pairs where there are any, (n, 1 or 2)."""
        ptrs = [p for p in (self.table.edge_ptr, self.table.pair_ptr) if p is not None]
        return np.column_stack([np.diff(ptr.numpy())[self.rows] for ptr in ptrs])


def join_tables(tables: Sequence[GraphTable]) -> GraphTable:
    """Tables one after another; all have the same features and kind of targets.

    Raises:
        DataError: when they have not.
    """
    names = ("x", "edge_index", "edge_attr", "y", "pairs", "pair_y")
    held = {name: [getattr(table, name) for table in tables] for name in names}
    along = {"edge_index": 1, "pairs": 1}
    for name, parts in held.items():
        dim = along.get(name, 0)
        shapes = {None if p is None else (p.dtype, *p.shape[:dim], *p.shape[dim + 1 :]) for p in parts}
        if len(shapes) > 1:
            raise DataError(f"the splits differ in {name}: {', '.join(map(str, shapes))}", "make them from one source")
    joined = {n: None if p[0] is None else torch.cat(p, dim=along.get(n, 0)) for n, p in held.items()}
    for name in ("node_ptr", "edge_ptr", "pair_ptr"):
        if getattr(tables[0], name) is not None:
            joined[name] = borders(torch.cat([getattr(table, name).diff() for table in tables]).numpy())
    return GraphTable(**joined)  # type: ignore[arg-type]
