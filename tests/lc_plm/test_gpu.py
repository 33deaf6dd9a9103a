"""The same on a GPU."""

from __future__ import annotations

import pytest
import torch

from seqgraph_lc_plm.task import MaskedLM

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_a_gpu_gives_what_the_cpu_gives(tiny, proteins):
    sequences = proteins(1, 300, 40)
    expected = tiny.embed(sequences, layers=[0, 1, -1])
    batch = tiny.alphabet.encode(sequences)
    with torch.no_grad():
        loss = MaskedLM(tiny).evaluation_step(batch)["loss"]
        found = tiny.cuda().embed(sequences, layers=[0, 1, -1])
        task = MaskedLM(tiny).cuda()
        torch.testing.assert_close(task.evaluation_step(batch.to("cuda"))["loss"].cpu(), loss, atol=1e-5, rtol=1e-5)
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, atol=1e-5, rtol=1e-4)
    task.training_step(batch.to("cuda"))["loss"].backward()
    assert all(p.grad.isfinite().all() for p in tiny.parameters())
