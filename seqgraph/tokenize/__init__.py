"""From domain objects to token streams: nodes, neighbourhoods, walks, residues, interaction contexts, histories."""

from seqgraph.tokenize.history import LeaveOneOut, Targets, histories, keep_last, leave_one_out
from seqgraph.tokenize.interaction import interaction_contexts, join_contexts, negative_walks, node2vec_walks
from seqgraph.tokenize.neighborhood import NeighborhoodTokens, neighborhoods
from seqgraph.tokenize.node import nodes
from seqgraph.tokenize.protein import EDGE, RESIDUE, SPECIAL, ProteinAlphabet, residues
from seqgraph.tokenize.walk import Walks, walks

__all__ = [
    "EDGE",
    "RESIDUE",
    "SPECIAL",
    "LeaveOneOut",
    "NeighborhoodTokens",
    "ProteinAlphabet",
    "Targets",
    "Walks",
    "histories",
    "interaction_contexts",
    "join_contexts",
    "keep_last",
    "leave_one_out",
    "negative_walks",
    "neighborhoods",
    "node2vec_walks",
    "nodes",
    "residues",
    "walks",
]
