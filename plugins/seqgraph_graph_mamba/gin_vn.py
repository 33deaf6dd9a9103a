"""GIN with a virtual node, the baseline of the Open Graph Benchmark (Hu et al., 2020, arXiv:2005.00687)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seqgraph_graph_mamba.base import GraphModel, Level, Pool
from seqgraph_graph_mamba.convolution import GINE
from seqgraph_graph_mamba.encoders import EdgeEncoder, EdgeFeatures, NodeFeatures
from seqgraph_graph_mamba.gather import sum_rows, take_rows
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.norm import RowNorm
from seqgraph_graph_mamba.positional import Encoding


class GINVNLayer(nn.Module):
    """One layer, with u the virtual node of each graph::

        x = h + u[graph]
        h <- dropout(relu(BN(GINE(x, e)))) [+ x]                                     [residual]
        u <- dropout(relu(BN(W_2 relu(BN(W_1 (u + sum of the graph's x)))))) [+ u]   [residual]

    GINE's own MLP and W_1 are 2D wide. The last layer has neither the outer relu nor a new u.

    Args:
        d_model: D.
        residual: as above.
        dropout: as above.
        last: whether it is the last layer.
    """

    def __init__(self, d_model: int, *, residual: bool, dropout: float, last: bool) -> None:
        super().__init__()
        self.residual, self.last = residual, last
        self.conv, self.norm = GINE(d_model, norm=True, expand=2), RowNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.to_virtual: nn.Sequential | None = None
        if not last:
            self.to_virtual = nn.Sequential(
                nn.Linear(d_model, 2 * d_model),
                RowNorm(2 * d_model),
                nn.ReLU(),
                nn.Linear(2 * d_model, d_model),
                RowNorm(d_model),
                nn.ReLU(),
                nn.Dropout(dropout),
            )

    def forward(self, h: Tensor, edge: Tensor, virtual: Tensor, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """h (V, D), edge (M, D), virtual (S, D) -> new h and virtual."""
        x = h + take_rows(virtual, batch.batch)
        h = self.norm(self.conv(x, batch.edge_index, edge))
        h = self.dropout(h if self.last else torch.relu(h))
        if self.to_virtual is not None:
            new = self.to_virtual(virtual + sum_rows(x, batch.batch, len(virtual)))
            virtual = virtual + new if self.residual else new
        return (x + h if self.residual else h), virtual


class GINVN(GraphModel):
    """GIN with edges and a virtual node, as OGB's example code has it (``gin-virtual``): molecules' usual baseline.

    Every layer embeds the edges anew. The virtual nodes start at one learnt vector, zero at first.
    3,336,606 parameters with OGB's codes and one target; OGB's leaderboard says 3,336,306, from before its chirality
    had a fifth code of 300 channels.

    Args:
        d_model: D, width of nodes and edges.
        n_layers: number of layers.
        d_out: predictions a graph or a node.
        level, node_features, edge_features, d_node, d_edge, node_sizes, edge_sizes: see
            :class:`seqgraph_graph_mamba.base.GraphModel`.
        residual: around each layer, and around the virtual node's.
        dropout: after each layer, and after the virtual node's.
        pe, pe_size, pe_width, pe_norm, pool, head_layers: see :class:`seqgraph_graph_mamba.base.GraphModel`; published:
            no encoding, the mean, one linear layer.
    """

    def __init__(
        self,
        d_model: int = 300,
        n_layers: int = 5,
        d_out: int = 1,
        *,
        level: Level = "graph",
        node_features: NodeFeatures = "atom",
        edge_features: EdgeFeatures = "bond",
        d_node: int | None = None,
        d_edge: int | None = None,
        node_sizes: Sequence[int] | None = None,
        edge_sizes: Sequence[int] | None = None,
        residual: bool = False,
        dropout: float = 0.5,
        pe: Encoding = "none",
        pe_size: int = 16,
        pe_width: int = 16,
        pe_norm: bool = False,
        pool: Pool = "mean",
        head_layers: int = 1,
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
        self.virtual = nn.Parameter(torch.zeros(1, d_model))
        last = n_layers - 1
        self.layers = nn.ModuleList(
            GINVNLayer(d_model, residual=residual, dropout=dropout, last=i == last) for i in range(n_layers)
        )
        # the base class has the edges of the first layer
        self.edge_encoders = nn.ModuleList(
            EdgeEncoder(d_model, features=edge_features, d_edge=d_edge, sizes=edge_sizes) for _ in range(last)
        )

    def layers_forward(self, batch: GraphBatch, h: Tensor, edge: Tensor, draw: int | None) -> Tensor:
        """From encoded nodes (V, D) and edges (M, D) to the node states (V, D)."""
        virtual = self.virtual.to(h.dtype).expand(batch.num_graphs, -1)
        for i, layer in enumerate(self.layers):
            edge = edge if i == 0 else self.edge_encoders[i - 1](batch)
            h, virtual = layer(h, edge, virtual, batch)
        return h
