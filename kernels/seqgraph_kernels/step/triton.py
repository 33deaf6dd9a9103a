"""One step of each operator on a GPU: memory and launches around the kernels of ``triton_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph_kernels.launch import launch
from seqgraph_kernels.packing import unit_rows
from seqgraph_kernels.step import triton_kernels

# Elements of state that a program holds: 16 a thread.
_TILE = 2048


def scan_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    new: Tensor,
) -> Tensor:
    """Output (B, E); ``new``, which may be ``state``, gets the new state (B, E, N)."""
    rows, E, N = state.shape
    x, dt, B, C, z = unit_rows(x), unit_rows(dt), unit_rows(B), unit_rows(C), _unit(z)
    old, target, out = state.contiguous(), _target(new), x.new_empty(rows, E)
    BN = _power(N)
    BD = _channels(E, BN)
    if out.numel():
        with torch.cuda.device_of(x):
            launch(
                triton_kernels.scan_rows, (rows, -(-E // BD), 1),
                [x, dt, _whole(A), B, C, _whole(D), _whole(dt_bias), z, old, target, out],
                [x.stride(0), dt.stride(0), B.stride(0), C.stride(0), 0 if z is None else z.stride(0), E],
                {
                    "N": N, "BN": BN, "BD": BD, "HAS_D": D is not None, "HAS_BIAS": dt_bias is not None,
                    "HAS_Z": z is not None, "SOFTPLUS": dt_softplus, "num_warps": 4,
                },
            )  # fmt: skip
    return _finish(out, target, new)


def conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, activation: str, new: Tensor) -> Tensor:
    """Output (B, E); ``new``, which may be ``state``, gets the new state (B, E, W - 1)."""
    rows, (E, W), BD = len(x), weight.shape, 128
    x = unit_rows(x)
    old, target, out = state.contiguous(), _target(new), x.new_empty(rows, E)
    if out.numel():
        with torch.cuda.device_of(x):
            launch(
                triton_kernels.conv_rows, (rows, -(-E // BD), 1),
                [x, _whole(weight), _whole(bias), old, target, out], [x.stride(0), E],
                {"W": W, "BD": BD, "HAS_BIAS": bias is not None, "SILU": activation == "silu", "num_warps": 4},
            )  # fmt: skip
    return _finish(out, target, new)


def ssd_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    new: Tensor,
) -> Tensor:
    """Output (B, H, P); ``new``, which may be ``state``, gets the new state (B, H, P, N)."""
    rows, H, P, N = state.shape
    x, dt, B, C, z = unit_rows(x), unit_rows(dt), unit_rows(B), unit_rows(C), _unit(z)
    old, target, out = state.contiguous(), _target(new), x.new_empty(rows, H, P)
    BN = _power(N)
    BP = _channels(P, BN)
    skip = (P, 1) if D is not None and D.dim() == 2 else (1, 0)
    if out.numel():
        with torch.cuda.device_of(x):
            launch(
                triton_kernels.ssd_rows, (rows * H, -(-P // BP), 1),
                [x, dt, _whole(A), B, C, _whole(D), _whole(dt_bias), z, old, target, out],
                [
                    x.stride(0), x.stride(1), dt.stride(0), B.stride(0), B.stride(1), C.stride(0), C.stride(1),
                    *((0, 0) if z is None else z.stride()[:2]), H, P, *skip,
                ],
                {
                    "HEADS": H // B.shape[1], "N": N, "BN": BN, "BP": BP, "HAS_D": D is not None,
                    "HAS_BIAS": dt_bias is not None, "HAS_Z": z is not None, "SOFTPLUS": dt_softplus, "num_warps": 4,
                },
            )  # fmt: skip
    return _finish(out, target, new)


def _power(N: int) -> int:
    return max(2, 1 << (N - 1).bit_length())


def _channels(E: int, BN: int) -> int:
    return max(2, min(_TILE // BN, _power(E)))


def _whole(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float().contiguous()


def _unit(values: Tensor | None) -> Tensor | None:
    return None if values is None else unit_rows(values)


def _target(new: Tensor) -> Tensor:
    return new if new.is_contiguous() else torch.empty_like(new, memory_format=torch.contiguous_format)


def _finish(out: Tensor, target: Tensor, new: Tensor) -> Tensor:
    if target is not new:
        new.copy_(target)
    return out
