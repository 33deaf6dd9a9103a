"""Message passing of one step: GINE and GCN with edges, and a choice of layers to put beside a mixer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from seqgraph_graph_mamba.gated_gcn import GatedGCN
from seqgraph_graph_mamba.gather import sum_rows, take_rows
from seqgraph_graph_mamba.norm import RowNorm

Local = Literal["gated-gcn", "gin", "gcn", "none"]


class GINE(nn.Module):
    """The isomorphism network with edges (Hu et al., 2020)::

        x_i <- MLP((1 + eps) x_i + sum_j relu(x_j + e_ij))

    Args:
        d_model: D, width of nodes and edges.
        norm: a BatchNorm between the MLP's linear layers.
        project: a linear layer on the edges first.
        dropout: between the MLP's layers.
        expand: the MLP's inner width over D.
    """

    def __init__(
        self, d_model: int, *, norm: bool = False, project: bool = False, dropout: float = 0.0, expand: int = 1
    ) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(1))
        self.edge = nn.Linear(d_model, d_model) if project else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(d_model, expand * d_model),
            RowNorm(expand * d_model) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(expand * d_model, d_model),
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> Tensor:
        """x (V, D), edge_index (2, M), edge (M, D) -> (V, D)."""
        source, target = edge_index
        message = torch.relu(take_rows(x, source) + self.edge(edge))
        return self.mlp((1 + self.eps) * x + sum_rows(message, target, len(x)))


class GCN(nn.Module):
    """The convolution of GCN+ (Luo, Shi & Wu, 2025), with edges::

        x_i <- sum_j relu(W x_j + e_ij) + b

    This is what the authors' code does ("gcne"). Their paper's formula has the symmetric norm of Kipf & Welling and a
    self-loop: with ``normalize``, the messages are weighted by 1 / sqrt(d_i d_j) and relu(W x_i) / d_i is added,
    where d counts a node's incoming edges and one.

    Args:
        d_model: D, width of nodes and edges.
        normalize: as above.
    """

    def __init__(self, d_model: int, *, normalize: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, d_model, bias=False)
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.normalize = normalize

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> Tensor:
        """x (V, D), edge_index (2, M), edge (M, D) -> (V, D)."""
        source, target = edge_index
        x = self.linear(x)
        message = torch.relu(take_rows(x, source) + edge)
        if not self.normalize:
            return sum_rows(message, target, len(x)) + self.bias
        degree = 1 + sum_rows(self.bias.new_ones(len(target)), target, len(x))
        weight = (degree[source] * degree[target]).rsqrt()
        return torch.relu(x) / degree[:, None] + sum_rows(weight[:, None] * message, target, len(x)) + self.bias


class ResidualGINE(nn.Module):
    """``x + dropout(GINE(x))``, the edges handed on: GINE in the place of :class:`GatedGCN`."""

    def __init__(self, d_model: int, *, norm: bool = True, project: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.gine = GINE(d_model, norm=norm, project=project)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """x (V, D), edge_index (2, M), edge (M, D) -> new x (V, D), and edge as it was."""
        return x + self.dropout(self.gine(x, edge_index, edge)), edge


class PlainGCN(nn.Module):
    """``dropout(relu(BN(GCN(x))))``, a layer of GCN+, the edges handed on: GCN in the place of :class:`GatedGCN`.

    Without a residual, as GCN+ has it for Peptides: what it stands beside keeps the nodes.
    """

    def __init__(self, d_model: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.gcn = GCN(d_model)
        self.norm = RowNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """x (V, D), edge_index (2, M), edge (M, D) -> new x (V, D), and edge as it was."""
        return self.dropout(torch.relu(self.norm(self.gcn(x, edge_index, edge)))), edge


def make_local(kind: Local, d_model: int, *, dropout: float = 0.0, update_edges: bool = True) -> nn.Module | None:
    """Message passing to put beside a mixer: (x, edge_index, edge) -> (x, edge); None for "none"."""
    if kind == "none":
        return None
    if kind == "gin":
        return ResidualGINE(d_model, dropout=dropout)
    if kind == "gcn":
        return PlainGCN(d_model, dropout=dropout)
    return GatedGCN(d_model, dropout=dropout, update_edges=update_edges)
