"""Random calls of every operator, and what must hold of them inside torch, on any device.

Shared by test_operator.py and test_operator_gpu.py; needs no more than torch and the kernels.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from itertools import accumulate

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from seqgraph_kernels import causal_conv1d, selective_scan, ssd

OPS = {"selective_scan": selective_scan, "causal_conv1d": causal_conv1d, "ssd": ssd}
LENGTHS = (4, 0, 70, 1)
# What a projection under autocast hands on in half precision; parameters and states stay in fp32.
WIDE = ("x", "dt", "B", "C", "z", "x_rev", "dt_rev", "B_rev", "C_rev")


def available(backend: str) -> list[str]:
    """The operators that have this backend."""
    return [op for op in OPS if find_spec(f"seqgraph_kernels.{op}.{backend}")]


def case(op, device="cpu", *, lengths=LENGTHS, direction="both", own=False, state=True, E=12, N=4, seed=0):
    """fp32 leaves by argument name, and keywords. Options that can be given are given."""
    g = torch.Generator().manual_seed(seed)
    T, S = sum(lengths), len(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    def decay(*shape):
        return -torch.rand(*shape, generator=g) * 4 - 0.1

    directions = ("", "_rev") if own else ("",)
    keywords = {"direction": direction, "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)}
    if op == "causal_conv1d":
        tensors = {"x": normal(T, E)}
        for d in directions:
            tensors |= {f"weight{d}": normal(E, 4), f"bias{d}": normal(E)}
        keywords["activation"] = "silu"
    else:
        heads, groups = (2, 1) if op == "ssd" else (0, 0)
        wide = (T, heads, E) if heads else (T, E)
        narrow = (T, groups, N) if heads else (T, N)
        channel = (heads,) if heads else (E,)
        tensors = {}
        for d in directions:
            tensors |= {f"x{d}": normal(*wide), f"dt{d}": normal(T, *channel), f"A{d}": decay(*channel)}
            if not heads:
                tensors[f"A{d}"] = decay(E, N)
            tensors |= {f"B{d}": normal(*narrow), f"C{d}": normal(*narrow), f"D{d}": normal(*channel)}
            tensors[f"dt_bias{d}"] = normal(*channel) - 1
        tensors["z"] = normal(*wide)
        keywords["dt_softplus"] = True
        if state:
            leading = (2, S) if direction == "both" else (S,)
            tensors["initial_state"] = normal(*leading, *(wide[1:]), N)
            keywords["return_final_state"] = True
    keywords["cu_seqlens"] = keywords["cu_seqlens"].to(device)
    return {k: v.to(device).requires_grad_() for k, v in tensors.items()}, keywords


def outputs(op, tensors, keywords):
    result = OPS[op](**tensors, **keywords)
    return list(result) if isinstance(result, tuple) else [result]


def loss(results):
    """A fixed random projection of the outputs."""
    g = torch.Generator().manual_seed(99)
    return sum((r.float() * torch.randn(r.shape, generator=g).to(r.device)).sum() for r in results)


def gradients(total, tensors):
    return dict(zip(tensors, torch.autograd.grad(total, list(tensors.values()), allow_unused=True)))


def results(op, tensors, keywords):
    """Outputs and gradients by name."""
    got = outputs(op, tensors, keywords)
    grads = gradients(loss(got), tensors)
    return {f"output {i}": r.detach() for i, r in enumerate(got)} | {f"d {k}": g for k, g in grads.items()}


def same(got, expected, bound=0.0):
    """Assert that relative errors are at most ``bound``; with 0, that all bits are the same."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        if bound == 0:
            assert torch.equal(got[name], value), name
        else:
            error = (got[name].double() - value.double()).norm() / value.double().norm()
            assert error <= bound, (name, error.item())


def detached(tensors, dtype=None, wide=WIDE):
    """New leaves, the ``wide`` ones in ``dtype``."""
    new = {k: v.detach().to(dtype) if dtype and k in wide else v.detach().clone() for k, v in tensors.items()}
    return {k: v.requires_grad_() for k, v in new.items()}


