"""Training on data that lie on a GPU: the host says what to do and does not wait."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqgraph.train.batching import token_batches
from seqgraph_graph_mamba.example import GRAPH_MAMBA
from seqgraph_graph_mamba.graph import Graph
from seqgraph_graph_mamba.model import GraphMamba
from seqgraph_graph_mamba.molecules import OgbMolecules
from seqgraph_graph_mamba.nodes import NodeDataset
from seqgraph_graph_mamba.task import ClassPrediction, GraphRegression

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def step(task, optimizer, batch) -> None:
    task.training_step(batch)["loss"].backward()
    torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("pe", ["rwse", "laplacian"])
def test_a_training_step_does_not_wait_for_the_gpu(pe):
    pytest.importorskip("rdkit")
    data = OgbMolecules()
    model = GraphMamba(**{**GRAPH_MAMBA.kwargs, "d_out": 1, "pe": pe})
    task = GraphRegression(model)
    task.setup(data)
    task.cuda().train()
    optimizer = torch.optim.AdamW(task.parameters())
    loader = iter(token_batches(data, "train", 512, shuffle=True))
    for _ in range(3):
        step(task, optimizer, next(loader))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            batch = next(loader)
            assert batch.x.is_cuda
            step(task, optimizer, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_whole_graph_and_its_samples_train_on_the_gpu():
    generator = np.random.default_rng(0)
    edges = generator.integers(0, 200, (2, 900))
    part = generator.permutation(200) % 3
    masks = {name: (part == i)[None] for i, name in enumerate(("train", "valid", "test"))}
    graph = Graph(torch.randn(200, 5), torch.from_numpy(edges), y=torch.from_numpy(generator.integers(0, 2, 200)))
    for neighbors in (None, [3, 2]):
        data = NodeDataset(graph, masks, neighbors=neighbors)
        model = GraphMamba(**{**GRAPH_MAMBA.kwargs, **data.model_defaults(), "pe": "none"})
        task = ClassPrediction(model)
        task.setup(data)
        task.cuda()
        for batch in token_batches(data, "train", 4096, shuffle=True):
            assert batch.x.is_cuda and batch.y.is_cuda
            task.training_step(batch)["loss"].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
