"""What a model keeps of each graph is made once, and read from the disk by the next run."""

from __future__ import annotations

import pytest
import torch

from seqgraph_graph_mamba import data as module
from seqgraph_graph_mamba.gmn import GMN
from seqgraph_graph_mamba.model import GraphMamba
from seqgraph_graph_mamba.molecules import OgbMolecules


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQGRAPH_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_CACHE_ABOVE", 0)
    return tmp_path / "graph-mamba"


def test_columns_are_read_again_by_what_they_hang_on(cache, monkeypatch):
    data = OgbMolecules()
    data.add_columns(GraphMamba(32, 1, pe="none"))
    first, kept = data.table.columns, len(list(cache.iterdir()))
    assert set(first) == {"priority", "name"} and kept == 1
    again = GraphMamba(32, 1, pe="none")
    monkeypatch.setattr(again, "node_columns", lambda batch: pytest.fail("computed again"))
    data.add_columns(again)
    assert all(torch.equal(first[name], data.table.columns[name]) for name in first)
    for other in (GraphMamba(32, 1, pe="none", order="bfs"), GraphMamba(32, 1, pe="none", ties="index"), GMN(32, 1)):
        data.add_columns(other)
        kept += 1
        assert len(list(cache.iterdir())) == kept
    assert "walk_name" in data.table.columns


def test_the_columns_of_a_users_order_are_not_kept(cache):
    data = OgbMolecules()
    data.add_columns(GraphMamba(32, 1, pe="none", order=lambda edge_index, num_nodes, batch, *, generator: batch))
    assert "name" in data.table.columns and not cache.exists()
