"""What every model of graphs shares: features in, predictions out, and the use on raw input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqgraph.encode import MLP
from seqgraph.errors import ConfigError, DataError
from seqgraph_graph_mamba.activation import Activation
from seqgraph_graph_mamba.encoders import EdgeEncoder, EdgeFeatures, NodeEncoder, NodeFeatures
from seqgraph_graph_mamba.gather import pool_rows
from seqgraph_graph_mamba.graph import Graph, GraphBatch, collate, standardize
from seqgraph_graph_mamba.positional import Encoding, encode_batch

Level = Literal["graph", "node"]
Pool = Literal["mean", "sum", "max"]


class GraphModel(nn.Module):
    """Encoders of nodes and edges, and a head; a model fills :meth:`layers_forward` in between.

    Args:
        d_model: D, width of nodes and edges.
        d_out: K, predictions a graph or a node; for links, the width whose dot products are scores.
        level: "graph" (one row a graph) or "node" (one row a node).
        node_features: "atom" (OGB's nine codes), "linear" (d_node floating columns) or "codes" (integer columns).
        edge_features: "bond" (OGB's three codes), "linear", "codes" or "none".
        d_node: columns of floating node features.
        d_edge: columns of floating edge features.
        node_sizes: how many codes each integer column of the nodes has.
        edge_sizes: the same of the edges.
        dropout: probability in the head, after its activations.
        pe: positional encoding: "none", "rwse" (return probabilities of random walks) or "laplacian".
        pe_size: steps, or eigenvectors.
        pe_width: channels of the encoding, out of D.
        pe_norm: a BatchNorm in front of "rwse" (GraphGPS, GNN+).
        pool: "mean", "sum" or "max" over a graph's nodes.
        head_layers: linear layers of the head.
        head_dropout: instead of ``dropout``, before every linear layer of the head: the first reads the pooled graph.
        activation: of the head: "relu" or "gelu".
        reads_edges: False for a model that has no use for the edges' features.

    Attributes:
        assets: what the data set knows about the targets (``targets``: names, mean, std, kind, unit) and the features
            (``features``: how they were standardised); JSON only.
        passes: whole forward passes whose outputs are averaged at inference.
    """

    passes: int = 1

    def __init__(
        self,
        d_model: int,
        d_out: int,
        *,
        level: Level,
        node_features: NodeFeatures,
        edge_features: EdgeFeatures,
        d_node: int | None,
        d_edge: int | None,
        node_sizes: Sequence[int] | None,
        edge_sizes: Sequence[int] | None,
        dropout: float,
        pe: Encoding,
        pe_size: int,
        pe_width: int,
        pe_norm: bool,
        pool: Pool,
        head_layers: int,
        head_dropout: float | None = None,
        activation: Activation = "relu",
        reads_edges: bool = True,
    ) -> None:
        super().__init__()
        self.assets: dict[str, Any] = {}
        self.d_model, self.d_out, self.level, self.pool = d_model, d_out, level, pool
        self.node_features, self.edge_features = node_features, edge_features
        self.pe, self.pe_size = pe, pe_size
        self.node_encoder = NodeEncoder(
            d_model,
            features=node_features,
            d_node=d_node,
            sizes=node_sizes,
            pe=pe,
            pe_size=pe_size,
            pe_width=pe_width,
            pe_norm=pe_norm,
        )
        self.edge_encoder: EdgeEncoder | None = None
        if reads_edges:
            self.edge_encoder = EdgeEncoder(d_model, features=edge_features, d_edge=d_edge, sizes=edge_sizes)
        self.head = MLP(
            d_model,
            d_out,
            n_layers=head_layers,
            dropout=dropout if head_dropout is None else head_dropout,
            input_dropout=head_dropout or 0.0,
            activation=activation,
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def node_dtype(self) -> torch.dtype:
        """Floating type of the parameters."""
        return next(self.parameters()).dtype

    # ------------------------------------------------------------------ forward
    def forward(self, batch: GraphBatch) -> Tensor:
        """One row a graph (S, K), or a node (V, K): standardised values or logits, as the task trained them."""
        if self.training or self.passes == 1:
            return self.read(batch, self.encode(batch))
        single = [self.read(batch, self.encode(batch, draw=draw)) for draw in range(self.passes)]
        return torch.stack(single).mean(0)

    def encode(self, batch: GraphBatch, draw: int | None = None) -> Tensor:
        """Node states after the last layer, (V, D).

        Args:
            batch: the graphs.
            draw: at inference, which of the seeded draws to use; None for what the model does by itself. Models
                without draws take no notice.

        Raises:
            ConfigError: when the batch has other features or another positional encoding than the model.
        """
        self._check(batch)
        pe = batch.pe if batch.pe is not None else encode_batch(batch, self.pe, self.pe_size)
        pe = pe if pe is None else pe.to(self.node_dtype)
        h = self.node_encoder(batch, pe)
        edge = h.new_zeros(batch.num_edges, 0) if self.edge_encoder is None else self.edge_encoder(batch)
        return self.layers_forward(batch, h, edge, draw)

    def layers_forward(self, batch: GraphBatch, h: Tensor, edge: Tensor, draw: int | None) -> Tensor:
        """From encoded nodes (V, D) and edges (M, D) to the node states (V, D)."""
        raise NotImplementedError

    def read(self, batch: GraphBatch, h: Tensor) -> Tensor:
        """The head on the nodes (V, D), or on each graph's pooled nodes."""
        return self.head(h if self.level == "node" else pool_rows(h, batch.batch, batch.num_graphs, self.pool))

    def node_columns(self, batch: GraphBatch) -> dict[str, Tensor]:
        """What the model needs of each graph that no training changes, (V, ...) each; a data set may keep it.

        Where a batch has it in ``columns`` it is taken from there, else computed for each batch anew.
        """
        return {}

    def _check(self, batch: GraphBatch) -> None:
        wanted, floating = self.node_encoder.columns, self.node_features == "linear"
        if batch.x.is_floating_point() != floating or batch.x.shape[1] != wanted:
            kinds = {"atom": "OGB's 9 integer atom codes", "linear": f"{wanted} floating columns"}
            raise ConfigError(
                f"the model reads {kinds.get(self.node_features, f'{wanted} integer codes')} a node, "
                f"the graphs have {batch.x.shape[1]} of {batch.x.dtype}",
                "set model.node_features, and model.d_node or model.node_sizes",
            )
        reads_edges = self.edge_encoder is not None and self.edge_features != "none"
        if reads_edges and batch.num_edges and batch.edge_attr is None:
            raise ConfigError("the model reads edge features, the graphs have none", "set model.edge_features=none")
        if self.pe != "none" and batch.pe is not None:
            shape = (self.pe_size,) if self.pe == "rwse" else (self.pe_size, 2)
            if tuple(batch.pe.shape[1:]) != shape:
                raise ConfigError(
                    f"the model reads a {self.pe} encoding of {self.pe_size}, "
                    f"the graphs carry one of shape {tuple(batch.pe.shape[1:])}",
                    "leave Graph.pe empty and the model computes it",
                )

    # ------------------------------------------------------------------ raw input
    @torch.no_grad()
    def predict(self, inputs: str | Sequence[str | Graph], *, max_tokens: int = 16384) -> np.ndarray:
        """Predict for molecules or graphs.

        Args:
            inputs: SMILES, or graphs (:func:`seqgraph_graph_mamba.graph.from_pyg` and ``from_networkx`` make them); a
                lone SMILES counts as one.
            max_tokens: nodes in a batch; results do not depend on it.

        Returns:
            float64, (n,) for one target and (n, K) for several, one row a graph, or a node of all graphs in turn:
            values in the targets' own unit for a regression, probabilities for labels and classes, and for links
            what their scores are made of.

        Raises:
            DataError: for a malformed SMILES, naming its place in ``inputs``.
        """
        inputs = [inputs] if isinstance(inputs, str) else inputs
        graphs = [self._graph(item, i) for i, item in enumerate(inputs)]
        was_training = self.training
        self.eval()
        try:
            rows = [self(collate(part).to(self.device)).double().cpu() for part in _by_tokens(graphs, max_tokens)]
        finally:
            self.train(was_training)
        raw = torch.cat(rows).numpy() if rows else np.empty((0, self.d_out))
        targets = self.assets.get("targets", {})
        if targets.get("kind") == "classification":
            raw = 1.0 / (1.0 + np.exp(-raw))
        elif targets.get("kind") == "classes":
            raw = torch.from_numpy(raw).softmax(-1).numpy()
        elif "mean" in targets:
            raw = raw * np.asarray(targets["std"]) + np.asarray(targets["mean"])
        return raw[:, 0] if self.d_out == 1 else raw

    def _graph(self, item: str | Graph, index: int) -> Graph:
        where = f"input {index}"
        if isinstance(item, str):
            if self.node_features != "atom":
                raise DataError(
                    f"{where}: this model reads graphs with {self.node_encoder.columns} features a node, not SMILES"
                )
            from seqgraph_graph_mamba.features import smiles_graph

            return smiles_graph(item, where)
        if not isinstance(item, Graph):
            raise DataError(
                f"{where} is a {type(item).__name__}, not a SMILES or a Graph", "see from_pyg and from_networkx"
            )
        item.validate(where)
        if self.node_features == "atom":
            from seqgraph_graph_mamba.codes import check_codes

            check_codes(item, where)
        return standardize(Graph(item.x, item.edge_index, item.edge_attr), self.assets.get("features", {}))


def _by_tokens(graphs: list[Graph], max_tokens: int) -> list[list[Graph]]:
    parts: list[list[Graph]] = []
    held = 0
    for graph in graphs:
        if not parts or held + len(graph) > max_tokens:
            parts.append([])
            held = 0
        parts[-1].append(graph)
        held += len(graph)
    return parts
