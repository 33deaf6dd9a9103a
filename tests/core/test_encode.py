"""The encoder against independent implementations, and the identities that packing and sharing promise."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mambapy.mamba import MambaBlock, MambaConfig
from torch import nn
from torch.nn import functional as F

from seqgraph import TokenStream
from seqgraph.encode import MLP, BiMamba, Encoder, Mamba, RMSNorm

LENGTHS = [5, 0, 1, 17, 3]


def ragged(width: int, lengths=LENGTHS, dtype=torch.float32, seed=0) -> TokenStream:
    g = torch.Generator().manual_seed(seed)
    return TokenStream.from_lengths(torch.randn(sum(lengths), width, generator=g, dtype=dtype), lengths)


def slow_mamba(m: Mamba, u: torch.Tensor) -> torch.Tensor:
    """Mamba-1 of one sequence u (L, D), a loop over time, straight from the paper's equations."""
    if not len(u):
        return u
    x, z = F.linear(u, m.in_proj.weight, m.in_proj.bias).chunk(2, -1)
    taps = F.pad(x.T, (m.d_conv - 1, 0))
    x = F.silu(F.conv1d(taps[None], m.conv1d.weight, m.conv1d.bias, groups=m.d_inner)[0].T)
    dt, B, C = F.linear(x, m.x_proj.weight).split([m.dt_rank, m.d_state, m.d_state], -1)
    dt = F.softplus(F.linear(dt, m.dt_proj.weight, m.dt_proj.bias))
    A, state, out = -torch.exp(m.A_log), torch.zeros(m.d_inner, m.d_state, dtype=u.dtype), []
    for t in range(len(u)):
        state = torch.exp(dt[t, :, None] * A) * state + (dt[t] * x[t])[:, None] * B[t]
        out.append(state @ C[t] + m.D * x[t])
    y = torch.stack(out)
    return F.linear(y * F.silu(z), m.out_proj.weight, m.out_proj.bias)


def test_mamba_is_mambapy_with_the_same_weights():
    torch.manual_seed(0)
    ours, theirs = Mamba(16, d_state=8), MambaBlock(MambaConfig(d_model=16, n_layers=1, d_state=8))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    u = torch.randn(1, 33, 16)
    cu_seqlens = torch.tensor([0, 33], dtype=torch.int32)
    torch.testing.assert_close(ours(u[0], cu_seqlens), theirs(u)[0], atol=1e-5, rtol=1e-4)


def test_mamba_is_the_papers_equations_in_double_precision():
    torch.manual_seed(1)
    m = Mamba(12, d_state=5, d_conv=3, expand=3, bias=True).double()
    s = ragged(12, dtype=torch.float64)
    packed = m(s.values, s.cu_seqlens)
    torch.testing.assert_close(packed, torch.cat([slow_mamba(m, p.values) for p in s.unbind()]), atol=1e-10, rtol=1e-8)
    backwards = m(s.values, s.cu_seqlens, "reverse")
    flipped = torch.cat([slow_mamba(m, p.values.flip(0)).flip(0) for p in s.unbind()])
    torch.testing.assert_close(backwards, flipped, atol=1e-10, rtol=1e-8)


def test_initialisation_is_mamba_ones():
    torch.manual_seed(0)
    m = Mamba(64)
    assert (m.d_inner, m.dt_rank) == (128, 4)
    dt = F.softplus(m.dt_proj.bias)
    assert 1e-3 * 0.99 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.1 * 1.01
    assert m.dt_proj.weight.abs().max() <= 4**-0.5
    torch.testing.assert_close(torch.exp(m.A_log[3]), torch.arange(1.0, 17.0))
    assert bool((m.D == 1).all())
    # Graph-Mamba's published count at d 96 without expansion, and Mamba4Rec's block.
    assert sum(p.numel() for p in Mamba(96, expand=1).parameters()) == 34_080
    assert sum(p.numel() for p in Mamba(64, d_state=32).parameters()) == 38_784


