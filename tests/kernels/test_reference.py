"""The reference against the definition, written out as loops over numbers, and against finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F


def naive_scan(t, cu, reverse):
    """One number at a time, in Python floats."""
    (T, E), N = t["x"].shape, t["A"].shape[1]
    out = torch.zeros(T, E, dtype=torch.float64)
    states = torch.zeros(len(cu) - 1, E, N, dtype=torch.float64)
    for s in range(len(cu) - 1):
        tokens = list(range(cu[s], cu[s + 1]))
        for d in range(E):
            h = [t["initial_state"][s, d, n].item() for n in range(N)]
            for i in tokens[::-1] if reverse else tokens:
                x, z = t["x"][i, d].item(), t["z"][i, d].item()
                dt = math.log1p(math.exp(t["dt"][i, d].item() + t["dt_bias"][d].item()))
                y = t["D"][d].item() * x
                for n in range(N):
                    h[n] = math.exp(dt * t["A"][d, n].item()) * h[n] + dt * x * t["B"][i, n].item()
                    y += t["C"][i, n].item() * h[n]
                out[i, d] = y * z / (1 + math.exp(-z))
            states[s, d] = torch.tensor(h, dtype=torch.float64)
    return out, states


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_scan_is_the_definition(check, direction):
    tensors, keywords = check.scan_case([3, 0, 5, 1], 3, 2, direction=direction)
    out, state = check.scan(**tensors, **keywords)
    expected, states = naive_scan(tensors, keywords["cu_seqlens"].tolist(), direction == "reverse")
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, states, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("direction", "combine", "own"),
    [("forward", "sum", False), ("reverse", "sum", False), ("both", "sum", False), ("both", "none", True)],
)
def test_scan_gradcheck(check, direction, combine, own):
    tensors, keywords = check.scan_case([3, 0, 2], 2, 2, direction=direction, combine=combine, own=own)
    names = list(tensors)

    def call(*values):
        return check.scan(**dict(zip(names, values)), **keywords)

    assert torch.autograd.gradcheck(call, [v.requires_grad_() for v in tensors.values()])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_scan_second_derivative(check, direction):
    tensors, keywords = check.scan_case([3], 1, 1, direction=direction)
    names = list(tensors)

    def call(*values):
        return check.scan(**dict(zip(names, values)), **keywords)

    assert torch.autograd.gradgradcheck(call, [v.requires_grad_() for v in tensors.values()])


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1]])
def test_scan_of_almost_nothing(check, lengths):
    tensors, keywords = check.scan_case(lengths, 3, 2, direction="both")
    out, state = check.scan(**tensors, **keywords)
    assert out.shape == (sum(lengths), 3) and state.shape == (2, len(lengths), 3, 2)
    if sum(lengths) == 0:
        torch.testing.assert_close(state, tensors["initial_state"])


def test_steps_are_exact_where_they_are_tiny_or_large(check):
    dt = torch.tensor([[-30.0], [-7.0], [0.0], [25.0]], dtype=torch.float64)
    one = torch.ones(4, 1, dtype=torch.float64)
    zero_decay = torch.full((1, 1), -1e-300, dtype=torch.float64)
    out = check.scan(one, dt, zero_decay, one, one, dt_softplus=True)
    torch.testing.assert_close(out[:, 0].diff(), torch.tensor([math.log1p(math.exp(v)) for v in (-7, 0, 25)]).double())


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_convolution_is_torchs(check, activation, width):
    lengths = [5, 0, 1, 9]
    tensors, keywords = check.conv_case(lengths, 3, width, direction="both", own=True, activation=activation)
    got = check.conv(**tensors, **keywords)
    for i, (weight, bias) in enumerate((("weight", "bias"), ("weight_rev", "bias_rev"))):
        pieces = []
        for piece in tensors["x"].split(lengths):
            piece = piece.flip(0) if i else piece
            padded = F.pad(piece.T[None], (width - 1, 0))
            y = F.conv1d(padded, tensors[weight][:, None], tensors[bias], groups=3)[0].T if len(piece) else piece
            pieces.append(y.flip(0) if i else y)
        expected = torch.cat(pieces)
        torch.testing.assert_close(got[i], F.silu(expected) if activation else expected)


def test_convolution_gradcheck(check):
    tensors, keywords = check.conv_case([3, 0, 5], 2, 3, direction="both", own=True)
    names = list(tensors)

    def call(*values):
        return check.conv(**dict(zip(names, values)), **keywords)

    assert torch.autograd.gradcheck(call, [v.requires_grad_() for v in tensors.values()])
