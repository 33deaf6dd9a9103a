"""SSD on a GPU: memory and launches around the kernels of ``triton_outputs`` and ``triton_gradients``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqgraph_kernels.launch import launch
from seqgraph_kernels.ready import is_first, small
from seqgraph_kernels.ssd.arguments import Pass, SsdArguments
from seqgraph_kernels.ssd.triton_gradients import projection_gradients, step_gradients, token_gradients
from seqgraph_kernels.ssd.triton_outputs import outputs
from seqgraph_kernels.ssd.triton_plan import SHORT, SPAN_LEAST, Plan, Walked, skip_kind

# Segments of first calls: enough tokens for a span, in chunks of either length.
SEGMENTS = (1, SPAN_LEAST // SHORT)


def forward(args: SsdArguments) -> tuple[Tensor, Tensor]:
    """Output and, where they are asked for, final states."""
    for other in _first_calls(args, "forward"):
        forward(other)
    plan = Plan(args)
    out = args.x.new_empty((2, *args.x.shape) if args.stacked else args.x.shape)
    final = args.x.new_empty(args.state_shape if args.final else 0, dtype=torch.float32)
    if args.final:
        # Those of empty segments.
        final.zero_() if args.initial_state is None else final.copy_(args.initial_state)
    if plan.empty:
        return out, final
    with torch.cuda.device_of(args.x):
        plan.make_steps()
        states = plan.walk_states(final if args.final else None)
        _outputs(plan, states, None, out, None, None)
    return out, final


def backward(args: SsdArguments, grad_out: Tensor, grad_end: Tensor | None) -> dict[str, Tensor]:
    """Gradients by argument name. Every argument of ``args`` that is present gets one."""
    for other in _first_calls(args, "backward", grad_end is None):
        grads = other.x.new_zeros((2, *other.x.shape) if args.stacked else other.x.shape)
        backward(other, grads, None if grad_end is None else other.x.new_zeros(other.state_shape))
    plan = Plan(args)
    x, z = args.x, args.z
    total: dict[str, Tensor] = {}
    if plan.empty:
        for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias"):
            for owner in (name, f"{name}_rev"):
                if (given := getattr(args, owner, None)) is not None:
                    total[owner] = torch.zeros_like(given)
        if args.initial_state is not None:
            total["initial_state"] = torch.zeros_like(args.initial_state) if grad_end is None else grad_end.clone()
        return total
    dy = grad_out.contiguous()
    start = None
    if args.initial_state is not None:
        start = torch.zeros_like(args.initial_state, dtype=torch.float32, memory_format=torch.contiguous_format)
        if grad_end is not None:
            start.copy_(grad_end)
    with torch.cuda.device_of(x):
        plan.make_steps()
        states = plan.walk_states(None)
        if z is not None:
            total["z"], ungated = x.new_empty(x.shape), torch.empty_like(dy)
            _outputs(plan, states, dy, None, total["z"], ungated)
            dy = ungated
        adjoint = plan.walk_adjoint(dy, None if grad_end is None else grad_end.float().contiguous(), start)
        for index in range(1 if plan.merged else plan.directions):
            _gradients(plan, index, states, adjoint, dy, total)
    if start is not None:
        total["initial_state"] = start
    for name in ("D", "D_rev", "dt_bias"):
        # One that no pass reads.
        given = getattr(args, name)
        if given is not None and name not in total:
            total[name] = torch.zeros_like(given)
    return total


def _first_calls(args: SsdArguments, *kind: object) -> list[SsdArguments]:
    """What compiles all that calls of a kind need, if this is the first of them."""
    wide = {"x", "dt", "B", "C", "z"}
    if args.shift and args.D is not None and args.D.dim() == 2:
        wide.add("D")
    return [small(args, wide, SPAN_LEAST, n) for n in SEGMENTS] if is_first(args, wide, *kind) else []


def _outputs(
    plan: Plan, states: Walked, grad: Tensor | None, out: Tensor | None, gz: Tensor | None, gdy: Tensor | None
) -> None:
    """Outputs to ``out``, or gradients of z and of the ungated output to ``gz`` and ``gdy`` where ``grad`` is given."""
    if not plan.args.stacked:
        _outputs_of(plan, plan.passes, plan.steps, states, (grad, out, gdy), gz, False)
        return
    # Each direction is gated by itself: one launch for both would keep two sets of matrices, and spill.
    for i, one in enumerate(plan.passes):
        steps = plan.steps[:, i if plan.own_steps else 0]
        own = [None if t is None else t[i] for t in (grad, out, gdy)]
        _outputs_of(plan, [one], steps, states.of(i, plan), own, gz, i > 0)


def _outputs_of(
    plan: Plan, passes: Sequence[Pass], steps: Tensor, states: Walked, grad_out_gdy: Sequence[Tensor | None],
    gz: Tensor | None, add: bool,
) -> None:  # fmt: skip
    args, first, last = plan.args, passes[0], passes[-1]
    together = len(passes) == 2
    # Where both directions have the same skip, it counts twice and is read once.
    same = together and not plan.own_x and last.D is first.D
    kind, kind_rev = skip_kind(first.D, args.shift), skip_kind(last.D, args.shift)
    z = plan.z
    tensors = (first.x, last.x, first.B, last.B, first.C, last.C)
    heads = plan.heads_per_program(8)
    blocks = plan.G * -(-plan.share // heads)
    strides = [n for t in tensors for n in t.stride()[:2]] + ([0, 0] if z is None else list(z.stride()[:2]))
    grad, out, gdy = grad_out_gdy
    launch(
        outputs, (plan.slots * blocks, 1, 1),
        [
            *tensors, first.D, last.D, z, first.A, last.A, steps, plan.cu, plan.slot, states.states, grad, out, gz,
            gdy,
        ],
        [*strides, plan.size, plan.T, plan.H, states.rows, heads, blocks, plan.share],
        {
            "BP": plan.BP, "FORWARD": not first.reverse, "REVERSE": last.reverse, "OWN_X": together and plan.own_x,
            "OWN_BC": together and plan.own_bc, "OWN_STEPS": together and plan.own_steps, "SHIFT": args.shift,
            "SKIP": 0 if first.reverse else kind, "SKIP_REV": 0 if same else kind_rev, "SKIPS": 2 if same else 1,
            "HAS_Z": z is not None, "HAS_FIRST": states.first, "GRAD": grad is not None, "ADD_Z": add,
            "EXACT": plan.exact, **plan.launch["outputs"], **plan.tile,
        },
    )  # fmt: skip


def _gradients(plan: Plan, index: int, states: Walked, adjoint: Walked, dy: Tensor, total: dict[str, Tensor]) -> None:
    """Gradients of one pass, or of both at once, added to those that are there already."""
    args, one = plan.args, plan.passes[index]
    (T, H, P), G, N = args.x.shape, plan.G, plan.N
    owner = {name: args.owner(name, index) for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")}
    x, adds = args.x, owner["x"] in total
    # Where two passes add up, they do so in fp32 and round once.
    waits = index == 0 and plan.directions == 2 and not plan.merged
    part = total[owner["x"]] if adds else None
    gx = x.new_empty(x.shape, dtype=torch.float32 if waits and not plan.own_x else x.dtype)
    heads = plan.heads_per_program(8)
    split = -(-plan.share // heads)
    skip = skip_kind(one.D, args.shift)
    like_skip = {0: (0,), 1: (plan.slots, H), 2: (plan.slots, H, P), 3: (T, H)}[skip]
    gD = x.new_empty(like_skip, dtype=torch.float32)
    sums = x.new_empty((8, H, T), dtype=torch.float32)
    row = index if plan.own_steps else 0
    mine, reached = states.of(index, plan), adjoint.of(index, plan)
    blocks = G * split
    inner = x.new_empty((plan.slots * blocks, plan.chunk, plan.chunk), dtype=plan.state_dtype)
    sizes = (heads, blocks, plan.share)
    ways = {"FORWARD": plan.merged or not one.reverse, "REVERSE": plan.merged or one.reverse}
    own = dy[index] if args.stacked else dy
    steps = (one.A, plan.steps[0, row], plan.cu, plan.slot)
    projections = (*one.B.stride()[:2], *one.C.stride()[:2])
    launch(
        token_gradients, (plan.slots * blocks, 1, 1),
        [one.x, own, one.B, one.C, one.D, *steps, reached.states, part, gx, inner, gD, sums],
        [*one.x.stride()[:2], *projections, plan.size, T, H, reached.rows, *sizes],
        {
            "BP": plan.BP, "SHIFT": args.shift, "SKIP": skip, "HAS_FIRST": reached.first, "ADD_X": adds,
            "EXACT": plan.exact, **plan.launch["tokens"], **ways, **plan.tile,
        },
    )  # fmt: skip
    total[owner["x"]] = gx
    parts: dict[str, Tensor] = {}
    for name, values in (("B", one.x), ("C", own)):
        parts[name] = x.new_empty((split, T, G, N), dtype=torch.float32)
        launch(
            projection_gradients, (plan.slots * blocks, 1, 1),
            [values, one.B, one.C, *steps, mine.states, reached.states, inner, sums, parts[name]],
            [*values.stride()[:2], *projections, plan.size, T, H, G, mine.rows, reached.rows, *sizes],
            {
                "BP": plan.BP, "OF_B": name == "B", "SHIFT": args.shift, "HAS_FIRST": mine.first,
                "HAS_LAST": reached.first, **plan.launch[name], **ways, **plan.tile,
            },
        )  # fmt: skip
        parts[name] = parts[name].sum(0)
    shared = waits and owner["dt"] == args.owner("dt", 1)
    adds = owner["dt"] in total
    gdt = total[owner["dt"]] if adds else x.new_empty((T, H), dtype=torch.float32 if shared else one.dt.dtype)
    partial = x.new_empty((2, plan.slots, H), dtype=torch.float32)
    launch(
        step_gradients, (plan.slots * -(-H // plan.BH), 1, 1),
        [one.dt, one.A, one.dt_bias, plan.cu, plan.slot, plan.steps[0, row], sums, gdt, partial],
        [one.dt.stride(0), T, H],
        {
            "CHUNK": plan.chunk, "BH": plan.BH, "HAS_BIAS": one.dt_bias is not None, "SOFTPLUS": args.dt_softplus,
            "ADD": adds, "EXACT": plan.exact, **ways,
        },
    )  # fmt: skip
    parts["A"] = partial[0].sum(0)
    if one.dt_bias is not None:
        parts["dt_bias"] = partial[1].sum(0)
    total[owner["dt"]] = gdt
    if one.D is not None:
        parts["D"] = gD if skip == 3 else gD.sum(0)
    for name, value in parts.items():
        total[owner[name]] = total[owner[name]] + value if owner[name] in total else value