@pytest.mark.parametrize("merge", ["sum", "mean", "concat", "gate"])
@pytest.mark.parametrize("share", ["none", "projections", "all"])
def test_bidirectional_is_two_mambas(share, merge):
    """Whatever is shared, the block equals two whole Mambas, one read on flipped sequences, merged by hand."""
    torch.manual_seed(0)
    block = BiMamba(8, share=share, merge=merge, d_state=4).double()
    fwd = block.mamba_fwd
    rev = copy.deepcopy(fwd)
    if share != "all":
        missing, unexpected = rev.load_state_dict(block.mamba_rev.state_dict(), strict=False)
        assert not unexpected and bool(missing) == (share == "projections")
    s = ragged(8, dtype=torch.float64)
    y_f = torch.cat([slow_mamba(fwd, p.values) for p in s.unbind()])
    y_r = torch.cat([slow_mamba(rev, p.values.flip(0)).flip(0) for p in s.unbind()])
    both = torch.cat([y_f, y_r], -1)
    expected = {
        "sum": lambda: y_f + y_r,
        "mean": lambda: (y_f + y_r) / 2,
        "concat": lambda: block.merge_proj(both),
        "gate": lambda: torch.lerp(y_r, y_f, torch.sigmoid(block.merge_proj(both))),
    }[merge]()
    torch.testing.assert_close(block(s.values, s.cu_seqlens), expected, atol=1e-10, rtol=1e-8)


