"""The one container that everything in seqgraph speaks: a packed, ragged batch of token sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Reduce = Literal["sum", "mean", "last"]
Pool = Literal["sum", "mean", "max", "first", "last"]


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Sequences of any lengths, laid end to end; padding does not exist.

    Segment ``s`` is ``values[cu_seqlens[s]:cu_seqlens[s + 1]]``. Segments may be empty.

    Attributes:
        values: token ids, (T,) int64, or features, (T, ...) floating.
        cu_seqlens: segment borders, (S + 1,) int32, rising from 0 to T (FlashAttention's convention).
        source: index of the thing (node, residue, item) each token came from, (T,) int64.
        role: what kind of token each one is, (T,) int8, or None. The tokenizer that made it names the codes.
        max_seqlen: no segment is longer than this, where the host knows it. A GPU's kernels plan with it.
    """

    values: Tensor
    cu_seqlens: Tensor
    source: Tensor
    role: Tensor | None = None
    max_seqlen: int | None = None

    # ------------------------------------------------------------------ making one
    @classmethod
    def from_ragged(
        cls,
        sequences: Iterable[Tensor | Sequence],
        *,
        source: Iterable[Tensor] | None = None,
        role: Iterable[Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> TokenStream:
        """Pack a list of sequences, each (L_s,) or (L_s, D); L_s may be 0.

        ``source`` defaults to the token's own position in the stream.

        Raises:
            ValueError: when ``source`` or ``role`` differ in length from their sequence, or sequences in width.
        """
        parts = [s if isinstance(s, Tensor) else torch.as_tensor(s) for s in sequences]
        # An empty Python list comes out as float32 and would promote the ids of its neighbours.
        typed = [p for p in parts if p.numel()]
        like = typed[0] if typed else (parts[0] if parts else torch.empty(0, dtype=torch.int64))
        if strange := [i for i, p in enumerate(parts) if p.numel() and p.shape[1:] != like.shape[1:]]:
            shapes = f"{tuple(parts[strange[0]].shape)} beside {tuple(like.shape)}"
            raise ValueError(f"sequence {strange[0]} differs in width: {shapes}")
        parts = [p if p.numel() else like.new_empty((0, *like.shape[1:])) for p in parts]
        lengths = torch.tensor([len(p) for p in parts], dtype=torch.int64)
        values = torch.cat(parts) if parts else like.new_empty((0, *like.shape[1:]))
        stream = cls.from_lengths(
            values,
            lengths,
            source=None if source is None else _join(source, lengths, "source", torch.int64),
            role=None if role is None else _join(role, lengths, "role", torch.int8),
        )
        return stream if device is None else stream.to(device)

    @classmethod
    def from_lengths(
        cls,
        values: Tensor,
        lengths: Tensor | Sequence[int],
        *,
        source: Tensor | None = None,
        role: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> TokenStream:
        """Wrap values that are packed already, (T, ...), cut into segments of the given lengths, (S,).

        ``max_seqlen`` is found by itself where that waits for no GPU.
        """
        if max_seqlen is None and not (isinstance(lengths, Tensor) and lengths.device.type != "cpu"):
            lengths = torch.as_tensor(lengths, dtype=torch.int64)
            max_seqlen = int(lengths.max()) if len(lengths) else 0
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device=values.device)
        cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=values.device)
        cu_seqlens[1:] = lengths.cumsum(0)
        if source is None:
            source = torch.arange(len(values), device=values.device)
        return cls(values, cu_seqlens, source, role, max_seqlen)

    @classmethod
    def from_dense(cls, dense: Tensor, lengths: Tensor | Sequence[int] | None = None) -> TokenStream:
        """Take the valid part of a right-padded batch, (B, L) or (B, L, D), with lengths (B,).

        Without ``lengths`` every row is whole. ``source`` is the flat position b * L + t in the batch.

        Raises:
            ValueError: when a length is negative or above L.
        """
        size, longest = dense.shape[:2]
        if lengths is None:
            lengths = torch.full((size,), longest, dtype=torch.int64, device=dense.device)
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device=dense.device)
        if len(lengths) != size or (size and (int(lengths.min()) < 0 or int(lengths.max()) > longest)):
            raise ValueError(f"lengths must be {size} numbers from 0 to {longest}")
        keep = torch.arange(longest, device=dense.device) < lengths[:, None]  # (B, L)
        return cls.from_lengths(dense[keep], lengths, source=keep.flatten().nonzero()[:, 0], max_seqlen=longest)

    # ------------------------------------------------------------------ what it holds
    @property
    def num_tokens(self) -> int:
        """T."""
        return self.values.shape[0]

    @property
    def num_segments(self) -> int:
        """S, empty segments included."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def lengths(self) -> Tensor:
        """Tokens of each segment, (S,) int64."""
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()

    @property
    def segment(self) -> Tensor:
        """The segment each token belongs to, (T,) int64."""
        index = torch.arange(self.num_segments, device=self.device)
        return torch.repeat_interleave(index, self.lengths, output_size=self.num_tokens)

    @property
    def position(self) -> Tensor:
        """Each token's place within its segment, from 0, (T,) int64."""
        return torch.arange(self.num_tokens, device=self.device) - self.cu_seqlens[self.segment].long()

    def __len__(self) -> int:
        return self.num_segments

    def __repr__(self) -> str:
        return (
            f"TokenStream({self.num_segments} segments, {self.num_tokens} tokens, "
            f"values {tuple(self.values.shape)} {str(self.values.dtype).removeprefix('torch.')}, {self.device})"
        )

    def validate(self) -> TokenStream:
        """Check the contract (this reads tensors back from a GPU); returns itself.

        Raises:
            ValueError: naming the field that is wrong.
        """
        tokens = self.num_tokens
        if self.cu_seqlens.dtype != torch.int32 or self.cu_seqlens.ndim != 1 or not len(self.cu_seqlens):
            raise ValueError("cu_seqlens must be int32, (S + 1,)")
        if int(self.cu_seqlens[0]) != 0 or int(self.cu_seqlens[-1]) != tokens or bool((self.lengths < 0).any()):
            raise ValueError(f"cu_seqlens must rise from 0 to {tokens}")
        if self.source.dtype != torch.int64 or self.source.shape != (tokens,):
            raise ValueError("source must be int64, (T,)")
        if self.max_seqlen is not None and len(self) and int(self.lengths.max()) > self.max_seqlen:
            raise ValueError(f"max_seqlen is {self.max_seqlen}, and a segment has {int(self.lengths.max())} tokens")
        if self.role is not None and (self.role.dtype != torch.int8 or self.role.shape != (tokens,)):
            raise ValueError("role must be int8, (T,)")
        return self

    # ------------------------------------------------------------------ new streams from old
    def with_values(self, values: Tensor) -> TokenStream:
        """The same tokens with other values, (T, ...).

        Raises:
            ValueError: when there is not one value a token.
        """
        if values.shape[0] != self.num_tokens:
            raise ValueError(f"{values.shape[0]} values for {self.num_tokens} tokens")
        return replace(self, values=values)

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenStream:
        role = None if self.role is None else change(self.role)
        return TokenStream(change(self.values), change(self.cu_seqlens), change(self.source), role, self.max_seqlen)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TokenStream:
        """Move every field to a device."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TokenStream:
        """Copy every field to page-locked memory."""
        return self._map(Tensor.pin_memory)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> TokenStream:
        """Some of the segments, in the order asked for; ``source`` keeps its meaning."""
        every = torch.arange(self.num_segments, device=self.device)
        if isinstance(index, int):
            if not -self.num_segments <= index < self.num_segments:
                raise IndexError(f"segment {index} of {self.num_segments}")
            index = [index]
        if not isinstance(index, slice | Tensor):
            index = list(index)
            # An empty list would come out as float32, which chooses nothing.
            index = torch.as_tensor(index, dtype=None if index else torch.int64, device=self.device)
        chosen = every[index]
        lengths = self.lengths[chosen]
        total = int(lengths.sum())
        starts = lengths.cumsum(0) - lengths
        shift = torch.repeat_interleave(self.cu_seqlens[chosen].long() - starts, lengths, output_size=total)
        take = torch.arange(total, device=self.device) + shift
        return TokenStream.from_lengths(
            self.values[take],
            lengths,
            source=self.source[take],
            role=None if self.role is None else self.role[take],
            max_seqlen=self.max_seqlen,
        )

    @staticmethod
    def concat(streams: Sequence[TokenStream], *, source_sizes: Sequence[int] | None = None) -> TokenStream:
        """Put streams one after another, segment by segment.

        Args:
            streams: at least one, with values of one shape (T_i, ...) and dtype.
            source_sizes: how many sources each stream has (its nodes, say). With it, the sources of stream i are
                shifted by the sizes before it, so that they stay apart; without it they are taken as they are.

        Raises:
            ValueError: for no streams, or when only some of them have roles.
        """
        if not streams:
            raise ValueError("nothing to concatenate")
        roles = [s.role for s in streams if s.role is not None]
        if len(roles) not in (0, len(streams)):
            raise ValueError("either every stream has roles or none")
        shifts = [0] * len(streams)
        if source_sizes is not None:
            shifts = [0, *torch.tensor(list(source_sizes)).cumsum(0).tolist()][:-1]
        longest = [s.max_seqlen for s in streams if s.max_seqlen is not None]
        return TokenStream.from_lengths(
            torch.cat([s.values for s in streams]),
            torch.cat([s.lengths for s in streams]),
            source=torch.cat([s.source + shift for s, shift in zip(streams, shifts, strict=True)]),
            role=torch.cat(roles) if roles else None,
            max_seqlen=max(longest) if len(longest) == len(streams) else None,
        )

    def reverse(self) -> TokenStream:
        """Each segment read backwards; the segments stay in their places."""
        segment = self.segment
        borders = self.cu_seqlens.long()
        mirror = borders[segment] + borders[segment + 1] - 1 - torch.arange(self.num_tokens, device=self.device)
        role = None if self.role is None else self.role[mirror]
        return replace(self, values=self.values[mirror], source=self.source[mirror], role=role)

    def unbind(self) -> list[TokenStream]:
        """One stream a segment (reads the lengths back from a GPU)."""
        return [self[i] for i in range(self.num_segments)]

    def to_dense(self, fill: float = 0) -> tuple[Tensor, Tensor]:
        """For the border to other libraries: (S, L_max, ...) filled up on the right, and lengths (S,)."""
        lengths = self.lengths
        longest = int(lengths.max()) if self.num_segments else 0
        dense = self.values.new_full((self.num_segments, longest, *self.values.shape[1:]), fill)
        dense[self.segment, self.position] = self.values
        return dense, lengths

    # ------------------------------------------------------------------ reading back
    def scatter_to_source(self, num_sources: int, reduce: Reduce = "mean") -> Tensor:
        """Bring token values back onto the things they came from.

        Args:
            num_sources: how many things there are; those without a token get zeros.
            reduce: "sum" or "mean" over the tokens of a thing, or its "last" token in stream order.

        Returns:
            (num_sources, ...) in the dtype of ``values``; the mean of integers is float32.
        """
        shape = (num_sources, *self.values.shape[1:])
        if reduce == "last":
            place = torch.full((num_sources,), -1, dtype=torch.int64, device=self.device)
            order = torch.arange(self.num_tokens, device=self.device)
            place = place.scatter_reduce(0, self.source, order, "amax")
            seen = (place >= 0).view(-1, *[1] * (self.values.ndim - 1))
            return (
                torch.where(seen, self.values[place.clamp_min(0)], self.values.new_zeros(()))
                if self.num_tokens
                else (self.values.new_zeros(shape))
            )
        if reduce not in ("sum", "mean"):
            raise ValueError(f"reduce must be sum, mean or last, not {reduce!r}")
        return _add_up(self.values, self.source, num_sources, reduce)

    def pool(self, reduce: Pool = "mean") -> Tensor:
        """One vector a segment, (S, ...); an empty segment gives zeros."""
        lengths, shape = self.lengths, (self.num_segments, *self.values.shape[1:])
        if reduce in ("sum", "mean"):
            return _add_up(self.values, self.segment, self.num_segments, reduce)
        if reduce not in ("max", "first", "last"):
            raise ValueError(f"reduce must be sum, mean, max, first or last, not {reduce!r}")
        if not self.num_tokens:
            return self.values.new_zeros(shape)
        if reduce in ("first", "last"):
            border = self.cu_seqlens[:-1] if reduce == "first" else self.cu_seqlens[1:] - 1
            picked = self.values[border.long().clamp(0, self.num_tokens - 1)]
            return torch.where((lengths > 0).view(-1, *[1] * (self.values.ndim - 1)), picked, picked.new_zeros(()))
        index = self.segment.view(-1, *[1] * (self.values.ndim - 1)).expand_as(self.values)
        return self.values.new_zeros(shape).scatter_reduce(0, index, self.values, "amax", include_self=False)

    def equal(self, other: TokenStream) -> bool:
        """Whether every field is the same, bit by bit."""
        if (self.role is None) != (other.role is None):
            return False
        pairs = [
            (self.values, other.values),
            (self.cu_seqlens, other.cu_seqlens),
            (self.source, other.source),
        ]
        if self.role is not None and other.role is not None:
            pairs.append((self.role, other.role))
        return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _add_up(values: Tensor, index: Tensor, size: int, reduce: Literal["sum", "mean"]) -> Tensor:
    """Sum or mean of the values (T, ...) with the same index (T,), as (size, ...); nothing adds up to zeros."""
    # Counting by ones, bfloat16 stops at 256 and float16 at 2,048.
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    total = wide.new_zeros(size, *values.shape[1:]).index_add(0, index, wide)
    if reduce == "mean":
        counts = torch.bincount(index, minlength=size).clamp_min(1)
        counts = counts.to(wide.dtype if wide.is_floating_point() else torch.float32)
        total = total / counts.view(-1, *[1] * (values.ndim - 1))
    return total.to(values.dtype) if values.is_floating_point() else total


def _join(parts: Iterable[Tensor], lengths: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    tensors = [torch.as_tensor(p, dtype=dtype) for p in parts]
    if [len(t) for t in tensors] != lengths.tolist():
        raise ValueError(f"{name} must have the same lengths as the sequences")
    return torch.cat(tensors) if tensors else torch.empty(0, dtype=dtype)
