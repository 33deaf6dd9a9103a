"""GNN+ (Luo, Shi & Wu, *Unlocking the Potential of Classic GNNs*, 2025, arXiv:2502.09263): tuned baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from seqgraph_graph_mamba.activation import Activation, make_activation
from seqgraph_graph_mamba.base import GraphModel, Level, Pool
from seqgraph_graph_mamba.convolution import GCN, GINE
from seqgraph_graph_mamba.encoders import EdgeFeatures, NodeFeatures
from seqgraph_graph_mamba.gated_gcn import GatedGCN
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.norm import RowNorm
from seqgraph_graph_mamba.positional import Encoding

Convolution = Literal["gcn", "gin", "gated-gcn"]


class PlusLayer(nn.Module):
    """One layer of GNN+::

        h <- dropout(act(BN(conv(h)))) [+ h]           [residual]
        h <- BN(h' + FF(h')) with h' = BN(h)           [feed_forward], FF: D -> 2D -> D

    GatedGCN holds the first line itself, for nodes and edges.
    """

    def __init__(
        self,
        d_model: int,
        conv: Convolution,
        *,
        normalize: bool,
        residual: bool,
        feed_forward: bool,
        dropout: float,
        update_edges: bool,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.gated: GatedGCN | None = None
        if conv == "gated-gcn":
            self.gated = GatedGCN(
                d_model, dropout=dropout, update_edges=update_edges, residual=residual, activation=activation
            )
        else:
            self.conv = GCN(d_model, normalize=normalize) if conv == "gcn" else GINE(d_model)
            self.norm = RowNorm(d_model)
        self.activation = make_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward: nn.Sequential | None = None
        if feed_forward:
            self.in_norm, self.out_norm = RowNorm(d_model), RowNorm(d_model)
            self.feed_forward = nn.Sequential(
                nn.Linear(d_model, 2 * d_model),
                make_activation(activation),
                nn.Dropout(dropout),
                nn.Linear(2 * d_model, d_model),
                nn.Dropout(dropout),
            )

    def forward(self, h: Tensor, edge_index: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """h (V, D), edge_index (2, M), edge (M, D) -> new h and edge."""
        if self.gated is not None:
            h, edge = self.gated(h, edge_index, edge)
            return self.fed_forward(h), edge
        return self.close(h, self.convolved(h, edge_index, edge)), edge

    def convolved(self, h: Tensor, edge_index: Tensor, edge: Tensor) -> Tensor:
        """``dropout(act(BN(conv(h))))``, (V, D)."""
        return self.dropout(self.activation(self.norm(self.conv(h, edge_index, edge))))

    def close(self, h: Tensor, new: Tensor) -> Tensor:
        """The residual and the feed-forward block, where the layer has them: (V, D), (V, D) -> (V, D)."""
        return self.fed_forward(h + new if self.residual else new)

    def fed_forward(self, h: Tensor) -> Tensor:
        """The feed-forward block, where the layer has one: (V, D) -> (V, D)."""
        if self.feed_forward is None:
            return h
        h = self.in_norm(h)
        return self.out_norm(h + self.feed_forward(h))


class GNNPlus(GraphModel):
    """Message passing done well, without any long-range part: the baseline that a long-range model has to beat.

    The recipe: edge features in every message, BatchNorm, dropout, where it helps residuals and feed-forward blocks,
    RWSE, and a deep head.

    Args:
        d_model: D, width of nodes and edges.
        n_layers: number of layers.
        d_out: predictions a graph or a node.
        level, node_features, edge_features, d_node, d_edge, node_sizes, edge_sizes: see
            :class:`seqgraph_graph_mamba.base.GraphModel`.
        conv: "gcn", "gin" or "gated-gcn".
        normalize: "gcn" as in the paper's formula instead of its code; see :class:`GCN`.
        residual: around each convolution.
        feed_forward: a feed-forward block after each convolution.
        dropout: probability in the layers, and before every linear layer of the head, the first included.
        activation: of the layers and the head: "relu" or "gelu" (the authors' for LRGB). Messages stay relu.
        pe, pe_size, pe_width, pe_norm, pool, head_layers: see :class:`seqgraph_graph_mamba.base.GraphModel`.
    """

    def __init__(
        self,
        d_model: int = 272,
        n_layers: int = 3,
        d_out: int = 1,
        *,
        level: Level = "graph",
        node_features: NodeFeatures = "atom",
        edge_features: EdgeFeatures = "bond",
        d_node: int | None = None,
        d_edge: int | None = None,
        node_sizes: Sequence[int] | None = None,
        edge_sizes: Sequence[int] | None = None,
        conv: Convolution = "gcn",
        normalize: bool = False,
        residual: bool = False,
        feed_forward: bool = False,
        dropout: float = 0.2,
        activation: Activation = "relu",
        pe: Encoding = "rwse",
        pe_size: int = 32,
        pe_width: int = 28,
        pe_norm: bool = True,
        pool: Pool = "mean",
        head_layers: int = 4,
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
            dropout=0.0,
            pe=pe,
            pe_size=pe_size,
            pe_width=pe_width,
            pe_norm=pe_norm,
            pool=pool,
            head_layers=head_layers,
            head_dropout=dropout,
            activation=activation,
        )
        self.layers = nn.ModuleList(
            PlusLayer(
                d_model,
                conv,
                normalize=normalize,
                residual=residual,
                feed_forward=feed_forward,
                dropout=dropout,
                update_edges=i < n_layers - 1,
                activation=activation,
            )
            for i in range(n_layers)
        )

    def layers_forward(self, batch: GraphBatch, h: Tensor, edge: Tensor, draw: int | None) -> Tensor:
        """From encoded nodes (V, D) and edges (M, D) to the node states (V, D)."""
        for layer in self.layers:
            h, edge = layer(h, batch.edge_index, edge)
        return h
