"""Walk tokens: Mamba along random walks, read back onto nodes and edges (as NeuralWalker, arXiv:2406.03386)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqgraph.encode import BiMamba
from seqgraph.tokenize import Walks
from seqgraph_graph_mamba.base import GraphModel, Level, Pool
from seqgraph_graph_mamba.convolution import Local, make_local
from seqgraph_graph_mamba.encoders import EdgeFeatures, NodeFeatures
from seqgraph_graph_mamba.gather import mean_rows, take_rows
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.layer import VirtualNode, no_virtual
from seqgraph_graph_mamba.norm import RowNorm
from seqgraph_graph_mamba.ordering import Ties
from seqgraph_graph_mamba.positional import Encoding
from seqgraph_graph_mamba.sampling import sample_walks, walk_names


class WalkMixer(nn.Module):
    """Read nodes and edges along walks, mix each walk, and take the mean over all visits of a node, and of an edge::

        token = LayerNorm(x[node] + W_e e[edge that led there] + W_w [what the window saw])

    With an identity for ``mamba``, no edges and no window, each node that a walk visits gets its own token back.

    Args:
        d_model: D.
        window: w; the window's features are 2w - 1.
        mamba: (tokens (T, D), cu_seqlens) -> (T, D).
    """

    def __init__(self, d_model: int, window: int, mamba: nn.Module) -> None:
        super().__init__()
        self.edge = nn.Linear(d_model, d_model)
        self.window = nn.Linear(2 * window - 1, d_model) if window else None
        self.norm = nn.LayerNorm(d_model)
        self.mamba = mamba

    def forward(self, x: Tensor, edge: Tensor, walks: Walks) -> tuple[Tensor, Tensor]:
        """x (V, D), edge (M, D) -> means over the visits, (V, D) and (M, D); zeros where no walk came by."""
        # the row of zeros behind the last edge is for the start of a walk, where no edge led to
        edges = nn.functional.pad(self.edge(edge), (0, 0, 0, 1))
        taken = torch.where(walks.edge >= 0, walks.edge, len(edge))
        tokens = take_rows(x, walks.stream.source) + take_rows(edges, taken)
        if self.window is not None:
            tokens = tokens + self.window(walks.features.to(self.window.weight.dtype))
        mixed = self.mamba(self.norm(tokens), walks.stream.cu_seqlens)  # (T, D)
        return mean_rows(mixed, walks.stream.source, len(x)), mean_rows(mixed, taken, len(edge) + 1)[:-1]


class WalkLayer(nn.Module):
    """Walks, then message passing, then the virtual node; each adds to what was there.

    Args:
        d_model: D.
        mixer: the walks' mixer.
        local: message passing, or None.
        virtual: the virtual node, or None.
        update_edges: False when nobody reads the edges any more.
        dropout: in the MLPs behind the means.
    """

    def __init__(
        self,
        d_model: int,
        mixer: WalkMixer,
        local: nn.Module | None,
        virtual: VirtualNode | None,
        *,
        update_edges: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mixer, self.local, self.virtual = mixer, local, virtual
        self.to_node = _mlp(d_model, dropout)
        self.to_edge = _mlp(d_model, dropout) if update_edges else None

    def forward(
        self, h: Tensor, edge: Tensor, virtual: Tensor, graphs: GraphBatch, walks: Walks
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h (V, D), edge (M, D), virtual (S, D) -> the new ones."""
        at_nodes, at_edges = self.mixer(h, edge, walks)
        h = h + self.to_node(at_nodes)
        if self.to_edge is not None:
            edge = edge + self.to_edge(at_edges)
        if self.local is not None:
            h, edge = self.local(h, graphs.edge_index, edge)
        if self.virtual is not None:
            h, virtual = self.virtual(h, graphs.batch, virtual)
        return h, edge, virtual


def _mlp(d_model: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_model, d_model), RowNorm(d_model), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d_model, d_model)
    )


