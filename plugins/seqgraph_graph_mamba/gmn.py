"""Graph Mamba Networks (Behrouz & Hashemi, 2024, arXiv:2402.08678), from the paper's Algorithms 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqgraph.encode import BiMamba
from seqgraph_graph_mamba.arrangement import arrange_layers
from seqgraph_graph_mamba.base import GraphModel, Level, Pool
from seqgraph_graph_mamba.convolution import Local, make_local
from seqgraph_graph_mamba.encoders import EdgeFeatures, NodeFeatures
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.layer import HybridLayer, PermutedMixer
from seqgraph_graph_mamba.local import SubgraphTokens, WalkTokens
from seqgraph_graph_mamba.ordering import OrderFunction, Prioritizer, Ties
from seqgraph_graph_mamba.positional import Encoding
from seqgraph_graph_mamba.sampling import WalkNames, walk_names


class TwoWayMamba(nn.Module):
    """Algorithm 2 of the paper: ``W_out (Mamba_f(LN(x)) + reverse(Mamba_b(reverse(LN(x)))))``.

    The two directions are whole Mambas of their own (share "none"), gates and output projections included; the
    subscripts that lines 6 and 16 lack (of A and Delta) are read as there, and D is kept.

    Args:
        d_model: D.
        **mamba: the arguments of :class:`seqgraph.encode.BiMamba`.
    """

    def __init__(self, d_model: int, **mamba: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mamba = BiMamba(d_model, **mamba)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, u: Tensor, cu_seqlens: Tensor) -> Tensor:
        """u (T, D) within the segments of cu_seqlens (S + 1,) -> (T, D)."""
        return self.out(self.mamba(self.norm(u), cu_seqlens))


class NeighborhoodEncoder(nn.Module):
    """Each node's tokens from far to near, mixed, and the last of them: the node that has seen its surroundings.

    The paper's Algorithm 2 has no residual around the mixer; here there is one, as its layers are stacked. With an
    identity for every mixer (or zeros) a node gets its own token back.

    Args:
        mixers: (tokens (T, D), cu_seqlens) -> (T, D), one a layer.
        dropout: on each before it is added.
    """

    def __init__(self, mixers: Sequence[nn.Module], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (V, L, D), the node itself last -> (V, D)."""
        nodes, length, width = tokens.shape
        borders = torch.arange(0, (nodes + 1) * length, length, dtype=torch.int32, device=tokens.device)
        flat = tokens.reshape(-1, width)
        for mixer in self.mixers:
            flat = flat + self.dropout(mixer(flat, borders))
        return flat.view(nodes, length, width)[:, -1]


