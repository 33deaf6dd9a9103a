"""GatedGCN with normalised gates and edge updates (Bresson & Laurent, 2017; Dwivedi et al., 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqgraph_graph_mamba.gather import sum_rows, take_rows
from seqgraph_graph_mamba.norm import RowNorm

GATE_EPS = 1e-6


class GatedGCN(nn.Module):
    """One layer of message passing with a gate for each edge and channel.

    With the edge j -> i::

        e'_ij = D x_i + E x_j + C e_ij
        m_i   = sum_j sigmoid(e'_ij) * B x_j / (sum_j sigmoid(e'_ij) + 1e-6)
        x_i  <- x_i + dropout(relu(BN(A x_i + m_i)))
        e_ij <- e_ij + dropout(relu(BN(e'_ij)))

    PyG's ``ResGatedGraphConv`` is another layer: it neither normalises the gates nor updates the edges.

    Args:
        d_model: D, width of nodes and edges.
        dropout: after the ReLU of nodes and edges.
        update_edges: False for a last layer whose edges nobody reads; it then has no norm for them.
        residual: whether ``x_i`` and ``e_ij`` stand in front of the sums.
    """

    def __init__(self, d_model: int, *, dropout: float = 0.0, update_edges: bool = True, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.A = nn.Linear(d_model, d_model)
        self.B = nn.Linear(d_model, d_model)
        self.C = nn.Linear(d_model, d_model)
        self.D = nn.Linear(d_model, d_model)
        self.E = nn.Linear(d_model, d_model)
        self.node_norm = RowNorm(d_model)
        self.edge_norm = RowNorm(d_model) if update_edges else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """x (V, D), edge_index (2, M), edge (M, D) -> new x (V, D) and edge (M, D)."""
        source, target = edge_index
        own, at_target = _side_by_side(x, self.A, self.D).chunk(2, dim=1)
        value, at_source = take_rows(_side_by_side(x, self.B, self.E), source).chunk(2, dim=1)
        gate_in = take_rows(at_target, target) + at_source + self.C(edge)  # (M, D)
        gate = torch.sigmoid(gate_in)
        total = sum_rows(gate * value, target, len(x))
        weight = sum_rows(gate, target, len(x))
        update = own + total / (weight + GATE_EPS)
        new = self.dropout(torch.relu(self.node_norm(update)))
        if self.edge_norm is not None:
            moved = self.dropout(torch.relu(self.edge_norm(gate_in)))
            edge = edge + moved if self.residual else moved
        return x + new if self.residual else new, edge


def _side_by_side(x: Tensor, *layers: nn.Linear) -> Tensor:
    """What some linear layers make of x, in one product and, behind it, one gradient: (V, sum of widths)."""
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return nn.functional.linear(x, weight, bias)
