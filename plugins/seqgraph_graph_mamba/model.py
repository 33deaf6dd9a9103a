"""Graph-Mamba (Wang, Tsepa, Ma & Wang, 2024, arXiv:2402.00789)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from seqgraph_graph_mamba.activation import Activation
from seqgraph_graph_mamba.arrangement import arrange, arrange_layers
from seqgraph_graph_mamba.base import GraphModel, Level, Pool
from seqgraph_graph_mamba.encoders import EdgeFeatures, NodeFeatures
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.layer import GraphMambaLayer
from seqgraph_graph_mamba.ordering import Chance, OrderFunction, Prioritizer, Ties
from seqgraph_graph_mamba.positional import Encoding


class GraphMamba(GraphModel):
    """Message passing beside a selective state-space model over prioritized nodes.

    Args:
        d_model: D, width of nodes and edges.
        n_layers: number of layers.
        d_out: predictions a graph or a node.
        level, node_features, edge_features, d_node, d_edge, node_sizes, edge_sizes: see
            :class:`seqgraph_graph_mamba.base.GraphModel`.
        d_state: N, Mamba's state size.
        d_conv: width of its convolution.
        expand: its inner width over D; published: 1.
        mixer: "s6" (Mamba-1, published) or "ssd" (Mamba-2).
        headdim: channels of a head, for "ssd"; expand * d_model is a multiple of it.
        direction: "forward" (published), "reverse" or "both".
        share: what two directions share; see :class:`seqgraph.encode.BiMamba`.
        merge: how they merge.
        order: a name of ``seqgraph orders`` ("degree", published; "eigenvector", "rwse", ...), "random" (no priority),
            "cluster" (Louvain's communities, which are permuted, their nodes at random inside), "none" (nodes as they
            come), or a function ``(edge_index, num_nodes, batch, *, generator) -> scores (V,)``; important nodes last.
        ties: at inference, noise within equal priority from a node's surroundings ("canonical": another numbering
            of the nodes, or another spelling of a molecule, gives the same draws) or from its number ("index").
        jitter: noise on the scores, uniform and as wide as this many standard deviations of the graph's scores, beside
            the permutation of equals: published: about 1 for "eigenvector" and "rwse".
        buckets: every draw deals the nodes out to so many sequences at random, which do not see one another.
            Published for PascalVOC-SP, COCO-SP and MalNet-Tiny: 2 in the paper, 3 in its code.
        neighbors: each node is preceded by at most so many of its neighbours, drawn at random (``Mamba_Augment``: 3).
        n_permutations: draws at inference.
        average: over draws within each layer ("layer", published), or over whole forward passes ("output").
        order_seed: seed of the draws at inference. Draws of training come from torch's global generator.
        dropout: probability in the layers, and in the head as ``head_dropout`` says.
        pe, pe_size, pe_width, pe_norm: see :class:`seqgraph_graph_mamba.base.GraphModel`; published: "laplacian".
        pool: "mean" (published), "sum" or "max" over a graph's nodes.
        head_layers: linear layers of the head; published for Peptides: 1.
        head_dropout: see :class:`seqgraph_graph_mamba.base.GraphModel`.
        activation: of the layers and the head: "relu" (published) or "gelu".
    """

    def __init__(
        self,
        d_model: int = 96,
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
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 1,
        mixer: Literal["s6", "ssd"] = "s6",
        headdim: int = 64,
        direction: Literal["forward", "reverse", "both"] = "forward",
        share: Literal["none", "projections", "all"] = "none",
        merge: Literal["sum", "mean", "concat", "gate"] = "sum",
        order: str | OrderFunction = "degree",
        ties: Ties = "canonical",
        jitter: float = 0.0,
        buckets: int = 1,
        neighbors: int = 0,
        n_permutations: int = 5,
        average: Literal["layer", "output"] = "layer",
        order_seed: int = 0,
        dropout: float = 0.0,
        pe: Encoding = "rwse",
        pe_size: int = 16,
        pe_width: int = 16,
        pe_norm: bool = False,
        pool: Pool = "mean",
        head_layers: int = 2,
        head_dropout: float | None = None,
        activation: Activation = "relu",
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
            head_dropout=head_dropout,
            activation=activation,
        )
        self.passes = n_permutations if average == "output" else 1
        self.n_permutations, self.order_seed = n_permutations, order_seed
        self.tokens: dict[str, Any] = {"jitter": jitter, "buckets": buckets, "neighbors": neighbors}
        self.prioritizer = Prioritizer(order, ties, order_seed, keep_scores=jitter > 0)
        mamba: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "mixer": mixer}
        mamba |= {"headdim": headdim} if mixer == "ssd" else {}
        self.layers = nn.ModuleList(
            GraphMambaLayer(
                d_model,
                dropout=dropout,
                # nobody reads the edges of the last layer
                update_edges=i < n_layers - 1,
                activation=activation,
                direction=direction,
                share=share,
                merge=merge,
                **mamba,
            )
            for i in range(n_layers)
        )

    def layers_forward(self, batch: GraphBatch, h: Tensor, edge: Tensor, draw: int | None) -> Tensor:
        """From encoded nodes (V, D) and edges (M, D) to the node states (V, D).

        With ``draw``, each layer uses this one permutation at inference; without, the mean of all.
        """
        priority = self.prioritizer.priority(batch, self.training)
        names = None if self.training else self.prioritizer.names(batch)
        draws = range(self.n_permutations) if draw is None else range(draw, draw + 1)
        tokens = arrange_layers(batch, priority, names, self.order_seed, len(self.layers), draws, **self.tokens)
        for layer, arranged in zip(self.layers, tokens, strict=True):
            h, edge = layer(h, batch.edge_index, edge, arranged)
        return h

    def node_columns(self, batch: GraphBatch) -> dict[str, Tensor]:
        """Priorities within each graph, and the names of the nodes at inference."""
        return self.prioritizer.columns(batch)

    @property
    def columns_key(self) -> str | None:
        """What the columns hang on beside the graphs; None for an order that is a function of the user's."""
        return self.prioritizer.key

    def node_order(self, batch: GraphBatch, draw: int = 0) -> Tensor:
        """Nodes in the token order of the first layer at inference, (V,) int64: what a picture should show.

        Buckets and neighbours, which are not an order of all nodes, are left out.
        """
        chance = Chance(self.prioritizer.names(batch), self.order_seed, 0, range(draw, draw + 1))
        priority = self.prioritizer.priority(batch, training=False)
        return arrange(batch, priority, chance, jitter=self.tokens["jitter"]).node