class WalkMamba(GraphModel):
    """A selective SSM along random walks of one length, in both directions, beside message passing.

    The tokens are visits, and there are about ``rate * (length + 1)`` of them a node, whatever the graph: memory and
    time are linear in it, and a single large graph is as good as many small ones. The walks are drawn once a forward
    pass, for all layers; at inference from hashes, so that a graph has the same walks alone and in any batch.

    Args:
        d_model: D, width of nodes and edges.
        n_layers: number of layers.
        d_out: predictions a graph or a node.
        level, node_features, edge_features, d_node, d_edge, node_sizes, edge_sizes: see
            :class:`seqgraph_graph_mamba.base.GraphModel`.
        length: steps of a walk, which has one token more.
        rate: walks a node on average; every graph has at least one.
        window: w, how many steps the identity and adjacency bits of a token look back.
        mpnn: message passing after the walks: "gin" (published), "gated-gcn" or "none".
        virtual_node: a virtual node after it, but in the last layer.
        d_state, d_conv, expand, mixer, headdim, direction, share, merge: see
            :class:`seqgraph_graph_mamba.model.GraphMamba`; published: both directions, nothing shared, their mean.
        ties: what names a node at inference, "canonical" (its surroundings) or "index" (its number).
        n_samples: sets of walks whose predictions are averaged at inference.
        walk_seed: of the walks at inference. Those of training come from torch's global generator.
        dropout: probability, everywhere.
        pe, pe_size, pe_width, pe_norm, pool, head_layers: see :class:`seqgraph_graph_mamba.base.GraphModel`.
    """

    def __init__(
        self,
        d_model: int = 52,
        n_layers: int = 6,
        d_out: int = 1,
        *,
        level: Level = "graph",
        node_features: NodeFeatures = "atom",
        edge_features: EdgeFeatures = "bond",
        d_node: int | None = None,
        d_edge: int | None = None,
        node_sizes: Sequence[int] | None = None,
        edge_sizes: Sequence[int] | None = None,
        length: int = 99,
        rate: float = 0.5,
        window: int = 16,
        mpnn: Local = "gin",
        virtual_node: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        mixer: Literal["s6", "ssd"] = "s6",
        headdim: int = 64,
        direction: Literal["forward", "reverse", "both"] = "both",
        share: Literal["none", "projections", "all"] = "none",
        merge: Literal["sum", "mean", "concat", "gate"] = "mean",
        ties: Ties = "canonical",
        n_samples: int = 1,
        walk_seed: int = 0,
        dropout: float = 0.0,
        pe: Encoding = "none",
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
        )
        self.passes, self.ties, self.walk_seed = n_samples, ties, walk_seed
        self.walk: dict[str, Any] = {"length": length, "rate": rate, "window": window}
        mamba: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "mixer": mixer}
        mamba |= {"direction": direction, "share": share, "merge": merge}
        mamba |= {"headdim": headdim} if mixer == "ssd" else {}
        last = n_layers - 1
        self.layers = nn.ModuleList(
            WalkLayer(
                d_model,
                WalkMixer(d_model, window, BiMamba(d_model, **mamba)),
                make_local(mpnn, d_model, dropout=dropout, update_edges=i < last),
                VirtualNode(d_model, dropout=dropout) if virtual_node and i < last else None,
                update_edges=i < last or mpnn != "none",
                dropout=dropout,
            )
            for i in range(n_layers)
        )
        self.out = _mlp(d_model, dropout)

    def layers_forward(self, batch: GraphBatch, h: Tensor, edge: Tensor, draw: int | None) -> Tensor:
        """From encoded nodes (V, D) and edges (M, D) to the node states (V, D)."""
        walks = self.walks(batch, draw or 0)
        virtual = no_virtual(h, batch.num_graphs)
        for layer in self.layers:
            h, edge, virtual = layer(h, edge, virtual, batch, walks)
        return self.out(h)

    def walks(self, batch: GraphBatch, draw: int = 0) -> Walks:
        """The walks of a batch: new ones in training, at inference those of the seed and the draw."""
        if self.training:
            return sample_walks(batch, **self.walk)
        return sample_walks(batch, **self.walk, names=walk_names(batch, self.ties), seed=self.walk_seed, draw=draw)

    def node_columns(self, batch: GraphBatch) -> dict[str, Tensor]:
        """The names and the canonical numbers of the nodes, for the walks at inference."""
        return walk_names(batch, self.ties).columns(batch)