def test_one_out_proj_of_the_sum_is_the_sum_of_two():
    torch.manual_seed(0)
    block = BiMamba(32, share="projections")
    calls = []
    for projection in (block.mamba_fwd.in_proj, block.mamba_fwd.out_proj):
        projection.register_forward_hook(lambda m, args, out: calls.append(out.shape))
    s = ragged(32)
    fused = block(s.values, s.cu_seqlens)
    assert len(calls) == 2, "one in_proj and one out_proj for both directions"
    x, z = block.mamba_fwd.in_proj(s.values).chunk(2, -1)
    apart = block.mamba_fwd.out_proj(block.mamba_fwd.scan(x, z, s.cu_seqlens, "forward"))
    apart = apart + block.mamba_fwd.out_proj(block.mamba_rev.scan(x, z, s.cu_seqlens, "reverse"))
    torch.testing.assert_close(fused, apart, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("direction", ["both", "forward", "reverse"])
def test_packed_is_one_by_one(direction):
    torch.manual_seed(0)
    encoder = Encoder(16, 3, direction=direction, d_state=8).eval()
    s = ragged(16)
    packed = encoder(s).values
    alone = torch.cat([encoder(p).values for p in s.unbind()])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_reversed_input_gives_reversed_output_when_all_is_shared():
    torch.manual_seed(0)
    encoder = Encoder(16, 2, share="all", d_state=8).eval()
    s = ragged(16)
    torch.testing.assert_close(encoder(s.reverse()).values, encoder(s).reverse().values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("direction, sees", [("forward", range(4, 8)), ("reverse", range(0, 5)), ("both", range(8))])
def test_a_token_reaches_what_the_direction_says(direction, sees):
    torch.manual_seed(0)
    encoder = Encoder(8, 2, direction=direction, d_state=4).eval()
    s = ragged(8, [8, 6])
    changed = s.values.clone()
    changed[4] += 1
    moved = (encoder(s).values - encoder(s.with_values(changed)).values).abs().amax(1) > 1e-7
    assert moved.nonzero()[:, 0].tolist() == list(sees)


def test_residual_stream_is_fp32_and_hidden_states_are_its_stations():
    torch.manual_seed(0)
    encoder = Encoder(16, 3, d_state=4).to(torch.bfloat16).eval()
    s = ragged(16, dtype=torch.bfloat16)
    states = encoder.hidden_states(s, [0, 1, 3, -1, -4])
    assert states[1].dtype == torch.float32 and encoder(s).values.dtype == torch.bfloat16
    torch.testing.assert_close(states[0], s.values.float())
    torch.testing.assert_close(states[3], encoder(s).values)
    assert torch.equal(states[3], states[-1]) and torch.equal(states[0], states[-4])
    with pytest.raises(ValueError, match="layer 4 of a model with layers -4 to 3"):
        encoder.hidden_states(s, [4])


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    plain = Encoder(8, 2, d_state=4, dropout=0.1)
    saving = Encoder(8, 2, d_state=4, dropout=0.1, checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    grads = []
    for encoder in (plain, saving):
        torch.manual_seed(3)
        encoder(ragged(8)).values.square().sum().backward()
        grads.append([p.grad for p in encoder.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_out_proj_is_rescaled_by_depth():
    torch.manual_seed(0)
    shallow, deep = Encoder(64, 1, d_state=4), Encoder(64, 16, d_state=4)
    ratio = (
        shallow.layers[0].mixer.mamba_fwd.out_proj.weight.std() / deep.layers[0].mixer.mamba_fwd.out_proj.weight.std()
    )
    assert math.isclose(ratio.item(), 4, rel_tol=0.05)


def test_no_tokens_at_all():
    encoder = Encoder(8, 2, d_state=4)
    out = encoder(ragged(8, [0, 0]))
    assert out.values.shape == (0, 8) and out.num_segments == 2


def test_rmsnorm_is_torchs_and_mlp_has_the_layers_asked_for():
    x = torch.randn(4, 8)
    torch.testing.assert_close(RMSNorm(8, 1e-5)(x), nn.RMSNorm(8, 1e-5)(x))
    head = MLP(8, 3, n_layers=3, d_hidden=5)
    assert head(x).shape == (4, 3) and sum(isinstance(m, nn.Linear) for m in head.modules()) == 3
    with pytest.raises(ValueError):
        BiMamba(8, share="some")


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_mlp_with_dropout_before_every_linear_layer(activation):
    torch.manual_seed(0)
    head = MLP(64, 3, n_layers=3, dropout=0.2, input_dropout=0.2, activation=activation)
    x, read = torch.rand(500, 64) + 1, []
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)]
    for layer in linear:
        layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    act = {"gelu": lambda v: 0.5 * v * (1 + torch.erf(v / math.sqrt(2))), "relu": lambda v: v.clamp_min(0)}[activation]
    head(x)
    wanted = x
    for seen, layer, last in zip(read, linear, (False, False, True), strict=True):
        kept = seen != 0
        torch.testing.assert_close(seen[kept], (wanted / 0.8)[kept])
        dropped = (~kept & (wanted != 0)).sum() / (wanted != 0).sum()
        assert 0.18 < dropped < 0.22
        wanted = seen @ layer.weight.T + layer.bias
        wanted = wanted if last else act(wanted)
    read.clear()
    plain = head.eval()(x)
    assert torch.equal(read[0], x)
    for layer in linear[:-1]:
        x = act(x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(plain, x @ linear[-1].weight.T + linear[-1].bias)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("final_norm", [True, False])
def test_fused_norms_are_the_sum_normed(norm, final_norm):
    """The stack as its equations say: r = r + mixer(norm(r)), with every norm and sum apart."""
    torch.manual_seed(0)
    encoder = Encoder(8, 3, norm=norm, d_state=4, final_norm=final_norm)
    s = ragged(8)
    residual, streams = s.values, [s.values]
    for block in encoder.layers:
        residual = residual + block.mixer(block.norm(residual), s.cu_seqlens)
        streams.append(residual)
    streams[-1] = encoder.norm_f(residual)
    torch.testing.assert_close(encoder(s).values, streams[-1], atol=1e-5, rtol=1e-5)
    for depth, got in encoder.hidden_states(s, [0, 1, 2, 3]).items():
        torch.testing.assert_close(got, streams[depth], atol=1e-5, rtol=1e-5)


def test_under_autocast_the_stream_stays_fp32_and_mixers_get_half():
    encoder = Encoder(8, 2, d_state=4)
    seen = []
    for block in encoder.layers:
        block.mixer.register_forward_hook(lambda m, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = encoder.hidden_states(ragged(8), [1, 2])
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 2
    assert states[1].dtype == states[2].dtype == torch.float32
