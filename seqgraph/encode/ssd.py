"""The SSD mixer of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060), on packed streams and in either direction."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph.encode.mixer import OneDirection
from seqgraph.encode.projection import split_linear
from seqgraph.encode.state import State, last_inputs
from seqgraph_kernels import causal_conv1d, causal_conv1d_step, norm_sum, ssd, ssd_step


class RMSNormGated(nn.Module):
    """RMS norm of x silu(z), or with ``norm_before_gate`` the norm of x, times silu(z).

    Args:
        d: size of the last dimension.
        eps: added to the mean square.
        group_size: each so many neighbours are normed by themselves; all together by default.
        norm_before_gate: where the gate comes.
    """

    def __init__(
        self, d: int, eps: float = 1e-5, *, group_size: int | None = None, norm_before_gate: bool = False
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size or d, norm_before_gate
        if d % self.group_size:
            raise ValueError(f"{d} channels cannot be cut into groups of {self.group_size}")
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x and z (..., d) of any floating dtype -> (..., d) in the dtype of ``x``; None is no gate."""
        d, shape = self.weight.shape[0], x.shape
        if z is not None and not self.norm_before_gate:
            high = torch.promote_types(x.dtype, torch.float32)
            # The product must not be rounded, or overflow, before it is normed.
            gated = x.to(high) * F.silu(z.to(high))
            return self._norm(gated.reshape(-1, d), None).view(shape).to(x.dtype)
        return self._norm(x.reshape(-1, d), None if z is None else z.reshape(-1, d)).view(shape)

    def _norm(self, x: Tensor, z: Tensor | None) -> Tensor:
        return norm_sum(x, self.weight, None, z, eps=self.eps, groups=x.shape[1] // self.group_size)

    def both(self, y: Tensor, reverse: RMSNormGated) -> Tensor:
        """The norms of two directions added up, y (2, T, d) -> (T, d), the second with the weight of ``reverse``."""
        groups = y.shape[-1] // self.group_size
        return norm_sum(y, self.weight, reverse.weight, eps=self.eps, groups=groups)


def initial_dt_bias(nheads: int, dt_min: float, dt_max: float, floor: float) -> nn.Parameter:
    """Biases, (nheads,), whose softplus is log-uniform from ``dt_min`` to ``dt_max`` and at least ``floor``."""
    low, high = math.log(dt_min), math.log(dt_max)
    dt = torch.exp(torch.rand(nheads) * (high - low) + low).clamp(min=floor)
    # The inverse of softplus.
    return nn.Parameter(dt + torch.log(-torch.expm1(-dt)))


class SSD(nn.Module):
    """What one direction of a Mamba-2 block owns between its projections: convolution, step bias, decay, skip, norm.

    Parameter names, layouts and initial values are those of Mamba-2: ``conv1d`` (E + 2GN, 1, W) over [x; B; C],
    ``dt_bias``, ``A_log`` and ``D`` (H,), ``norm`` (E,).

    Args:
        d_inner: E, channels.
        d_state: N, states a channel.
        d_conv: W, width of the causal convolution.
        headdim: P, channels of a head; H = E / P heads share step size, decay and skip.
        ngroups: G, sets of B and C, each for H / G heads; the norm has as many groups.
        A_init_range: the decay rates start uniform in it.
        dt_min: smallest initial step size.
        dt_max: largest initial step size; heads start log-uniformly in between.
        dt_init_floor: no initial step size is below it.
        conv_bias: whether the convolution has a bias.

    Raises:
        ValueError: when E is no multiple of P, or H none of G.
    """

    def __init__(
        self,
        d_inner: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        headdim: int = 64,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.nheads = check_heads(d_inner, headdim, ngroups)
        self.d_inner, self.d_state, self.d_conv, self.headdim, self.ngroups = d_inner, d_state, d_conv, headdim, ngroups
        self.d_mixed = d_inner + 2 * ngroups * d_state
        # Only its parameters are used: the kernel does not pad.
        self.conv1d = nn.Conv1d(
            self.d_mixed, self.d_mixed, d_conv, groups=self.d_mixed, bias=conv_bias, padding=d_conv - 1
        )
        self.dt_bias = initial_dt_bias(self.nheads, dt_min, dt_max, dt_init_floor)
        self.A_log = nn.Parameter(torch.log(torch.empty(self.nheads).uniform_(*A_init_range)))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = RMSNormGated(d_inner, group_size=d_inner // ngroups)
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def select(self, mixed: Tensor) -> dict[str, Any]:
        """The scan's arguments but dt, from convolved [x; B; C] (T, E + 2GN).

        x (T, H, P), B and C (T, G, N), A, D and dt_bias (H,); the last three stay in fp32 (or fp64) under autocast
        and in half-precision models.
        """
        states = self.ngroups * self.d_state
        x, B, C = mixed.split([self.d_inner, states, states], dim=-1)
        high = torch.promote_types(self.A_log.dtype, torch.float32)
        return {
            "x": self.heads(x),
            "A": -torch.exp(self.A_log.to(high)),
            "B": B.unflatten(-1, (self.ngroups, self.d_state)),
            "C": C.unflatten(-1, (self.ngroups, self.d_state)),
            "D": self.D.to(high),
            "dt_bias": self.dt_bias.to(high),
        }

    def heads(self, x: Tensor) -> Tensor:
        """(T, E) as (T, H, P)."""
        return x.unflatten(-1, (self.nheads, self.headdim))


class Mamba2(SSD):
    """Mamba-2's block: in_proj, convolution, SSD scan, gate, norm, out_proj.

    Loads ``mamba_ssm.Mamba2`` weights name by name: in addition to :class:`SSD`'s, ``in_proj`` (2E + 2GN + H, D) with
    rows [z; x; B; C; dt] and ``out_proj`` (D, E).

    Args:
        d_model: D, token width.
        expand: E = expand * D.
        bias: whether the two projections have one.
        **ssd: the arguments of :class:`SSD` (d_state, d_conv, headdim, ngroups, ...).
    """

    def __init__(self, d_model: int, *, expand: int = 2, bias: bool = False, **ssd: Any) -> None:
        super().__init__(expand * d_model, **ssd)
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_mixed + self.nheads, bias=bias)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self, u: Tensor, cu_seqlens: Tensor, direction: OneDirection = "forward", *, max_seqlen: int | None = None
    ) -> Tensor:
        """Mix the tokens of each segment.

        Args:
            u: tokens, (T, D).
            cu_seqlens: segment borders, (S + 1,) int32.
            direction: "forward" sees what came before in the segment, "reverse" what comes after.
            max_seqlen: not needed: chunks are cut from sizes alone.

        Returns:
            (T, D).
        """
        z, mixed, dt = self.project(u)
        y, _ = self._scan(z, mixed, dt, cu_seqlens, direction)
        return self.out_proj(y)

    def project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u (T, D) to the gate's input z (T, H, P), unconvolved [x; B; C] (T, E + 2GN), and dt (T, H)."""
        z, mixed, dt = split_linear(self.in_proj, u, [self.d_inner, self.d_mixed, self.nheads])
        return self.heads(z), mixed, dt

    def _scan(
        self, z: Tensor, mixed: Tensor, dt: Tensor, cu_seqlens: Tensor, direction: OneDirection
    ) -> tuple[Tensor, Tensor]:
        """Gated and normed output, (T, E), and final states, (S, H, P, N)."""
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        taps = causal_conv1d(mixed, weight, bias, cu_seqlens=cu_seqlens, direction=direction, activation="silu")
        y, final = ssd(
            dt=dt, z=z, dt_softplus=True, cu_seqlens=cu_seqlens, direction=direction, return_final_state=True,
            **self.select(cast(Tensor, taps)),
        )  # fmt: skip
        return self.norm(y.flatten(-2)), final

    def scan_both(
        self,
        u: Tensor,
        cu_seqlens: Tensor,
        reverse: SSD,
        combine: Literal["sum", "none"],
        *,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Both directions from one projection, in one convolution and one scan; each is gated and normed by itself.

        Args:
            u: tokens, (T, D).
            cu_seqlens: segment borders, (S + 1,) int32.
            reverse: whose parameters the second direction has; may be this block.
            combine: "sum" or "none".
            max_seqlen: not needed.

        Returns:
            What ``out_proj`` is to be applied to: (T, E) for "sum", (2, T, E) (forward, reverse) for "none".
        """
        z, mixed, dt = self.project(u)
        first, second = causal_conv1d(
            mixed,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            cu_seqlens=cu_seqlens,
            direction="both",
            weight_rev=reverse.conv1d.weight[:, 0],
            bias_rev=reverse.conv1d.bias,
            activation="silu",
        )
        own: dict[str, Any] = {f"{name}_rev": value for name, value in reverse.select(second).items()}
        y = ssd(
            dt=dt, z=z, dt_softplus=True, cu_seqlens=cu_seqlens, direction="both", combine="none",
            **self.select(first), **own,
        )  # fmt: skip
        # The norm is not linear: it must come before the sum, or the directions would not be two whole blocks.
        y = cast(Tensor, y).flatten(-2)
        if combine == "sum":
            return self.norm.both(y, reverse.norm)
        return torch.stack([self.norm(y[0]), reverse.norm(y[1])])

    # ------------------------------------------------------------------ token by token
    def initial_state(self, batch: int) -> State:
        """The state before the first token, of ``batch`` sequences: zeros, see :meth:`step`."""
        weight = self.in_proj.weight
        high = torch.promote_types(weight.dtype, torch.float32)
        return {
            "conv": weight.new_zeros(batch, self.d_mixed, self.d_conv - 1),
            "ssm": weight.new_zeros(batch, self.nheads, self.headdim, self.d_state, dtype=high),
        }

    def prefill(self, u: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, State]:
        """As :meth:`forward`, with the state after each of the S segments, for :meth:`step`."""
        z, mixed, dt = self.project(u)
        conv = last_inputs(mixed, cu_seqlens, self.d_conv)
        y, final = self._scan(z, mixed, dt, cu_seqlens, "forward")
        return self.out_proj(y), {"conv": conv, "ssm": final}

    def step(self, u: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """Read the next token of each sequence.

        Args:
            u: tokens, (B, D).
            state: "conv" (B, E + 2GN, W - 1), the convolution's last inputs, and "ssm" (B, H, P, N).
            inplace: overwrite the state, without gradients.

        Returns:
            (B, D) and the new state.
        """
        z, mixed, dt = self.project(u)
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        mixed, conv = causal_conv1d_step(mixed, weight, bias, state["conv"], activation="silu", inplace=inplace)
        y, ssm = ssd_step(dt=dt, state=state["ssm"], z=z, dt_softplus=True, inplace=inplace, **self.select(mixed))
        return self.out_proj(self.norm(y.flatten(-2))), {"conv": conv, "ssm": ssm}


def check_heads(d_inner: int, headdim: int, ngroups: int) -> int:
    """H, the number of heads.

    Raises:
        ValueError: when E is no multiple of P, or H none of G.
    """
    if d_inner % headdim:
        raise ValueError(f"d_inner {d_inner} (expand * d_model) is no multiple of headdim {headdim}")
    if (d_inner // headdim) % ngroups:
        raise ValueError(f"the number of heads, {d_inner // headdim}, is no multiple of ngroups {ngroups}")
    return d_inner // headdim
