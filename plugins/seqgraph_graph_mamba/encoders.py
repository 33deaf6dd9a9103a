"""From features to the model's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.positional import Encoding, LaplacianEncoder, RandomWalkEncoder

NodeFeatures = Literal["atom", "linear", "codes"]
EdgeFeatures = Literal["bond", "linear", "codes", "none"]

# OGB's code sizes; features.py, which needs RDKit, holds the same (a test compares them).
ATOM_SIZES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND_SIZES = (5, 6, 2)


class CodeEmbedding(nn.Module):
    """The sum of one embedding for each column of codes (OGB's AtomEncoder and BondEncoder).

    Args:
        sizes: how many values each column has.
        d_model: D.
    """

    first: Tensor
    last: Tensor

    def __init__(self, sizes: Sequence[int], d_model: int) -> None:
        super().__init__()
        tables = [nn.Embedding(size, d_model) for size in sizes]
        for table in tables:
            nn.init.xavier_uniform_(table.weight)
        self.tables = nn.ModuleList(tables)
        widths = torch.tensor(sizes, dtype=torch.int64)
        self.register_buffer("first", widths.cumsum(0) - widths, persistent=False)
        self.register_buffer("last", widths - 1, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """(R, columns) int64 -> (R, D).

        Raises:
            RuntimeError: for a code out of range (on a GPU as a device-side assertion).
        """
        table = torch.cat([weight for _, weight in self.tables.named_parameters()])
        # one lookup for all columns; a code that is out of its own range must not find its neighbour's row
        within = codes.clamp_min(0).minimum(self.last)
        row = (self.first + within).add(codes != within, alpha=len(table))
        return nn.functional.embedding_bag(row, table, mode="sum")


class NodeEncoder(nn.Module):
    """Node features and positional encoding, side by side: D - pe_width and pe_width channels (as GraphGPS).

    Args:
        d_model: D.
        features: "atom" for OGB's nine codes, "linear" for floating features, "codes" for other integer columns.
        d_node: columns of floating features.
        sizes: how many values each integer column has, for "codes".
        pe: which positional encoding.
        pe_size: its steps, or its eigenvectors.
        pe_width: its channels.
        pe_norm: whether "rwse" is normalised first.

    Attributes:
        columns: feature columns that it reads.
    """

    def __init__(
        self,
        d_model: int,
        *,
        features: NodeFeatures,
        d_node: int | None,
        sizes: Sequence[int] | None,
        pe: Encoding,
        pe_size: int,
        pe_width: int,
        pe_norm: bool,
    ) -> None:
        super().__init__()
        width = d_model if pe == "none" else d_model - pe_width
        self.features, self.columns = _encode(width, features, d_node, ATOM_SIZES if features == "atom" else sizes)
        self.pe: nn.Module | None = None
        if pe == "rwse":
            self.pe = RandomWalkEncoder(pe_size, pe_width, norm=pe_norm)
        elif pe == "laplacian":
            self.pe = LaplacianEncoder(pe_width)

    def forward(self, graphs: GraphBatch, pe: Tensor | None) -> Tensor:
        """The batch's nodes and their encoding pe (V, ...) -> (V, D)."""
        encoded = self.features(graphs.x)
        if self.pe is None:
            return encoded
        return torch.cat([encoded, self.pe(pe, graphs)], dim=-1)


class EdgeEncoder(nn.Module):
    """Edge features to (M, D): OGB's bond codes, floating features, codes, or one learnt vector for every edge.

    Args:
        d_model: D.
        features: "bond", "linear", "codes" or "none".
        d_edge: columns of floating features.
        sizes: how many values each integer column has, for "codes".
    """

    def __init__(
        self, d_model: int, *, features: EdgeFeatures, d_edge: int | None, sizes: Sequence[int] | None
    ) -> None:
        super().__init__()
        if features == "none":
            sizes = (1,)
        self.features, self.columns = _encode(d_model, features, d_edge, BOND_SIZES if features == "bond" else sizes)
        self.kind = features

    def forward(self, batch: GraphBatch) -> Tensor:
        """The batch's edges, (M, D)."""
        if self.kind == "none":
            return self.features(batch.edge_index.new_zeros(batch.num_edges, 1))
        if batch.num_edges == 0:
            # an edgeless batch has no features to embed, and may have no edge_attr at all
            dtype = next(self.features.parameters()).dtype if self.kind == "linear" else torch.int64
            return self.features(torch.empty(0, self.columns, dtype=dtype, device=batch.device))
        return self.features(batch.edge_attr)


def _encode(
    width: int, features: NodeFeatures | EdgeFeatures, columns: int | None, sizes: Sequence[int] | None
) -> tuple[nn.Module, int]:
    """A module from raw features to (R, width), and how many columns it reads."""
    if features == "linear":
        return nn.Linear(int(columns or 0), width), int(columns or 0)
    return CodeEmbedding(sizes or (), width), len(sizes or ())
