"""A data set's graphs in a few flat arrays, and its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph_graph_mamba.graph import Graph


@dataclass(frozen=True, eq=False)
class GraphTable:
    """Many graphs end to end; indexing cuts one out without copying.

    Attributes:
        x: (V, F); codes may be uint8 here, batches widen them.
        edge_index: (2, M) int32, node numbers within each graph.
        edge_attr: (M, Fe) or None.
        y: (S, K) float32.
        node_ptr: borders of the graphs' nodes, (S + 1,) int64.
        edge_ptr: borders of their edges, (S + 1,) int64.
        pe: (V, ...) float32 or None.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    y: Tensor
    node_ptr: Tensor
    edge_ptr: Tensor
    pe: Tensor | None = None

    @classmethod
    def from_graphs(cls, graphs: Sequence[Graph]) -> GraphTable:
        """Lay graphs end to end.

        Raises:
            DataError: for a graph without y, or when only some of those with edges have edge_attr.
        """
        for i, graph in enumerate(graphs):
            if graph.y is None:
                raise DataError(f"graph {i} has no targets", "set Graph.y, with NaN where a target is unknown")
        # empty tensors of edgeless graphs may lack the columns of the others
        attributes = [g.edge_attr for g in graphs if g.edge_attr is not None and g.num_edges]
        if attributes and sum(map(len, attributes)) != sum(g.num_edges for g in graphs):
            raise DataError("only some of the graphs have edge features", "give edge_attr to all of them, or to none")
        return cls(
            x=torch.cat([g.x for g in graphs]),
            edge_index=torch.cat([g.edge_index for g in graphs], dim=1).int(),
            edge_attr=torch.cat(attributes) if attributes else None,
            y=torch.stack([g.y for g in graphs if g.y is not None]).float(),
            node_ptr=_borders([g.num_nodes for g in graphs]),
            edge_ptr=_borders([g.num_edges for g in graphs]),
        )

    @property
    def num_nodes(self) -> np.ndarray:
        """Nodes of each graph, (S,) int64."""
        return np.diff(self.node_ptr.numpy())

    def __len__(self) -> int:
        return len(self.node_ptr) - 1

    def __getitem__(self, index: int) -> Graph:
        if not 0 <= index < len(self):
            raise IndexError(index)
        nodes = slice(int(self.node_ptr[index]), int(self.node_ptr[index + 1]))
        edges = slice(int(self.edge_ptr[index]), int(self.edge_ptr[index + 1]))
        return Graph(
            x=self.x[nodes],
            edge_index=self.edge_index[:, edges],
            edge_attr=None if self.edge_attr is None else self.edge_attr[edges],
            y=self.y[index],
            pe=None if self.pe is None else self.pe[nodes],
        )

    def with_pe(self, pe: Tensor | None) -> GraphTable:
        """The same graphs with another positional encoding (V, ...)."""
        return replace(self, pe=pe)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`from_arrays` needs, without the encoding."""
        arrays = {name: getattr(self, name) for name in ("x", "edge_index", "edge_attr", "y", "node_ptr", "edge_ptr")}
        return {name: value.numpy() for name, value in arrays.items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> GraphTable:
        """A table from :meth:`to_arrays`."""
        tensors: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return cls(**{"edge_attr": None, **tensors})


def _borders(lengths: Sequence[int]) -> Tensor:
    borders = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    borders[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
    return borders


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
        return self.table[int(self.rows[place])]

    @property
    def y(self) -> Tensor:
        """Targets, (n, K) float32."""
        return self.table.y[torch.from_numpy(self.rows)]

    @property
    def lengths(self) -> np.ndarray:
        """Nodes of each graph, (n,)."""
        return self.table.num_nodes[self.rows]