def exact(op, tensors, keywords):
    """Results of the reference in fp64, on the device that the tensors are on.

    Computed on the CPU: its loop over tokens is of many small steps, each of which a GPU would have to be asked for.
    """
    leaves = {k: v.detach().cpu().double().requires_grad_() for k, v in tensors.items()}
    keywords = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
    device = next(iter(tensors.values())).device
    return {k: v.to(device) for k, v in results(op, leaves, keywords | {"backend": "reference"}).items()}


class Recorder(TorchDispatchMode):
    """Keeps the calls of our operators: what was called, with what, and what came back."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "seqgraph":
            self.calls.append((func, args, result))
        return result


def recorded(op, tensors, keywords):
    """The calls of a forward and of its backward."""
    with Recorder() as recorder:
        gradients(loss(outputs(op, tensors, keywords)), tensors)
    return recorder.calls


# ---------------------------------------------------------------------- what must hold
def passes_opcheck(op, device, **options):
    """Schema, fake implementation and autograd agree with what the operator does; its backward's fake as well."""
    tensors, keywords = case(op, device, **options)
    forward, backward = recorded(op, tensors, keywords)
    for func, args, _ in (forward, backward):
        again = []
        for value in args:
            if isinstance(value, torch.Tensor):
                value = value.detach().requires_grad_(func is forward[0] and value.requires_grad)
            again.append(value)
        torch.library.opcheck(func, tuple(again))


def compiles(op, device, backend, bound):
    """No graph break, the same numbers, and one graph for all numbers of tokens."""
    torch._dynamo.reset()
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return torch._dynamo.lookup_backend(backend)(module, inputs)

    compiled = torch.compile(lambda t, k: outputs(op, t, k), fullgraph=True, backend=count, dynamic=True)
    for lengths in (LENGTHS, (3, 9, 20, 2), (130, 7, 0, 41)):
        tensors, keywords = case(op, device, lengths=lengths)
        expected = results(op, tensors, keywords)
        got = compiled(tensors, keywords)
        grads = gradients(loss(got), tensors)
        both = {f"output {i}": r.detach() for i, r in enumerate(got)} | {f"d {k}": g for k, g in grads.items()}
        same(both, expected, bound)
    assert len(graphs) == 1, f"{len(graphs)} graphs for three numbers of tokens"


def checkpoints(op, device):
    """What is computed again gives the same bits."""
    tensors, keywords = case(op, device)
    expected = results(op, tensors, keywords)
    for reentrant in (False, True):
        got = checkpoint(
            lambda *v: tuple(outputs(op, dict(zip(tensors, v)), keywords)), *tensors.values(), use_reentrant=reentrant
        )
        for leaf in tensors.values():
            leaf.grad = None
        loss(got).backward()
        same({f"d {k}": v.grad for k, v in tensors.items()}, {k: v for k, v in expected.items() if k[0] == "d"})


class Mixer(torch.nn.Module):
    """The parameters of a call as a module's; the rest comes from projections of the argument."""

    def __init__(self, op, tensors, keywords) -> None:
        super().__init__()
        self.op, self.keywords = op, keywords
        self.made = {k: v.shape for k, v in tensors.items() if k in WIDE}
        width = 16
        for name, shape in self.made.items():
            self.add_module(f"to_{name}", torch.nn.Linear(width, shape[1:].numel()))
        self.own = torch.nn.ParameterDict({k: v.detach().clone() for k, v in tensors.items() if k not in WIDE})
        self.to(keywords["cu_seqlens"].device)

    def forward(self, u):
        made = {k: getattr(self, f"to_{k}")(u).view(-1, *shape[1:]) for k, shape in self.made.items()}
        return tuple(outputs(self.op, {**made, **self.own}, self.keywords))


def mixer(op, device):
    torch.manual_seed(0)
    module = Mixer(op, *case(op, device))
    return module, torch.randn(sum(LENGTHS), 16, generator=torch.Generator().manual_seed(1)).to(device)


