"""The same answers on a GPU as on the CPU."""

from __future__ import annotations

import copy
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from model_cases import VARIANTS, make

from seqgraph_graph_mamba.arrangement import arrange
from seqgraph_graph_mamba.gps import attend_packed, attend_padded
from seqgraph_graph_mamba.graph import collate
from seqgraph_graph_mamba.ordering import Chance, Prioritizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_predictions_and_gradients_are_the_cpus(variant, graphs, odd_graphs):
    """Also of everything that is drawn from hashes: orders, walks, neighbourhoods."""
    model, batch = make(variant, level="node"), collate([*graphs, *odd_graphs])
    found = []
    for device in ("cpu", "cuda"):
        local = copy.deepcopy(model).to(device)
        output = local(batch.to(device))
        output.square().sum().backward()
        found.append((output.cpu(), {n: p.grad.cpu() for n, p in local.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(grad, found[1][1][name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step_under_bf16(variant, graphs, odd_graphs):
    model, batch = make(variant).cuda().train(), collate([*graphs, *odd_graphs]).to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(batch).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_in_the_jagged_layout_is_the_padded_one(heads, graphs, odd_graphs):
    batch = collate([*graphs, *odd_graphs]).to("cuda")
    packed = torch.randn(batch.num_nodes, 3, heads, 19, device="cuda")
    torch.testing.assert_close(attend_packed(packed, batch, 0.0), attend_padded(packed, batch, 0.0))


@pytest.mark.parametrize("order", ["degree", "random", "rwse", "eigenvector", "cluster"])
@pytest.mark.parametrize("tokens", [{}, {"jitter": 0.5}, {"buckets": 2}, {"neighbors": 3}])
def test_arrangements_are_the_cpus(order, tokens, odd_graphs):
    batch, prioritizer = collate(odd_graphs), Prioritizer(order, "canonical", 0, keep_scores=True)
    found = []
    for device in ("cpu", "cuda"):
        local = batch.to(device)
        chance = Chance(prioritizer.names(local), 0, 0, range(2))
        found.append(arrange(local, prioritizer.priority(local, training=False), chance, **tokens))
    for field in fields(found[0]):
        one, other = (getattr(arrangement, field.name) for arrangement in found)
        assert torch.equal(one, other.cpu()) if isinstance(one, torch.Tensor) else one == other


def test_node_order_is_the_cpus(make_model, graphs):
    batch = collate(graphs)
    assert torch.equal(make_model().node_order(batch), make_model().cuda().node_order(batch.to("cuda")).cpu())