class GMN(GraphModel):
    """Neighbourhoods of each node, encoded and read from far to near; then all nodes of a graph, by importance.

    Each node has ``m * s + 1`` tokens: for each walk length m, m - 1, .., 1 there are s, each what M random walks of
    that length from the node have met, and last the node itself. Tokens are drawn anew in every training step; at
    inference from hashes, so that a graph has the same tokens alone and in any batch. Repeats of one length are
    shuffled.

    ``m=0`` gives node tokens: GPS with a two-way Mamba for its attention, as the paper says.

    Args:
        d_model: D, width of nodes and edges.
        n_layers: layers over nodes.
        d_out: predictions a graph or a node.
        level, node_features, edge_features, d_node, d_edge, node_sizes, edge_sizes: see
            :class:`seqgraph_graph_mamba.base.GraphModel`.
        m: longest walk.
        M: walks of one token.
        s: tokens of one length.
        local: what makes a token: "gin" or "gated-gcn" over the subgraph that the walks' nodes induce, its mean; or
            "walk", the mean over the walks' own steps, each with its edge and what a window of ``window`` steps saw
            (then the walks of length 1 .. m of a repeat are the beginnings of the same M walks).
        local_layers: layers of it.
        window: steps that the bits of "walk" look back.
        token_layers: layers over a node's tokens.
        mpnn: message passing beside the layers over nodes: "gated-gcn", "gin", "gcn" or "none". It reads what the
            layers before it have made of the nodes, as in GPS.
        d_state, d_conv, expand, mixer, headdim, direction, share, merge: see
            :class:`seqgraph_graph_mamba.model.GraphMamba`; published: both directions, nothing shared, their sum.
        order: of the nodes: "degree" (published), "personalized-pagerank" (its ablation), or as for Graph-Mamba.
        ties: see :class:`seqgraph_graph_mamba.model.GraphMamba`.
        n_samples: sets of tokens and orders whose predictions are averaged at inference.
        order_seed: of tokens and orders at inference. Those of training come from torch's global generator.
        dropout: probability, everywhere.
        pe, pe_size, pe_width, pe_norm, pool, head_layers: see :class:`seqgraph_graph_mamba.base.GraphModel`.
    """

    def __init__(
        self,
        d_model: int = 72,
        n_layers: int = 4,
        d_out: int = 1,
        *,
        level: Level = "graph",
        node_features: NodeFeatures = "atom",
        edge_features: EdgeFeatures = "bond",
        d_node: int | None = None,
        d_edge: int | None = None,
        node_sizes: Sequence[int] | None = None,
        edge_sizes: Sequence[int] | None = None,
        m: int = 4,
        M: int = 4,
        s: int = 2,
        local: Literal["gin", "gated-gcn", "walk"] = "gin",
        local_layers: int = 1,
        window: int = 4,
        token_layers: int = 1,
        mpnn: Local = "gated-gcn",
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 1,
        mixer: Literal["s6", "ssd"] = "s6",
        headdim: int = 64,
        direction: Literal["forward", "reverse", "both"] = "both",
        share: Literal["none", "projections", "all"] = "none",
        merge: Literal["sum", "mean", "concat", "gate"] = "sum",
        order: str | OrderFunction = "degree",
        ties: Ties = "canonical",
        n_samples: int = 1,
        order_seed: int = 0,
        dropout: float = 0.0,
        pe: Encoding = "rwse",
        pe_size: int = 16,
        pe_width: int = 16,
        pe_norm: bool = False,
        pool: Pool = "mean",
        head_layers: int = 2,
    ) -> None:
        super().__init__(
            d_model,
            d_out,
            level=level,
            node_features=node_features,
            edge_features=edge_features,
            d_node=d_node,
            d_edge=d_edge,
            node_sizes=node_sizes,
            edge_sizes=edge_sizes,
            dropout=dropout,
            pe=pe,
            pe_size=pe_size,
            pe_width=pe_width,
            pe_norm=pe_norm,
            pool=pool,
            head_layers=head_layers,
            reads_edges=mpnn != "none" or bool(m and s),
        )
        self.passes, self.order_seed = n_samples, order_seed
        self.prioritizer = Prioritizer(order, ties, order_seed)
        mamba: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "mixer": mixer}
        mamba |= {"direction": direction, "share": share, "merge": merge}
        mamba |= {"headdim": headdim} if mixer == "ssd" else {}
        self.tokens: SubgraphTokens | WalkTokens | None = None
        if m and s:
            if local == "walk":
                self.tokens = WalkTokens(d_model, m, M, s, layers=local_layers, window=window, dropout=dropout)
            else:
                self.tokens = SubgraphTokens(d_model, m, M, s, conv=local, layers=local_layers, dropout=dropout)
            mixers = [TwoWayMamba(d_model, **mamba) for _ in range(token_layers)]
            self.neighborhood = NeighborhoodEncoder(mixers, dropout=dropout)
        self.layers = nn.ModuleList(
            HybridLayer(
                d_model,
                PermutedMixer(TwoWayMamba(d_model, **mamba)),
                make_local(mpnn, d_model, dropout=dropout, update_edges=i < n_layers - 1),
                dropout=dropout,
            )
            for i in range(n_layers)
        )

    def layers_forward(self, batch: GraphBatch, h: Tensor, edge: Tensor, draw: int | None) -> Tensor:
        """From encoded nodes (V, D) and edges (M, D) to the node states (V, D)."""
        draw = draw or 0
        if self.tokens is not None:
            names: WalkNames | None = None if self.training else walk_names(batch, self.prioritizer.ties)
            h = self.neighborhood(self.tokens(batch, h, edge, names, self.order_seed, draw))
        priority = self.prioritizer.priority(batch, self.training)
        names_of_order = None if self.training else self.prioritizer.names(batch)
        draws = range(draw, draw + 1)
        arrangements = arrange_layers(batch, priority, names_of_order, self.order_seed, len(self.layers), draws)
        for layer, arranged in zip(self.layers, arrangements, strict=True):
            h, edge = layer(h, batch.edge_index, edge, arranged)
        return h

    def node_columns(self, batch: GraphBatch) -> dict[str, Tensor]:
        """Priorities within each graph, and the names of the nodes at inference."""
        columns = self.prioritizer.columns(batch)
        return columns if self.tokens is None else columns | walk_names(batch, self.prioritizer.ties).columns(batch)

    @property
    def columns_key(self) -> str | None:
        """As Graph-Mamba's."""
        key = self.prioritizer.key
        return key if key is None or self.tokens is None else f"{key} walks"
