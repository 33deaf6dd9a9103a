"""What may be set of each model, and its defaults. Imports pydantic alone."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class GraphModelConfig(BaseModel):
    """What every model of graphs has; :class:`seqgraph_graph_mamba.base.GraphModel` explains it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    d_model: PositiveInt = 96
    n_layers: PositiveInt = 4
    d_out: PositiveInt = 1
    level: Literal["graph", "node"] = "graph"
    node_features: Literal["atom", "linear", "codes"] = "atom"
    edge_features: Literal["bond", "linear", "codes", "none"] = "bond"
    d_node: PositiveInt | None = None
    d_edge: PositiveInt | None = None
    node_sizes: tuple[PositiveInt, ...] | None = None
    edge_sizes: tuple[PositiveInt, ...] | None = None
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    pe: Literal["none", "rwse", "laplacian"] = "rwse"
    pe_size: PositiveInt = 16
    pe_width: PositiveInt = 16
    pe_norm: bool = False
    pool: Literal["mean", "sum", "max"] = "mean"
    head_layers: PositiveInt = 2

    @model_validator(mode="after")
    def _features_are_said(self) -> GraphModelConfig:
        for side in ("node", "edge"):
            kind = getattr(self, f"{side}_features")
            needed = {"linear": f"d_{side}", "codes": f"{side}_sizes"}.get(kind)
            if needed and getattr(self, needed) is None:
                what = "number of feature columns" if kind == "linear" else "number of codes in each column"
                raise ValueError(f"{side}_features: {kind} needs {needed}, the {what}")
        if self.pe != "none" and self.pe_width >= self.d_model:
            raise ValueError(f"pe_width {self.pe_width} leaves nothing of d_model {self.d_model} to the features")
        return self


class _MambaConfig(GraphModelConfig):
    """The arguments of :class:`seqgraph.encode.BiMamba`."""

    d_state: PositiveInt = 16
    d_conv: PositiveInt = 4
    expand: PositiveInt = 1
    mixer: Literal["s6", "ssd"] = "s6"
    headdim: PositiveInt = 64
    direction: Literal["forward", "reverse", "both"] = "both"
    share: Literal["none", "projections", "all"] = "none"
    merge: Literal["sum", "mean", "concat", "gate"] = "sum"

    @model_validator(mode="after")
    def _heads_fit(self) -> _MambaConfig:
        inner = self.expand * self.mixed_channels()
        if self.mixer == "ssd" and inner % self.headdim:
            raise ValueError(f"expand * channels is {inner}, no multiple of headdim {self.headdim}")
        return self

    def mixed_channels(self) -> int:
        """Channels that the mixer sees."""
        return self.d_model


class GraphMambaConfig(_MambaConfig):
    """Arguments of :class:`seqgraph_graph_mamba.model.GraphMamba`."""

    direction: Literal["forward", "reverse", "both"] = "forward"
    order: str = "degree"
    ties: Literal["canonical", "index"] = "canonical"
    jitter: float = Field(0.0, ge=0.0)
    buckets: PositiveInt = 1
    neighbors: int = Field(0, ge=0)
    n_permutations: PositiveInt = 5
    average: Literal["layer", "output"] = "layer"
    order_seed: int = 0
    head_dropout: float | None = Field(None, ge=0.0, lt=1.0)
    activation: Literal["relu", "gelu"] = "relu"


class GMNConfig(_MambaConfig):
    """Arguments of :class:`seqgraph_graph_mamba.gmn.GMN`; ``m``, ``M`` and ``s`` are the paper's letters."""

    d_model: PositiveInt = 72
    m: int = Field(4, ge=0)
    M: PositiveInt = 4
    s: int = Field(2, ge=0)
    local: Literal["gin", "gated-gcn", "walk"] = "gin"
    local_layers: PositiveInt = 1
    token_layers: PositiveInt = 1
    mpnn: Literal["gated-gcn", "gin", "gcn", "none"] = "gated-gcn"
    window: int = Field(4, ge=0)
    order: str = "degree"
    ties: Literal["canonical", "index"] = "canonical"
    n_samples: PositiveInt = 1
    order_seed: int = 0


class WalkMambaConfig(_MambaConfig):
    """Arguments of :class:`seqgraph_graph_mamba.walk_mamba.WalkMamba`."""

    d_model: PositiveInt = 52
    n_layers: PositiveInt = 6
    expand: PositiveInt = 2
    merge: Literal["sum", "mean", "concat", "gate"] = "mean"
    pe: Literal["none", "rwse", "laplacian"] = "none"
    length: PositiveInt = 99
    rate: float = Field(0.5, gt=0.0)
    window: int = Field(16, ge=0)
    mpnn: Literal["gin", "gated-gcn", "none"] = "gin"
    virtual_node: bool = True
    ties: Literal["canonical", "index"] = "canonical"
    n_samples: PositiveInt = 1
    walk_seed: int = 0


class GNNPlusConfig(GraphModelConfig):
    """Arguments of :class:`seqgraph_graph_mamba.gnn_plus.GNNPlus`."""

    d_model: PositiveInt = 272
    n_layers: PositiveInt = 3
    conv: Literal["gcn", "gin", "gated-gcn"] = "gcn"
    normalize: bool = False
    residual: bool = False
    feed_forward: bool = False
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    activation: Literal["relu", "gelu"] = "relu"
    pe_size: PositiveInt = 32
    pe_width: PositiveInt = 28
    pe_norm: bool = True
    head_layers: PositiveInt = 4


class GINVNConfig(GraphModelConfig):
    """Arguments of :class:`seqgraph_graph_mamba.gin_vn.GINVN`."""

    d_model: PositiveInt = 300
    n_layers: PositiveInt = 5
    residual: bool = False
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    pe: Literal["none", "rwse", "laplacian"] = "none"
    head_layers: PositiveInt = 1


class PlusMambaConfig(_MambaConfig):
    """Arguments of :class:`seqgraph_graph_mamba.plus_mamba.PlusMamba`."""

    d_model: PositiveInt = 208
    n_layers: PositiveInt = 3
    conv: Literal["gcn", "gin"] = "gcn"
    every: PositiveInt = 1
    width: PositiveInt = 64
    order: str = "degree"
    ties: Literal["canonical", "index"] = "canonical"
    n_permutations: PositiveInt = 5
    order_seed: int = 0
    residual: bool = False
    feed_forward: bool = False
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    activation: Literal["relu", "gelu"] = "relu"
    pe_size: PositiveInt = 32
    pe_width: PositiveInt = 28
    pe_norm: bool = True
    head_layers: PositiveInt = 4

    @model_validator(mode="after")
    def _some_layer_mixes(self) -> PlusMambaConfig:
        if self.every > self.n_layers:
            raise ValueError(f"every {self.every} is more than n_layers {self.n_layers}: no layer would have a Mamba")
        return self

    def mixed_channels(self) -> int:
        """Channels that the mixer sees."""
        return self.width


class GPSConfig(GraphModelConfig):
    """Arguments of :class:`seqgraph_graph_mamba.gps.GPS`."""

    d_model: PositiveInt = 76
    n_layers: PositiveInt = 6
    heads: PositiveInt = 4
    mpnn: Literal["gated-gcn", "gin", "none"] = "gated-gcn"
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    attention_dropout: float = Field(0.1, ge=0.0, lt=1.0)
    pe: Literal["none", "rwse", "laplacian"] = "laplacian"
    pe_size: PositiveInt = 10

    @model_validator(mode="after")
    def _heads_divide(self) -> GPSConfig:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of heads {self.heads}")
        return self
