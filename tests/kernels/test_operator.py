"""The operators inside torch: compiled, under autocast, checkpointed, functional."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from seqgraph_kernels.causal_conv1d.operator import conv
from seqgraph_kernels.selective_scan.operator import TENSORS, scan


def leaves(tensors):
    return {k: v.float().requires_grad_() for k, v in tensors.items()}


@pytest.mark.parametrize(("combine", "own"), [("sum", False), ("none", True)])
def test_opcheck_of_the_scan(check, combine, own):
    tensors, keywords = check.scan_case([4, 0, 3], 3, 2, direction="both", combine=combine, own=own)
    given = leaves(tensors)
    args = tuple(given.get(name) for name in TENSORS)
    torch.library.opcheck(scan, (*args, keywords["cu_seqlens"], True, "both", combine, "cpu", True))


def test_opcheck_of_the_convolution(check):
    tensors, keywords = check.conv_case([4, 0, 3], 3, 4, direction="both")
    given = leaves(tensors)
    args = tuple(given.get(name) for name in ("x", "weight", "bias", "weight_rev", "bias_rev"))
    torch.library.opcheck(conv, (*args, keywords["cu_seqlens"], "both", "silu", "cpu"))


def mixer(check, keywords, values):
    """Convolution, scan of its output, a projection: what a block does."""
    u = check.conv(values["x"], values["weight"], cu_seqlens=keywords["cu_seqlens"], activation="silu")
    rest = {k: v for k, v in values.items() if k not in ("x", "weight")}
    out, state = check.scan(u, **rest, **keywords)
    return (out * u).sum() + state.square().sum()


@pytest.fixture
def block(check):
    tensors, keywords = check.scan_case([4, 0, 9], 6, 4, direction="both")
    values = leaves(tensors) | {
        "weight": torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    }
    return values, keywords


def gradients(loss, values):
    return dict(zip(values, torch.autograd.grad(loss, list(values.values()))))


def test_compiled_without_a_graph_break(check, block):
    values, keywords = block
    torch._dynamo.reset()
    compiled = torch.compile(lambda v: mixer(check, keywords, v), fullgraph=True, backend="aot_eager")
    expected, got = mixer(check, keywords, values), compiled(values)
    torch.testing.assert_close(got, expected)
    for name, grad in gradients(expected, values).items():
        torch.testing.assert_close(gradients(compiled(values), values)[name], grad, msg=name)


def test_checkpointed(check, block):
    values, keywords = block
    expected = gradients(mixer(check, keywords, values), values)
    for reentrant in (False, True):
        loss = checkpoint(
            lambda *v: mixer(check, keywords, dict(zip(values, v))), *values.values(), use_reentrant=reentrant
        )
        for leaf in values.values():
            leaf.grad = None
        loss.backward()
        for name, leaf in values.items():
            assert torch.equal(leaf.grad, expected[name]), name


def test_autocast_leaves_parameters_in_fp32(check, block):
    values, keywords = block
    weight = torch.randn(6, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u = values["x"] @ weight
        assert u.dtype == torch.bfloat16
        out, state = check.scan(**{k: v for k, v in values.items() if k not in ("x", "weight")} | {"x": u}, **keywords)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32 and values["A"].grad.dtype == torch.float32


def test_functional_call(check, block):
    values, keywords = block

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A = torch.nn.Parameter(values["A"].detach() * 2)

        def forward(self):
            return mixer(check, keywords, values | {"A": self.A})

    other = values["A"].detach().clone().requires_grad_()
    got = torch.func.functional_call(Module(), {"A": other}, ())
    torch.testing.assert_close(got, mixer(check, keywords, values))
    torch.testing.assert_close(
        torch.autograd.grad(got, other)[0], gradients(mixer(check, keywords, values), values)["A"]
    )


def test_without_gradients_no_state_is_saved(check, block):
    values, keywords = block
    args = tuple(values.get(name) for name in TENSORS)
    rest = (keywords["cu_seqlens"], True, "both", "sum", "cpu")
    with torch.no_grad():
        assert scan(*args, *rest, False)[2].numel() == 0
    # Asked for gradients all the same, the backward finds the states again.
    out, state, _ = scan(*args, *rest, False)
    saved = scan(*args, *rest, True)
    some = {k: v for k, v in values.items() if k != "weight"}
    without = gradients(out.sum() + state.sum(), some)
    for name, grad in gradients(saved[0].sum() + saved[1].sum(), some).items():
        assert torch.equal(without[name], grad), name


def test_gradient_through_the_state_alone(check):
    tensors, keywords = check.scan_case([3, 2], 3, 2)
    values = leaves({k: v for k, v in tensors.items() if k not in ("z", "C", "D")})
    C = tensors["C"].float()
    grads = gradients(check.scan(C=C, **values, **keywords)[1].sum(), values)
    exact = {k: v.detach().double().requires_grad_() for k, v in values.items()}
    for name, grad in gradients(check.scan(C=C.double(), **exact, **keywords)[1].sum(), exact).items():
        torch.testing.assert_close(grads[name].double(), grad, rtol=1e-5, atol=1e-6, msg=name)
