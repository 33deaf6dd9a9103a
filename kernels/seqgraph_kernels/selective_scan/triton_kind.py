"""What calls of the GPU scan share that differ in numbers of tokens and segments only: found once, then looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqgraph_kernels.launch import Launcher, multiprocessors
from seqgraph_kernels.selective_scan.arguments import ScanArguments

_kinds: dict[tuple, Kind] = {}


class Kind:
    """Calls with the same types, widths and options.

    own: what the second direction has of its own. seen: what was run on a few zeros already, so that no later call
    waits for a compiler. sink: memory that kernels write to and nobody reads.
    """

    def __init__(self, args: ScanArguments) -> None:
        self.E, self.N = args.A.shape
        self.passes = 2 if args.direction == "both" else 1
        self.stacked = args.stacked
        own = {n for n in ("x", "dt", "A", "B", "C", "D", "dt_bias") if args.owner(n, self.passes - 1) != n}
        self.own = own if self.passes == 2 else set()
        # Whether one walk gives both directions' states at the ends of spans: they share all that it reads.
        both = self.passes == 2
        self.paired = {
            False: both and not self.own & {"dt", "A", "dt_bias", "x", "B"},
            True: both and not self.own & {"dt", "A", "dt_bias", "C"} and not self.stacked,
        }
        self.even = self.E % 64 == 0
        # Those of an H100 where there is no GPU, as in tests.
        self.processors = multiprocessors(args.x.device) if args.x.is_cuda else 132
        self.sink = args.x.new_empty(4 * max(64, self.N), dtype=torch.float32)
        self.seen: set[tuple] = set()
        self._launchers: dict[tuple, Launcher] = {}

    def launcher(self, kernel: Any, constants: Callable[..., dict[str, Any]], *variant: Any) -> Launcher:
        """The kernel with ``constants(*variant)``."""
        # Triton's functions take a while to hash.
        key = (id(kernel), *variant)
        found = self._launchers.get(key)
        if found is None:
            found = self._launchers[key] = Launcher(kernel, **constants(*variant))
        return found


def kind_of(args: ScanArguments) -> Kind:
    """The kind of a call, the same object for all calls of it."""
    z, A = args.z, args.A
    dtypes = [
        None if t is None else t.dtype
        for t in (
            args.x, args.dt, A, args.B, args.C, args.D, z, args.dt_bias, args.x_rev, args.dt_rev, args.A_rev,
            args.B_rev, args.C_rev, args.D_rev, args.dt_bias_rev, args.initial_state, args.cu_seqlens,
        )
    ]  # fmt: skip
    # Distances between rows decide which instructions load them; what does not lie in rows is copied.
    stride = 0 if z is None else z.stride(0) if z.stride(1) == 1 else A.shape[0]
    copied = [is_copied(t) for t in (args.B, args.C, args.B_rev, args.C_rev)]
    key = (*A.shape, args.x.device, stride, args.dt_softplus, args.direction, args.combine, *copied, *dtypes)
    kind = _kinds.get(key)
    if kind is None:
        kind = _kinds[key] = Kind(args)
    return kind


def is_copied(rows: Tensor | None) -> bool:
    """Whether kernels get a copy of B or C: fp32, in rows that touch."""
    return rows is not None and (rows.dtype != torch.float32 or not rows.is_contiguous())
