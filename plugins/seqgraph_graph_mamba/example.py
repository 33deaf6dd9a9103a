"""Small inputs of the model, for ``seqgraph.testing``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seqgraph.testing.example import ModelExample
from seqgraph_graph_mamba.encoders import ATOM_SIZES, BOND_SIZES
from seqgraph_graph_mamba.graph import Graph, GraphBatch, collate


def _codes(rows: int, sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    columns = [torch.randint(0, size, (rows,), generator=generator) for size in sizes]
    return torch.stack(columns, dim=1)


def random_graph(num_nodes: int, num_edges: int, generator: torch.Generator) -> Graph:
    """A graph with OGB codes and ``num_edges`` undirected edges; no two atoms are alike."""
    ends = torch.randint(0, num_nodes, (2, num_edges), generator=generator)
    bonds = _codes(num_edges, BOND_SIZES, generator)
    x = _codes(num_nodes, ATOM_SIZES, generator)
    x[:, 0] = torch.randperm(ATOM_SIZES[0], generator=generator)[:num_nodes]
    return Graph(x, torch.cat([ends, ends.flip(0)], dim=1), torch.cat([bonds, bonds]))


def items(seed: int) -> list[Graph]:
    """One node, no edges, a chain's worth, and more."""
    generator = torch.Generator().manual_seed(seed)
    return [random_graph(v, m, generator) for v, m in ((1, 0), (4, 0), (2, 1), (9, 12), (23, 30))]


def outputs(model: nn.Module, batch: GraphBatch) -> list[Tensor]:
    """One row a graph."""
    return list(model(batch))


def relabel(graph: Graph, generator: torch.Generator) -> tuple[Graph, Callable[[Tensor], Tensor]]:
    """The same graph with its nodes and edges in another order; the prediction must stay."""
    new = torch.randperm(graph.num_nodes, generator=generator)
    edges = torch.randperm(graph.num_edges, generator=generator)
    x = torch.empty_like(graph.x)
    x[new] = graph.x
    attributes: dict[str, Any] = {"edge_attr": None if graph.edge_attr is None else graph.edge_attr[edges]}
    return Graph(x, new[graph.edge_index[:, edges]], **attributes), lambda output: output


def _example(**kwargs: Any) -> ModelExample:
    common = {"d_model": 16, "n_layers": 2, "d_out": 3, "pe": "rwse", "pe_size": 4, "pe_width": 4}
    return ModelExample(kwargs=common | kwargs, items=items, collate=collate, outputs=outputs, relabel=relabel)


GRAPH_MAMBA = _example(d_state=4, n_permutations=2)
GMN = _example(d_state=4, m=2, M=2, s=2)
WALK_MAMBA = _example(d_state=4, expand=1, length=6, rate=1.0, window=3)
GNN_PLUS = _example(residual=True, feed_forward=True)
GIN_VN = _example(residual=True)
PLUS_MAMBA = _example(d_state=4, width=8, n_permutations=2)
GPS = _example()
