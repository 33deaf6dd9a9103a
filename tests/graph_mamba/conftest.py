"""Small graphs, and a model of them."""

from __future__ import annotations

import pytest
import torch

from seqgraph_graph_mamba.example import EXAMPLE
from seqgraph_graph_mamba.graph import Graph
from seqgraph_graph_mamba.model import GraphMamba


@pytest.fixture
def graphs() -> list[Graph]:
    """Graphs of 1, 4, 2, 9 and 23 nodes; the first two without edges."""
    return EXAMPLE.items(0)


@pytest.fixture
def make_model():
    """Build the example's model with other arguments; in eval mode."""

    def make(**changes) -> GraphMamba:
        torch.manual_seed(0)
        return GraphMamba(**{**EXAMPLE.kwargs, **changes}).eval()

    return make
