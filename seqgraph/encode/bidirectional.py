"""Two directions in one block; what they share and how they merge are values."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqgraph.encode.mixer import Mamba, SelectiveSSM
from seqgraph.encode.ssd import SSD, Mamba2
from seqgraph.encode.state import State

Direction = Literal["both", "forward", "reverse"]
Mixer = Literal["s6", "ssd"]
Share = Literal["none", "projections", "all"]
Merge = Literal["sum", "mean", "concat", "gate"]


class BiMamba(nn.Module):
    """A bidirectional Mamba or Mamba-2 block without flipped copies and without padding.

    Parameters live under ``mamba_fwd`` and ``mamba_rev`` (the names of Caduceus and LC-PLM).

    Args:
        d_model: D, token width.
        direction: "both", or one of "forward" and "reverse" (then there is one Mamba and nothing to share).
        mixer: "s6" (:class:`Mamba`) or "ssd" (:class:`Mamba2`).
        share: what the second direction takes from the first. "none": nothing, two whole blocks (GMN, untied
            Caduceus). "projections": in_proj and out_proj (BiMamba-S of LC-PLM); ``mamba_rev`` then owns the rest,
            for s6 its convolution, x_proj, dt_proj, A_log and D, for ssd (whose in_proj also makes B, C and dt,
            which are shared up to the convolution and dt_bias) its convolution, dt_bias, A_log, D and norm.
            "all": every parameter.
        merge: "sum" or "mean" of the directions, "concat" (both side by side through a linear layer, 2D to D), or
            "gate" (a learnt mixture g * forward + (1 - g) * reverse with g = sigmoid(linear of both)).
        **mamba: the arguments of :class:`Mamba` or :class:`Mamba2`.

    With shared projections and a sum or mean, one in_proj and one out_proj serve both directions: out_proj is
    linear and the gate is the same, so out_proj(y_f * silu(z)) + out_proj(y_r * silu(z)) is
    out_proj((y_f + y_r) * silu(z)), half the matrix work. A bias of out_proj is thus added once. Mamba-2's norm in
    front of out_proj is not linear, so there each direction is gated and normed before the sum.
    """

    def __init__(
        self,
        d_model: int,
        *,
        direction: Direction = "both",
        mixer: Mixer = "s6",
        share: Share = "projections",
        merge: Merge = "sum",
        **mamba: Any,
    ) -> None:
        super().__init__()
        _check("mixer", mixer, ("s6", "ssd"))
        _check("direction", direction, ("both", "forward", "reverse"))
        _check("share", share, ("none", "projections", "all"))
        _check("merge", merge, ("sum", "mean", "concat", "gate"))
        self.direction, self.share, self.merge = direction, share, merge
        whole: type[Mamba | Mamba2] = Mamba if mixer == "s6" else Mamba2
        if direction != "reverse":
            self.mamba_fwd = whole(d_model, **mamba)
        if direction == "reverse" or (direction == "both" and share == "none"):
            self.mamba_rev: Mamba | Mamba2 | SelectiveSSM | SSD = whole(d_model, **mamba)
        elif direction == "both" and share == "projections":
            own = {k: v for k, v in mamba.items() if k not in ("expand", "dt_rank", "bias")}
            fwd = self.mamba_fwd
            inner = SelectiveSSM(fwd.d_inner, fwd.dt_rank, **own) if isinstance(fwd, Mamba) else SSD(fwd.d_inner, **own)
            self.mamba_rev = inner
        if direction == "both" and merge in ("concat", "gate"):
            self.merge_proj = nn.Linear(2 * d_model, d_model)

    def forward(self, u: Tensor, cu_seqlens: Tensor, *, max_seqlen: int | None = None) -> Tensor:
        """Mix tokens u (T, D) within the segments of cu_seqlens, (S + 1,) int32. Returns (T, D).

        ``max_seqlen``: no segment is longer than this, if the host knows; see ``TokenStream.max_seqlen``.
        """
        if self.direction == "forward":
            return self.mamba_fwd(u, cu_seqlens, "forward", max_seqlen=max_seqlen)
        if self.direction == "reverse":
            return self.mamba_rev(u, cu_seqlens, "reverse", max_seqlen=max_seqlen)
        if self.share == "none":
            fwd = self.mamba_fwd(u, cu_seqlens, "forward", max_seqlen=max_seqlen)
            return self._merge(fwd, self.mamba_rev(u, cu_seqlens, "reverse", max_seqlen=max_seqlen))
        second: Any = self.mamba_fwd if self.share == "all" else self.mamba_rev
        combine: Literal["sum", "none"] = "sum" if self.merge in ("sum", "mean") else "none"
        y = self.mamba_fwd.scan_both(u, cu_seqlens, second, combine, max_seqlen=max_seqlen)
        out = self.mamba_fwd.out_proj(y)
        if self.merge == "sum":
            return out
        return out / 2 if self.merge == "mean" else self._merge(out[0], out[1])

    # ------------------------------------------------------------------ token by token
    def initial_state(self, batch: int) -> State:
        """The state before the first token of ``batch`` sequences; see the step of the mixer."""
        return self._only_forward().initial_state(batch)

    def prefill(self, u: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, State]:
        """As :meth:`forward`, with the state after each of the S segments, for :meth:`step`."""
        return self._only_forward().prefill(u, cu_seqlens)

    def step(self, u: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """Read the next token of each sequence, u (B, D), with direction "forward". Returns (B, D) and the new state.

        Raises:
            ValueError: for another direction, which needs the tokens still to come.
        """
        return self._only_forward().step(u, state, inplace=inplace)

    def _only_forward(self) -> Mamba | Mamba2:
        if self.direction != "forward":
            raise ValueError(f"token by token goes with direction 'forward' only; this block's is {self.direction!r}")
        return self.mamba_fwd

    def _merge(self, forward: Tensor, reverse: Tensor) -> Tensor:
        if self.merge == "sum":
            return forward + reverse
        if self.merge == "mean":
            return (forward + reverse) / 2
        mixed = self.merge_proj(torch.cat([forward, reverse], dim=-1))
        if self.merge == "concat":
            return mixed
        gate = torch.sigmoid(mixed)
        return gate * forward + (1 - gate) * reverse


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
