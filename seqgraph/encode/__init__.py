"""Encoders: stacks of selective state-space blocks on packed streams."""

from seqgraph.encode.bidirectional import BiMamba
from seqgraph.encode.encoder import Block, Encoder
from seqgraph.encode.head import MLP
from seqgraph.encode.mixer import Mamba, SelectiveSSM
from seqgraph.encode.norm import LayerNorm, RMSNorm, make_norm

__all__ = ["MLP", "BiMamba", "Block", "Encoder", "LayerNorm", "Mamba", "RMSNorm", "SelectiveSSM", "make_norm"]
