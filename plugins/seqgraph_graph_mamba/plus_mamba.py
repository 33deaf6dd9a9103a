"""GNN+ with a selective state-space model beside each convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from seqgraph.encode import BiMamba
from seqgraph_graph_mamba.activation import Activation
from seqgraph_graph_mamba.arrangement import Arrangement, arrange_layers
from seqgraph_graph_mamba.base import GraphModel, Level, Pool
from seqgraph_graph_mamba.encoders import EdgeFeatures, NodeFeatures
from seqgraph_graph_mamba.gnn_plus import PlusLayer
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.layer import PermutedMixer
from seqgraph_graph_mamba.norm import RowNorm
from seqgraph_graph_mamba.ordering import OrderFunction, Prioritizer, Ties
from seqgraph_graph_mamba.positional import Encoding

# The branch begins small: a training begins with what is nearly GNN+.
_FIRST_WEIGHT = 0.1


class PlusMambaLayer(PlusLayer):
    """A layer of GNN+, and a narrow Mamba over all nodes of a graph beside its convolution::

        h <- dropout(act(BN(conv(h, e)))) + dropout(BN(W_up mamba(LN(W_down h)))) [+ h]     [residual]
        h <- BN(h' + FF(h')) with h' = BN(h)                                                [feed_forward]

    A Mamba multiplies what it reads with what it has made of it, several times over: without the LayerNorm what it says
    of a node far from all others grows with a power of the distance. While training, BatchNorm's statistics hold that
    node too and hide it; the running ones do not.

    Args:
        d_model: D.
        conv: the convolution, "gcn" or "gin".
        width: W, of the mixer.
        mixer: (h (V, W), tokens) -> (V, W).
        residual, feed_forward: as above.
        dropout: after both, and in the feed-forward block.
        activation: "relu" or "gelu".
    """

    def __init__(
        self,
        d_model: int,
        conv: Literal["gcn", "gin"],
        width: int,
        mixer: nn.Module,
        *,
        residual: bool = False,
        feed_forward: bool = False,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(
            d_model,
            conv,
            normalize=False,
            residual=residual,
            feed_forward=feed_forward,
            dropout=dropout,
            update_edges=False,
            activation=activation,
        )
        self.down, self.mixer, self.up = nn.Linear(d_model, width), mixer, nn.Linear(width, d_model, bias=False)
        self.mixer_in, self.mixer_norm = nn.LayerNorm(width), RowNorm(d_model)
        nn.init.constant_(self.mixer_norm.weight, _FIRST_WEIGHT)

    def forward(  # type: ignore[override]
        self, h: Tensor, edge_index: Tensor, edge: Tensor, tokens: Arrangement
    ) -> tuple[Tensor, Tensor]:
        """h (V, D), edge_index (2, M), edge (M, D) -> new h, and edge as it was."""
        mixed = self.dropout(self.mixer_norm(self.up(self.mixer(self.mixer_in(self.down(h)), tokens))))
        return self.close(h, self.convolved(h, edge_index, edge) + mixed), edge


class PlusMamba(GraphModel):
    """GCN+ or GIN+ (:class:`seqgraph_graph_mamba.gnn_plus.GNNPlus`) with a narrow BiMamba over prioritized nodes.

    Most parameters stay with the message passing, which decides how good a model of molecules is; the state-space
    model carries what lies further away than the layers reach. Not published.

    Args:
        d_model: D, width of nodes and edges.
        n_layers: number of layers.
        d_out: predictions a graph or a node.
        level, node_features, edge_features, d_node, d_edge, node_sizes, edge_sizes: see
            :class:`seqgraph_graph_mamba.base.GraphModel`.
        conv: "gcn" or "gin".
        every: of how many layers the last has a Mamba; the others are layers of GNN+.
        width: channels of the Mamba.
        d_state, d_conv, expand, mixer, headdim, direction, share, merge, order, ties, n_permutations, order_seed: see
            :class:`seqgraph_graph_mamba.model.GraphMamba`; draws are averaged within each layer.
        residual, feed_forward, dropout, activation: see :class:`seqgraph_graph_mamba.gnn_plus.GNNPlus`.
        pe, pe_size, pe_width, pe_norm, pool, head_layers: see :class:`seqgraph_graph_mamba.base.GraphModel`.
    """

    def __init__(
        self,
        d_model: int = 208,
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
        conv: Literal["gcn", "gin"] = "gcn",
        every: int = 1,
        width: int = 64,
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
        n_permutations: int = 5,
        order_seed: int = 0,
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
        self.n_permutations, self.order_seed = n_permutations, order_seed
        self.prioritizer = Prioritizer(order, ties, order_seed)
        mamba: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "mixer": mixer}
        mamba |= {"direction": direction, "share": share, "merge": merge}
        mamba |= {"headdim": headdim} if mixer == "ssd" else {}
        plus: dict[str, Any] = {"residual": residual, "feed_forward": feed_forward, "dropout": dropout}
        plus |= {"activation": activation}
        self.layers = nn.ModuleList(
            PlusMambaLayer(d_model, conv, width, PermutedMixer(BiMamba(width, **mamba)), **plus)
            if i % every == 0
            else PlusLayer(d_model, conv, normalize=False, update_edges=False, **plus)
            for i in range(1, n_layers + 1)
        )

    def layers_forward(self, batch: GraphBatch, h: Tensor, edge: Tensor, draw: int | None) -> Tensor:
        """From encoded nodes (V, D) and edges (M, D) to the node states (V, D)."""
        priority = self.prioritizer.priority(batch, self.training)
        names = None if self.training else self.prioritizer.names(batch)
        draws = range(self.n_permutations) if draw is None else range(draw, draw + 1)
        mixing = sum(isinstance(layer, PlusMambaLayer) for layer in self.layers)
        tokens = iter(arrange_layers(batch, priority, names, self.order_seed, mixing, draws))
        for layer in self.layers:
            arranged = (next(tokens),) if isinstance(layer, PlusMambaLayer) else ()
            h, edge = layer(h, batch.edge_index, edge, *arranged)
        return h

    def node_columns(self, batch: GraphBatch) -> dict[str, Tensor]:
        """Priorities within each graph, and the names of the nodes at inference."""
        return self.prioritizer.columns(batch)

    @property
    def columns_key(self) -> str | None:
        """As Graph-Mamba's."""
        return self.prioritizer.key
