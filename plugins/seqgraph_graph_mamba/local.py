"""What makes one token of a neighbourhood: message passing over induced subgraphs, or the walks' own steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqgraph_graph_mamba.convolution import Local, make_local
from seqgraph_graph_mamba.gather import mean_rows, rank_within, take_rows
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.sampling import WalkNames, sample_neighborhoods, sample_walks


class SubgraphTokens(nn.Module):
    """Message passing within the subgraph that a token's nodes induce, and the mean over its nodes.

    Without layers the last token of a node is its own features.

    Args:
        d_model: D.
        m, M, s: the paper's letters: longest walk, walks of a token, tokens of one length.
        conv: "gin" or "gated-gcn".
        layers: of it.
        dropout: in them.
    """

    def __init__(self, d_model: int, m: int, M: int, s: int, *, conv: Local, layers: int, dropout: float) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {"max_length": m, "walks": M, "repeats": s}
        self.length = m * s + 1
        made: list[Any] = [
            make_local(conv, d_model, dropout=dropout, update_edges=i < layers - 1) for i in range(layers)
        ]
        self.layers = nn.ModuleList(made)

    def forward(
        self, batch: GraphBatch, h: Tensor, edge: Tensor, names: WalkNames | None, seed: int, draw: int
    ) -> Tensor:
        """h (V, D), edge (M, D) -> tokens (V, L, D), far ones first; ``names`` None draws anew, in training."""
        found = sample_neighborhoods(batch, **self.sizes, names=names, seed=seed, draw=draw)
        x, e = take_rows(h, found.node), take_rows(edge, found.edge)  # (K, D), (E, D)
        for layer in self.layers:
            x, e = layer(x, found.edge_index, e)
        tokens = mean_rows(x, found.token, found.num_tokens)  # (T, D)
        return take_rows(tokens, found.stream.values).view(len(h), self.length, -1)


class WalkTokens(nn.Module):
    """The mean over the steps of a token's walks, of their nodes, edges, and the bits that a window behind them saw.

    These are the features of random walks (CRaWl; Tönshoff et al., 2023) that the paper names as an alternative to
    message passing. The walks of the lengths 1 .. m of one repeat are the beginnings of the same M walks of length m:
    each by itself is a uniform walk of its length, and all cost as much as the longest::

        step   = x[node] + W_e e[edge that led there] + W_w [what the window saw]
        step  <- step + dropout(W_2 relu(W_1 LayerNorm(step)))       so many layers
        token  = mean over the M walks and their first i + 1 nodes

    Without layers, edges and window the last token of a node is its own features.

    Args:
        d_model: D.
        m, M, s: the paper's letters.
        layers: as above.
        window: w, steps that the bits look back; 0 for none.
        dropout: as above.
    """

    def __init__(self, d_model: int, m: int, M: int, s: int, *, layers: int, window: int, dropout: float) -> None:
        super().__init__()
        self.m, self.M, self.s = m, M, s
        self.walk: dict[str, Any] = {"length": m, "rate": float(M * s), "window": window, "backtracking": True}
        self.edge = nn.Linear(d_model, d_model)
        self.window = nn.Linear(2 * window - 1, d_model) if window else None
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(d_model),
                nn.Linear(d_model, d_model),
                nn.ReLU(),
                nn.Linear(d_model, d_model),
                nn.Dropout(dropout),
            )
            for _ in range(layers)
        )

    def forward(
        self, batch: GraphBatch, h: Tensor, edge: Tensor, names: WalkNames | None, seed: int, draw: int
    ) -> Tensor:
        """h (V, D), edge (M, D) -> tokens (V, L, D), far ones first; ``names`` None draws anew, in training."""
        walks = sample_walks(batch, **self.walk, names=names, seed=seed, draw=draw)
        stream = walks.stream
        edges = nn.functional.pad(self.edge(edge), (0, 0, 0, 1))
        taken = torch.where(walks.edge >= 0, walks.edge, len(edge))
        step = take_rows(h, stream.source) + take_rows(edges, taken)
        if self.window is not None:
            step = step + self.window(walks.features.to(self.window.weight.dtype))
        for layer in self.layers:
            step = step + layer(step)
        first = stream.source[stream.cu_seqlens[:-1].long()]  # the node that a walk starts at, (W,)
        number = rank_within(first.sort(stable=True).values, len(h))
        number = torch.empty_like(number).index_copy(0, first.argsort(stable=True), number)
        repeat = first * self.s + number // self.M
        size = len(h) * self.s * (self.m + 1)
        place = repeat[stream.segment] * (self.m + 1) + stream.position
        # means over ever longer beginnings: sums and counts are added up along the walk
        total = torch.zeros(size, step.shape[1], dtype=torch.promote_types(step.dtype, torch.float32), device=h.device)
        total = total.index_add(0, place, step.to(total.dtype)).view(len(h), self.s, self.m + 1, -1).cumsum(2)
        count = total.new_zeros(size).index_add(0, place, total.new_ones(len(place)))
        mean = total / count.view(len(h), self.s, self.m + 1, 1).cumsum(2)  # (V, s, m + 1, D)
        tokens = mean.transpose(1, 2).flip(1)  # (V, m + 1, s, D), far to near
        if names is None:  # at inference the order drawn is as good as any
            shuffle = torch.rand(tokens.shape[:3], device=h.device).argsort(2)
            tokens = tokens.gather(2, shuffle[..., None].expand_as(tokens))
        # all repeats of length 0 are the node itself
        return torch.cat([tokens[:, :-1].flatten(1, 2), tokens[:, -1, :1]], dim=1).to(step.dtype)
