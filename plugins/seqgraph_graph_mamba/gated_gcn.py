"""GatedGCN with normalised gates and edge updates (Bresson & Laurent, 2017; Dwivedi et al., 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqgraph_graph_mamba.activation import Activation, make_activation
from seqgraph_graph_mamba.gather import take_rows
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
        dropout: after the activation of nodes and edges.
        update_edges: False for a last layer whose edges nobody reads; it then has no norm for them.
        residual: whether ``x_i`` and ``e_ij`` stand in front of the sums.
        activation: "gelu" in the place of relu (GNN+).
    """

    def __init__(
        self,
        d_model: int,
        *,
        dropout: float = 0.0,
        update_edges: bool = True,
        residual: bool = True,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.residual = residual
        self.A = nn.Linear(d_model, d_model)
        self.B = nn.Linear(d_model, d_model)
        self.C = nn.Linear(d_model, d_model)
        self.D = nn.Linear(d_model, d_model)
        self.E = nn.Linear(d_model, d_model)
        self.node_norm = RowNorm(d_model)
        self.edge_norm = RowNorm(d_model) if update_edges else None
        self.activation = make_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """x (V, D), edge_index (2, M), edge (M, D) -> new x (V, D) and edge (M, D)."""
        source, target = edge_index
        projected = _side_by_side(x, self.A, self.D, self.B, self.E)
        update, gate_in = _Gated.apply(projected, self.C(edge), source, target)
        new = self.dropout(self.activation(self.node_norm(update)))
        if self.edge_norm is not None:
            moved = self.dropout(self.activation(self.edge_norm(gate_in)))
            edge = edge + moved if self.residual else moved
        return x + new if self.residual else new, edge


class _Gated(torch.autograd.Function):
    """The update of nodes and the gates before their sigmoid, from what the linear layers make of both.

    Forwards and backwards by hand: the host needs longer to launch autograd's steps than a GPU for the work, so halves
    are written side by side and gathered and added up in one launch. Half precision is added up in fp32. It can be
    differentiated once.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, edge: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """[A x, D x, B x, E x] (V, 4D) and C e (M, D) -> (V, D), (M, D)."""
        width = edge.shape[1]
        own, at_target, sent = projected.split([width, width, 2 * width], dim=1)
        value, at_source = take_rows(sent, source).chunk(2, dim=1)
        gate_in = take_rows(at_target, target).add_(at_source).add_(edge)
        pair = gate_in.new_empty(len(edge), 2 * width)
        gated, gate = pair.chunk(2, dim=1)
        torch.mul(torch.sigmoid(gate_in, out=gate), value, out=gated)
        total, weight = _wide_sums(pair, target, len(projected)).chunk(2, dim=1)
        weight = weight + GATE_EPS
        mean = total / weight
        ctx.save_for_backward(value, gate, weight, mean, source, target)
        ctx.set_materialize_grads(False)
        return (own + mean).to(projected.dtype), gate_in

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_gate_in: Tensor | None) -> tuple[Tensor | None, ...]:
        value, gate, weight, mean, source, target = ctx.saved_tensors
        grad = torch.zeros_like(mean, dtype=value.dtype) if grad is None else grad
        nodes, width = mean.shape
        ends = mean.new_empty(nodes, 2 * width)
        gtotal, gshare = ends.chunk(2, dim=1)
        torch.mul(torch.div(grad, weight, out=gtotal), mean, out=gshare)
        gtotal, gshare = take_rows(ends, target).chunk(2, dim=1)
        sent = mean.new_empty(len(value), 2 * width)
        gvalue, gedge = sent.chunk(2, dim=1)
        torch.mul(gtotal, gate, out=gvalue)
        ggate = (gtotal * value).sub_(gshare)
        torch.ops.aten.sigmoid_backward.grad_input(ggate, gate.to(ggate.dtype), grad_input=gedge)
        if grad_gate_in is not None:
            gedge.add_(grad_gate_in)
        parts = [grad.to(mean.dtype), _wide_sums(gedge, target, nodes), _wide_sums(sent, source, nodes)]
        return torch.cat(parts, dim=1).to(value.dtype), gedge.to(value.dtype), None, None


def _wide_sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    """As ``sum_rows``, (size, ...), in fp32 at least."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return wide.new_zeros(size, *values.shape[1:]).index_add_(0, index, wide)


def _side_by_side(x: Tensor, *layers: nn.Linear) -> Tensor:
    """What some linear layers make of x, in one product and, behind it, one gradient: (V, sum of widths)."""
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return nn.functional.linear(x, weight, bias)
