"""One Graph-Mamba layer: GatedGCN beside Mamba on prioritized nodes, then a feed-forward block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqgraph.encode import BiMamba
from seqgraph_graph_mamba.gated_gcn import GatedGCN, RowNorm


class PermutedMixer(nn.Module):
    """Put nodes in order, mix each graph's sequence, and put every node back; the mean over several orders.

    With an identity for ``mamba`` each node gets its own row back, whatever the orders.

    Args:
        mamba: (tokens (T, D), cu_seqlens) -> (T, D).
    """

    def __init__(self, mamba: nn.Module) -> None:
        super().__init__()
        self.mamba = mamba

    def forward(self, h: Tensor, cu_seqlens: Tensor, permutation: Tensor) -> Tensor:
        """h (V, D) and permutation (P, V), nodes in token order within their graphs -> (V, D)."""
        draws, nodes = permutation.shape
        shift = nodes * torch.arange(draws, device=h.device)
        # every draw is a further set of segments of one call
        borders = (cu_seqlens[None, :-1] + shift[:, None]).flatten()
        borders = torch.cat([borders, borders.new_full((1,), draws * nodes)]).to(torch.int32)
        mixed = self.mamba(h[permutation.flatten()], borders)  # (P * V, D)
        place = torch.empty_like(permutation)
        place.scatter_(1, permutation, torch.arange(nodes, device=h.device).expand_as(permutation))
        return mixed[(place + shift[:, None]).flatten()].view(draws, nodes, -1).mean(0)


class GraphMambaLayer(nn.Module):
    """The GPS-like layer of Graph-Mamba (Wang et al., 2024, ``gps_layer.py``)::

        h_local, e = GatedGCN(h, e)
        h = BN(h_local) + BN(h + dropout(Mamba(h in order)))
        h = BN(h + FF(h))                         FF: D -> 2D -> D, ReLU

    There is no norm before Mamba: the paper's Algorithm 1 shows one, its code and its parameter counts do not.

    Args:
        d_model: D.
        dropout: in GatedGCN, after Mamba and in the feed-forward block.
        update_edges: False for the last layer.
        **mamba: the arguments of :class:`seqgraph.encode.BiMamba`.
    """

    def __init__(self, d_model: int, *, dropout: float = 0.0, update_edges: bool = True, **mamba: Any) -> None:
        super().__init__()
        self.local = GatedGCN(d_model, dropout=dropout, update_edges=update_edges)
        self.mixer = PermutedMixer(BiMamba(d_model, **mamba))
        self.local_norm = RowNorm(d_model)
        self.mixer_norm = RowNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 2 * d_model),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * d_model, d_model),
            nn.Dropout(dropout),
        )
        self.out_norm = RowNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, h: Tensor, edge_index: Tensor, edge: Tensor, cu_seqlens: Tensor, permutation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """h (V, D), edge (M, D), permutation (P, V) -> new h (V, D) and edge (M, D)."""
        local, edge = self.local(h, edge_index, edge)
        mixed = h + self.dropout(self.mixer(h, cu_seqlens, permutation))
        h = self.local_norm(local) + self.mixer_norm(mixed)
        return self.out_norm(h + self.feed_forward(h)), edge
