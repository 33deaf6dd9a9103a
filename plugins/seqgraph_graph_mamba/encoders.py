"""From features to the model's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.positional import Encoding, LaplacianEncoder, RandomWalkEncoder

# OGB's code sizes; features.py, which needs RDKit, holds the same (a test compares them).
ATOM_SIZES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND_SIZES = (5, 6, 2)


class CodeEmbedding(nn.Module):
    """The sum of one embedding for each column of codes (OGB's AtomEncoder and BondEncoder).

    Args:
        sizes: how many values each column has.
        d_model: D.
    """

    def __init__(self, sizes: Sequence[int], d_model: int) -> None:
        super().__init__()
        tables = [nn.Embedding(size, d_model) for size in sizes]
        for table in tables:
            nn.init.xavier_uniform_(table.weight)
        self.tables = nn.ModuleList(tables)

    def forward(self, codes: Tensor) -> Tensor:
        """(R, columns) int64 -> (R, D)."""
        return sum(table(codes[:, i]) for i, table in enumerate(self.tables))


class NodeEncoder(nn.Module):
    """Node features and positional encoding, side by side: D - pe_width and pe_width channels (as GraphGPS).

    Args:
        d_model: D.
        features: "atom" for OGB's nine codes, or "linear" for floating features.
        d_node: columns of floating features.
        pe: which positional encoding.
        pe_size: its steps, or its eigenvectors.
        pe_width: its channels.
    """

    def __init__(
        self,
        d_model: int,
        *,
        features: Literal["atom", "linear"],
        d_node: int | None,
        pe: Encoding,
        pe_size: int,
        pe_width: int,
    ) -> None:
        super().__init__()
        width = d_model if pe == "none" else d_model - pe_width
        self.features = CodeEmbedding(ATOM_SIZES, width) if features == "atom" else nn.Linear(int(d_node or 0), width)
        self.pe: nn.Module | None = None
        if pe == "rwse":
            self.pe = RandomWalkEncoder(pe_size, pe_width)
        elif pe == "laplacian":
            self.pe = LaplacianEncoder(pe_width)

    def forward(self, graphs: GraphBatch, pe: Tensor | None) -> Tensor:
        """The batch's nodes and their encoding pe (V, ...) -> (V, D)."""
        encoded = self.features(graphs.x)
        if self.pe is None:
            return encoded
        return torch.cat([encoded, self.pe(pe, graphs)], dim=-1)


class EdgeEncoder(nn.Module):
    """Edge features to (M, D): OGB's bond codes, floating features, or one learnt vector for every edge.

    Args:
        d_model: D.
        features: "bond", "linear" or "none".
        d_edge: columns of floating features.
    """

    def __init__(self, d_model: int, *, features: Literal["bond", "linear", "none"], d_edge: int | None) -> None:
        super().__init__()
        if features == "bond":
            self.features: nn.Module = CodeEmbedding(BOND_SIZES, d_model)
        elif features == "linear":
            self.features = nn.Linear(int(d_edge or 0), d_model)
        else:
            self.features = nn.Embedding(1, d_model)
        self.kind = features
        self.columns = len(BOND_SIZES) if features == "bond" else int(d_edge or 0)

    def forward(self, batch: GraphBatch) -> Tensor:
        """The batch's edges, (M, D)."""
        if self.kind == "none":
            return self.features(batch.edge_index.new_zeros(batch.num_edges))
        if batch.num_edges == 0:
            # an edgeless batch has no features to embed, and may have no edge_attr at all
            dtype = torch.int64 if self.kind == "bond" else batch.x.dtype
            return self.features(torch.empty(0, self.columns, dtype=dtype, device=batch.device))
        return self.features(batch.edge_attr)
