"""The encoder on a CUDA device against the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from seqgraph.encode import Encoder
from seqgraph.stream import TokenStream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("share", ["none", "projections", "all"])
def test_outputs_and_gradients_are_the_cpus(share):
    torch.manual_seed(0)
    on_cpu = Encoder(32, 2, share=share, d_state=16).double()
    on_gpu = copy.deepcopy(on_cpu).float().cuda()
    lengths = [5, 0, 1, 300, 64]
    stream = TokenStream.from_lengths(torch.randn(sum(lengths), 32, dtype=torch.float64), lengths)
    weight = torch.randn(sum(lengths), 32, dtype=torch.float64)
    outputs = []
    for encoder, device, dtype in ((on_cpu, "cpu", torch.float64), (on_gpu, "cuda", torch.float32)):
        moved = stream.with_values(stream.values.to(dtype)).to(device)
        out = encoder(moved).values
        (out * weight.to(device, dtype)).sum().backward()
        outputs.append(out.detach().cpu().double())
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    for a, b in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        scale = a.grad.abs().max().clamp_min(1e-6)
        assert (a.grad - b.grad.cpu().double()).abs().max() / scale < 1e-4


def test_bf16_autocast_trains():
    torch.manual_seed(0)
    encoder = Encoder(64, 2, d_state=16).cuda()
    lengths = [40, 7, 200]
    stream = TokenStream.from_lengths(torch.randn(sum(lengths), 64, device="cuda"), lengths)
    exact = encoder(stream).values
    with torch.autocast("cuda", dtype=torch.bfloat16):
        rough = encoder(stream).values
        rough.float().square().mean().backward()
    assert (rough.float() - exact).norm() / exact.norm() < 0.03
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
