"""Hybrid layers: message passing beside a mixer of whole sequences, then a feed-forward block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqgraph.encode import BiMamba
from seqgraph_graph_mamba.activation import Activation, make_activation
from seqgraph_graph_mamba.arrangement import Arrangement
from seqgraph_graph_mamba.gated_gcn import GatedGCN
from seqgraph_graph_mamba.gather import permute_rows, take_rows
from seqgraph_graph_mamba.norm import RowNorm


class PermutedMixer(nn.Module):
    """Put nodes into sequences, mix each, and put every node back; the mean over several arrangements.

    With an identity for ``mamba`` each node gets its own row back, whatever the order, the buckets and the neighbours.

    Args:
        mamba: (tokens (T, D), cu_seqlens) -> (T, D).
    """

    def __init__(self, mamba: nn.Module) -> None:
        super().__init__()
        self.mamba = mamba

    def forward(self, h: Tensor, tokens: Arrangement) -> Tensor:
        """h (V, D) -> (V, D)."""
        # what no sequence exceeds, the scan need not cut into pieces
        bound = {"max_seqlen": tokens.longest} if isinstance(self.mamba, BiMamba) else {}
        draws, nodes = tokens.place.shape
        if draws == 1 and len(tokens.node) == nodes:  # each node is one token
            place = tokens.place[0]
            mixed = self.mamba(permute_rows(h, tokens.node, place), tokens.cu_seqlens, **bound)
            return permute_rows(mixed, place, tokens.node)
        mixed = self.mamba(take_rows(h, tokens.node), tokens.cu_seqlens, **bound)  # (T, D)
        back = take_rows(mixed, tokens.place.flatten())  # (P V, D)
        return back if draws == 1 else back.view(draws, nodes, -1).mean(0)


class HybridLayer(nn.Module):
    """The layer of GraphGPS (Rampášek et al., 2022), with any mixer in place of attention::

        h_local, e = local(h, e)
        h = BN(h_local) + BN(h + dropout(mixer(h)))
        h = BN(h + FF(h))                         FF: D -> 2D -> D

    Args:
        d_model: D.
        mixer: (h (V, D), *mixing) -> (V, D).
        local: (h (V, D), edge_index, edge (M, D)) -> new h and edge; None for no message passing.
        dropout: after the mixer and in the feed-forward block.
        activation: of the feed-forward block.
    """

    def __init__(
        self,
        d_model: int,
        mixer: nn.Module,
        local: nn.Module | None,
        *,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.local = local
        self.mixer = mixer
        self.local_norm = None if local is None else RowNorm(d_model)
        self.mixer_norm = RowNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 2 * d_model),
            make_activation(activation),
            nn.Dropout(dropout),
            nn.Linear(2 * d_model, d_model),
            nn.Dropout(dropout),
        )
        self.out_norm = RowNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, edge_index: Tensor, edge: Tensor, *mixing: Any) -> tuple[Tensor, Tensor]:
        """h (V, D), edge (M, D) and what the mixer needs -> new h (V, D) and edge (M, D)."""
        local = None
        if self.local is not None and self.local_norm is not None:
            local, edge = self.local(h, edge_index, edge)
            local = self.local_norm(local)
        h = self.mixer_norm(h + self.dropout(self.mixer(h, *mixing)))
        h = h if local is None else local + h
        return self.out_norm(h + self.feed_forward(h)), edge


class GraphMambaLayer(HybridLayer):
    """The layer of Graph-Mamba (Wang et al., 2024, ``gps_layer.py``): GatedGCN beside Mamba on prioritized nodes.

    There is no norm before Mamba: the paper's Algorithm 1 shows one, its code and its parameter counts do not.

    Args:
        d_model: D.
        dropout: in GatedGCN, after Mamba and in the feed-forward block.
        update_edges: False for the last layer.
        activation: of GatedGCN and the feed-forward block; published: "relu".
        **mamba: the arguments of :class:`seqgraph.encode.BiMamba`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        dropout: float = 0.0,
        update_edges: bool = True,
        activation: Activation = "relu",
        **mamba: Any,
    ) -> None:
        mixer = PermutedMixer(BiMamba(d_model, **mamba))
        local = GatedGCN(d_model, dropout=dropout, update_edges=update_edges, activation=activation)
        super().__init__(d_model, mixer, local, dropout=dropout, activation=activation)


class VirtualNode(nn.Module):
    """One more node that every node of its graph sees (Gilmer et al., 2017; as NeuralWalker has it)::

        virtual <- MLP(sum of the graph's nodes + virtual)
        h       <- h + virtual

    Args:
        d_model: D.
        dropout: in the MLP (linear, BN, ReLU, dropout, linear).
    """

    def __init__(self, d_model: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(d_model, d_model), RowNorm(d_model), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d_model, d_model)
        )

    def forward(self, h: Tensor, batch: Tensor, virtual: Tensor) -> tuple[Tensor, Tensor]:
        """h (V, D), the graph of each node (V,), the virtual nodes (S, D) -> new h and virtual nodes."""
        virtual = self.mlp(virtual.index_add(0, batch, h.to(virtual.dtype)))
        return h + take_rows(virtual, batch), virtual


def no_virtual(h: Tensor, graphs: int) -> Tensor:
    """The virtual nodes before the first layer, (S, D) zeros in fp32 at least."""
    return h.new_zeros(graphs, h.shape[1], dtype=torch.promote_types(h.dtype, torch.float32))
