"""The same answers on a GPU as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from seqgraph_graph_mamba.graph import collate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VARIANTS = [{}, {"direction": "both"}, {"pe": "laplacian", "average": "output"}, {"order": "rwse", "pool": "max"}]


@pytest.mark.parametrize("changes", VARIANTS)
def test_predictions_and_gradients_are_the_cpus(make_model, graphs, changes):
    model, batch = make_model(**changes), collate(graphs)
    found = []
    for device in ("cpu", "cuda"):
        local = copy.deepcopy(model).to(device)
        output = local(batch.to(device))
        output.square().sum().backward()
        found.append((output.cpu(), {n: p.grad.cpu() for n, p in local.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(grad, found[1][1][name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("changes", VARIANTS)
def test_training_step_under_bf16(make_model, graphs, changes):
    model, batch = make_model(**changes).cuda().train(), collate(graphs).to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(batch).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_node_order_is_the_cpus(make_model, graphs):
    batch = collate(graphs)
    assert torch.equal(make_model().node_order(batch), make_model().cuda().node_order(batch.to("cuda")).cpu())
