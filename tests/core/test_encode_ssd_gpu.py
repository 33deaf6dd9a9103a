"""Mamba-2 and Hydra encoders, and encoding token by token, on a CUDA device against the CPU."""

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
LENGTHS = [5, 0, 1, 300, 64]
SIZES = {"headdim": 16, "d_state": 16}


def stream(width, dtype=torch.float64):
    torch.manual_seed(1)
    return TokenStream.from_lengths(torch.randn(sum(LENGTHS), width, dtype=dtype), LENGTHS)


@pytest.mark.parametrize(
    "mixer, share", [("ssd", "none"), ("ssd", "projections"), ("ssd", "all"), ("hydra", "projections")]
)
def test_outputs_and_gradients_are_the_cpus(mixer, share):
    torch.manual_seed(0)
    on_cpu = Encoder(32, 2, mixer=mixer, share=share, **SIZES).double()
    on_gpu = copy.deepcopy(on_cpu).float().cuda()
    given, probe = stream(32), stream(32).values.flip(0)
    outputs = []
    for encoder, device, dtype in ((on_cpu, "cpu", torch.float64), (on_gpu, "cuda", torch.float32)):
        out = encoder(given.with_values(given.values.to(dtype)).to(device)).values
        # not the sum of squares: normalised outputs have always the same, and its gradient is rounding alone
        (out * probe.to(out)).sum().backward()
        outputs.append(out.detach().cpu().double())
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-3, rtol=1e-3)
    for (name, a), b in zip(on_cpu.named_parameters(), on_gpu.parameters(), strict=True):
        scale = a.grad.abs().max().clamp_min(1e-6)
        assert (a.grad - b.grad.cpu().double()).abs().max() / scale < 2e-3, name


@pytest.mark.parametrize("mixer", ["ssd", "hydra"])
def test_bf16_autocast_trains(mixer):
    torch.manual_seed(0)
    encoder = Encoder(64, 2, mixer=mixer).cuda()
    given = stream(64, torch.float32).to("cuda")
    exact = encoder(given).values
    with torch.autocast("cuda", dtype=torch.bfloat16):
        rough = encoder(given).values
        rough.float().square().mean().backward()
    assert (rough.float() - exact).norm() / exact.norm() < 0.03
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("mixer, sizes", [("s6", {"d_state": 16}), ("ssd", SIZES)])
@torch.no_grad()
def test_prefill_and_steps_are_the_whole_history_without_waiting(mixer, sizes):
    torch.manual_seed(0)
    encoder = Encoder(32, 2, mixer=mixer, direction="forward", **sizes).cuda().eval()
    past = stream(32, torch.float32)
    later = torch.randn(len(LENGTHS), 6, 32)
    whole = TokenStream.from_ragged([torch.cat([p.values, new]) for p, new in zip(past.unbind(), later)]).to("cuda")
    ends = whole.cu_seqlens[1:].long()
    expected, past, later = encoder(whole).values, past.to("cuda"), later.cuda()
    _, state = encoder.prefill(past)
    encoder.step(later[:, 0], state)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, state = encoder.prefill(past)
        outputs = [encoder.step(later[:, t], state, inplace=True)[0] for t in range(6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for t, y in enumerate(outputs):
        torch.testing.assert_close(y, expected[ends - 6 + t], atol=1e-3, rtol=1e-3)
