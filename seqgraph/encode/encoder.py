"""The stack: pre-norm blocks on one fp32 residual stream."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from seqgraph.encode.bidirectional import BiMamba, Direction, Merge, Share
from seqgraph.encode.hydra import Hydra
from seqgraph.encode.norm import LayerNorm, Norm, RMSNorm, make_norm
from seqgraph.encode.state import State
from seqgraph.stream import TokenStream

# What the state of a block consists of.
_PARTS = ("conv", "ssm")


class Block(nn.Module):
    """One layer, from the branch and the residual stream before it to those after it.

    ``r' = r + branch``, then ``branch' = dropout(mixer(norm(r')))``: the sum waits for the next norm, which makes
    both in one pass over memory.

    Args:
        norm: RMSNorm or LayerNorm.
        mixer: from (T, D), cu_seqlens and max_seqlen (see :meth:`BiMamba.forward`) to (T, D).
        dropout: probability on the branch.
    """

    def __init__(self, norm: RMSNorm | LayerNorm, mixer: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.mixer: Any = mixer
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        branch: Tensor,
        residual: Tensor | None,
        cu_seqlens: Tensor,
        checkpoint: bool = False,
        max_seqlen: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Branch (T, D) and residual (T, D) fp32, None for the first block -> those of the next one.

        Args:
            branch: what the block before gave, or the tokens.
            residual: the stream before ``branch`` joins it.
            cu_seqlens: segment borders, (S + 1,) int32.
            checkpoint: recompute the mixer in the backward pass. The norm is not: what it keeps is the stream.
            max_seqlen: no segment is longer than this, if the host knows.
        """
        normed, residual = self._join(branch, residual)
        if not checkpoint:
            return self._mix(normed, cu_seqlens, max_seqlen), residual
        random = self.dropout.p > 0
        branch = recompute(self._mix, normed, cu_seqlens, max_seqlen, use_reentrant=False, preserve_rng_state=random)
        return branch, residual

    def prefill(
        self, branch: Tensor, residual: Tensor | None, cu_seqlens: Tensor
    ) -> tuple[tuple[Tensor, Tensor], State]:
        """As :meth:`forward`, with the mixer's state after each segment."""
        normed, residual = self._join(branch, residual)
        branch, state = self.mixer.prefill(normed, cu_seqlens)
        return (self.dropout(branch), residual), state

    def step(
        self, branch: Tensor, residual: Tensor | None, state: State, *, inplace: bool = False
    ) -> tuple[tuple[Tensor, Tensor], State]:
        """The next token of each sequence: as :meth:`forward` with B rows, and the new state."""
        normed, residual = self._join(branch, residual)
        branch, state = self.mixer.step(normed, state, inplace=inplace)
        return (self.dropout(branch), residual), state

    def _join(self, branch: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream with the branch, normed in the dtype that matrix products want, and as it is."""
        device, dtype = branch.device.type, self.norm.weight.dtype
        return self.norm.joined(
            branch, residual, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        )

    def _mix(self, normed: Tensor, cu_seqlens: Tensor, max_seqlen: int | None) -> Tensor:
        return self.dropout(self.mixer(normed, cu_seqlens, max_seqlen=max_seqlen))


class Encoder(nn.Module):
    """A stack of S6, SSD or Hydra blocks.

    Parameter names: ``layers.{i}.norm.*``, ``layers.{i}.mixer.mamba_fwd.*``, ``layers.{i}.mixer.mamba_rev.*``
    (Hydra's: ``layers.{i}.mixer.*``), ``norm_f.*``.

    Args:
        d_model: D, token width.
        n_layers: number of blocks.
        mixer: "s6" (Mamba-1), "ssd" (Mamba-2) or "hydra", which reads both ways by itself and has nothing to share
            or merge.
        direction: "both", "forward" or "reverse".
        share: see :class:`BiMamba`.
        merge: see :class:`BiMamba`.
        norm: "rms" or "layer".
        norm_eps: the norms' epsilon.
        dropout: probability on each branch before it joins the residual stream.
        final_norm: whether the stream is normed at the end.
        checkpoint: recompute each block in the backward pass instead of keeping its activations.
        **mamba: the arguments of :class:`Mamba` (d_state, d_conv, expand, dt_rank, ...), of :class:`Mamba2` (d_state,
            d_conv, expand, headdim, ngroups, ...) or of :class:`Hydra`.

    Raises:
        ValueError: for an unknown value, or sizes that do not fit the mixer.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        *,
        mixer: Literal["s6", "ssd", "hydra"] = "s6",
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

        def make_mixer() -> nn.Module:
            if mixer != "hydra":
                return BiMamba(d_model, mixer=mixer, direction=direction, share=share, merge=merge, **mamba)
            if (direction, share, merge) != ("both", "projections", "sum"):
                raise ValueError("mixer 'hydra' leaves direction, share and merge as they are")
            return Hydra(d_model, **mamba)

        self.layers = nn.ModuleList(
            Block(make_norm(norm, d_model, norm_eps), make_mixer(), dropout) for _ in range(n_layers)
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
        (pair,) = deque(self._pairs(stream), maxlen=1)
        return stream.with_values(self._finish(*pair))

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
        for depth, pair in enumerate(self._pairs(stream)):
            # What a block has normed is the stream without its own branch.
            if pair[1] is not None and depth - 1 in wanted.values():
                found[depth - 1] = pair[1]
        if n in wanted.values():
            found[n] = self._finish(*pair)
        return {i: found[depth] for i, depth in wanted.items()}

    def _pairs(self, stream: TokenStream) -> Iterator[tuple[Tensor, Tensor | None]]:
        """A branch and the stream that it is to join: the tokens and None, then what each block gives."""
        again = self.checkpoint and self.training and torch.is_grad_enabled()
        pair: tuple[Tensor, Tensor | None] = (stream.values, None)
        yield pair
        for block in self.layers:
            pair = block(*pair, stream.cu_seqlens, checkpoint=again, max_seqlen=stream.max_seqlen)
            yield pair

    def _finish(self, branch: Tensor, residual: Tensor | None) -> Tensor:
        """The last branch joins the stream; the final norm of it, in the dtype of the norm's weight."""
        if isinstance(self.norm_f, nn.Identity):
            high = torch.promote_types(branch.dtype, torch.float32)
            return branch.to(high) if residual is None else residual + branch.to(residual.dtype)
        return self.norm_f.joined(branch, residual, self.norm_f.weight.dtype)[0]

    # ------------------------------------------------------------------ token by token
    def initial_state(self, batch: int) -> State:
        """The state before the first token of ``batch`` sequences; see :meth:`step`.

        Raises:
            ValueError: when this encoder is not a forward one.
        """
        return self._named(block.mixer.initial_state(batch) for block in self._streaming())

    def prefill(self, stream: TokenStream) -> tuple[TokenStream, State]:
        """Encode whole histories at once, as :meth:`forward` does, and give the state after each of the S segments.

        Raises:
            ValueError: when this encoder is not a forward one.
        """
        pair: tuple[Tensor, Tensor | None] = (stream.values, None)
        states = []
        for block in self._streaming():
            pair, state = block.prefill(*pair, stream.cu_seqlens)
            states.append(state)
        return stream.with_values(self._finish(*pair)), self._named(states)

    def step(self, tokens: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """Read the next token of each sequence, in constant time and memory. For direction "forward".

        Args:
            tokens: (B, D), one for each row of the state.
            state: "layers.{i}.conv" and "layers.{i}.ssm", each with B rows, of :meth:`initial_state`,
                :meth:`prefill` or the step before; rows may be picked, put back and stored in any floating dtype.
            inplace: overwrite the tensors of the state, without gradients.

        Returns:
            (B, D), what :meth:`forward` gives for these tokens at the end of their histories, and the new state.

        Raises:
            ValueError: when this encoder is not a forward one, or the state is not its own.
        """
        blocks = self._streaming()
        if odd := {f"layers.{i}.{part}" for i in range(len(blocks)) for part in _PARTS} ^ state.keys():
            raise ValueError(f"not the state of this encoder: {min(odd)} is missing or too much")
        pair: tuple[Tensor, Tensor | None] = (tokens, None)
        states = []
        for i, block in enumerate(blocks):
            own = {part: state[f"layers.{i}.{part}"] for part in _PARTS}
            pair, new = block.step(*pair, own, inplace=inplace)
            states.append(new)
        return self._finish(*pair), self._named(states)

    def _streaming(self) -> list[Any]:
        """The blocks, if all can go on token by token."""
        for block in self.layers:
            if getattr(block.mixer, "direction", "both") != "forward":
                raise ValueError("token by token goes with an encoder of direction 'forward' only")
        return list(self.layers)

    @staticmethod
    def _named(states: Iterable[State]) -> State:
        return {f"layers.{i}.{part}": tensor for i, state in enumerate(states) for part, tensor in state.items()}