def runs_under_autocast(op, device):
    """Activations in bf16, parameters, their gradients and states in fp32, and as near to fp64 as bf16 inputs are."""
    module, u = mixer(op, device)
    seen = {}

    def keep(_, inputs, output):
        seen.setdefault("dtype", output.dtype)

    next(m for m in module.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(keep)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = module(u)
    assert seen["dtype"] == torch.bfloat16
    assert got[0].dtype == torch.bfloat16
    if op != "causal_conv1d":
        assert got[1].dtype == torch.float32
    loss(got).backward()
    double = copy.deepcopy(module).double()
    double.keywords = module.keywords | {"backend": "reference"}
    expected = double(u.double())
    double.zero_grad()
    loss(expected).backward()
    for (name, parameter), other in zip(module.named_parameters(), double.parameters()):
        assert parameter.grad.dtype == torch.float32, name
        error = (parameter.grad.double() - other.grad).norm() / other.grad.norm()
        assert error < 4e-2, (name, error.item())


def is_functional(op, device):
    """functional_call puts other parameters in, and gradients go to them and nowhere else."""
    module, u = mixer(op, device)
    other = {k: (v.detach() * 1.5).requires_grad_() for k, v in module.named_parameters()}
    got = loss(torch.func.functional_call(module, other, (u,)))
    grads = torch.autograd.grad(got, list(other.values()))
    assert all(p.grad is None for p in module.parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(other[name])
    expected = loss(module(u))
    assert torch.equal(got, expected)
    for a, b in zip(grads, torch.autograd.grad(expected, list(module.parameters()))):
        assert torch.equal(a, b)


def layout(tensor):
    # Strides of nothing mean nothing.
    return tensor.shape, tensor.dtype, tensor.stride() if tensor.numel() else None


def has_shapes_without_data(op, device, **options):
    """Fake tensors, and the operator on meta tensors, give the shapes, dtypes and strides of a real call."""
    tensors, keywords = case(op, device, **options)
    real = outputs(op, tensors, keywords)
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in (tensors | keywords).items()}
        imagined = outputs(op, {k: fake[k] for k in tensors}, {k: fake[k] for k in keywords})
        for a, b in zip(imagined, real, strict=True):
            assert layout(a) == layout(b) and a.device == b.device
    for func, args, made in recorded(op, tensors, keywords):
        meta = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in args]
        for a, b in zip(func(*meta), made, strict=True):
            assert layout(a) == layout(b), func


def scattered(tensor):
    """The same values, whose neighbours in a row lie apart."""
    return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]


def takes_any_strides(op, device, bound=0.0):
    """Scattered inputs, transposed ones, and gradients that are one number expanded."""
    tensors, keywords = case(op, device)
    expected = results(op, tensors, keywords)
    same(results(op, {k: scattered(v) for k, v in detached(tensors).items()}, keywords), expected, bound)
    turned = {k: v.mT.contiguous().mT if v.dim() > 1 else v for k, v in detached(tensors).items()}
    same(results(op, turned, keywords), expected, bound)
    summed = gradients(sum(r.sum() for r in outputs(op, tensors, keywords)), tensors)
    got = outputs(op, tensors, keywords)
    ones = torch.autograd.grad(got, list(tensors.values()), [torch.ones_like(r) for r in got])
    same(summed, dict(zip(tensors, ones)), bound)


def gives_only_the_gradients_asked_for(op, device):
    """None, one, or two of the inputs want gradients: those get the bits that they get among all."""
    tensors, keywords = case(op, device, own=True)
    expected = results(op, tensors, keywords)
    plain = {k: v.detach() for k, v in tensors.items()}
    for got, name in zip(outputs(op, plain, keywords), expected):
        assert not got.requires_grad and torch.equal(got, expected[name])
    names = list(tensors)
    for chosen in [{name} for name in names] + [{names[0], names[-1]}]:
        mixed = {k: v.clone().requires_grad_(k in chosen) for k, v in plain.items()}
        grads = gradients(loss(outputs(op, mixed, keywords)), {k: mixed[k] for k in chosen})
        for name in chosen:
            assert torch.equal(grads[name], expected[f"d {name}"]), name


def is_near_in_half_precision(op, device, dtype, bound):
    tensors, keywords = case(op, device)
    rounded = detached(tensors, dtype)
    expected, got = exact(op, rounded, keywords), results(op, rounded, keywords)
    for name, value in expected.items():
        error = (got[name].double() - value).norm() / value.norm()
        assert error < bound, (name, error.item())
    for name, leaf in rounded.items():
        assert got[f"d {name}"].dtype == leaf.dtype
