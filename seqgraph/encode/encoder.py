"""The stack: pre-norm blocks on one fp32 residual stream."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from seqgraph.encode.bidirectional import BiMamba, Direction, Merge, Share
from seqgraph.encode.norm import Norm, make_norm
from seqgraph.stream import TokenStream


class Block(nn.Module):
    """r + dropout(mixer(norm(r))): one layer of the residual stream.

    Args:
        norm: from (T, D) to (T, D).
        mixer: from (T, D) and cu_seqlens to (T, D).
        dropout: probability on the branch.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)

    def forward(self, residual: Tensor, cu_seqlens: Tensor) -> Tensor:
        """residual (T, D) fp32 -> (T, D) fp32."""
        branch = self.mixer(self.norm(residual), cu_seqlens)
        return residual + self.dropout(branch).to(residual.dtype)


class Encoder(nn.Module):
    """A stack of S6 blocks.

    Parameter names: ``layers.{i}.norm.*``, ``layers.{i}.mixer.mamba_fwd.*``, ``layers.{i}.mixer.mamba_rev.*``,
    ``norm_f.*``.

    Args:
        d_model: D, token width.
        n_layers: number of blocks.
        direction: "both", "forward" or "reverse".
        share: see :class:`BiMamba`.
        merge: see :class:`BiMamba`.
        norm: "rms" or "layer".
        norm_eps: the norms' epsilon.
        dropout: probability on each branch before it joins the residual stream.
        final_norm: whether the stream is normed at the end.
        checkpoint: recompute each block in the backward pass instead of keeping its activations.
        **mamba: the arguments of :class:`Mamba` (d_state, d_conv, expand, dt_rank, ...).
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        *,
        direction: Direction = "both",
        share: Share = "projections",
        merge: Merge = "sum",
        norm: Norm = "rms",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        final_norm: bool = True,
        checkpoint: bool = False,
        **mamba: Any,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.checkpoint = checkpoint
        self.layers = nn.ModuleList(
            Block(
                make_norm(norm, d_model, norm_eps),
                BiMamba(d_model, direction=direction, share=share, merge=merge, **mamba),
                dropout,
            )
            for _ in range(n_layers)
        )
        self.norm_f = make_norm(norm, d_model, norm_eps) if final_norm else nn.Identity()
        self._rescale_out_proj()

    def _rescale_out_proj(self) -> None:
        """Divide out_proj by sqrt(n_layers), so that the residual stream does not grow with depth (as Mamba-1)."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("out_proj.weight"):
                    parameter.div_(math.sqrt(len(self.layers)))

    def forward(self, stream: TokenStream) -> TokenStream:
        """Encode a stream with values (T, D); every other field is handed on."""
        # Only the last one is kept: a list of all would hold n copies of a long protein.
        (residual,) = deque(self._residuals(stream), maxlen=1)
        return stream.with_values(self.norm_f(residual))

    def hidden_states(self, stream: TokenStream, layers: Collection[int]) -> dict[int, Tensor]:
        """The residual stream at some depths.

        Args:
            stream: values (T, D).
            layers: from -(n + 1) to n, as in ESM: 0 is the input, i the stream after block i, n the output of
                the final norm; negative ones count from the end.

        Returns:
            layer, as asked for -> (T, D).

        Raises:
            ValueError: for a layer that is not there.
        """
        n = len(self.layers)
        if wrong := [i for i in layers if not -(n + 1) <= i <= n]:
            raise ValueError(f"layer {wrong[0]} of a model with layers {-(n + 1)} to {n}")
        wanted = {i: i % (n + 1) for i in layers}
        found: dict[int, Tensor] = {}
        for depth, residual in enumerate(self._residuals(stream)):
            if depth in wanted.values():
                found[depth] = self.norm_f(residual) if depth == n else residual
        return {i: found[depth] for i, depth in wanted.items()}

    def _residuals(self, stream: TokenStream) -> Iterator[Tensor]:
        """The input, then the residual stream after each block; fp32, or fp64 for fp64 values."""
        values = stream.values
        residual = values.to(torch.promote_types(values.dtype, torch.float32))
        yield residual
        for block in self.layers:
            if self.checkpoint and self.training and torch.is_grad_enabled():
                residual = recompute(block, residual, stream.cu_seqlens, use_reentrant=False)
            else:
                residual = block(residual, stream.cu_seqlens)
            yield residual
