"""BERT4Rec's cloze task (Sun et al. 2019, arXiv 1904.06690) with bidirectional Mamba blocks on true lengths."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqgraph.encode import BiMamba
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.base import NextItemModel, as_layers
from seqgraph_mamba4rec.blocks import init_normal


class BiMamba4Rec(NextItemModel):
    """Item embedding, a vector for hidden items, bidirectional Mamba layers, and a tied softmax.

    Trained by the task "cloze" to name hidden items; asked for the next item with a hidden one at the end. The
    reverse direction begins at each history's true last item: nothing is padded, nothing flipped. Not causal, so no
    state can be kept. The hidden item's vector is no row of ``item_embedding``: it cannot be recommended.

    Args:
        num_items: V.
        d_model: D, width.
        n_layers: blocks.
        d_state: N, states a channel and direction.
        d_conv: width of the convolution.
        expand: inner width over D.
        mixer: "s6" or "ssd".
        headdim: channels of a head, for "ssd".
        share: what both directions share: see :class:`seqgraph.encode.BiMamba`.
        d_ffn: inner width of the feed-forward part; 4 D by default.
        dropout: on the embedding, the block's output and twice in the feed-forward part.
    """

    capturable = False  # how many items are hidden is drawn

    def __init__(
        self,
        num_items: int,
        d_model: int = 64,
        n_layers: int = 1,
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        mixer: Literal["s6", "ssd"] = "s6",
        headdim: int = 64,
        share: Literal["none", "projections", "all"] = "projections",
        d_ffn: int | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_items, d_model, dropout)
        mamba: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        if mixer == "ssd":
            mamba["headdim"] = headdim
        mixers = [BiMamba(d_model, mixer=mixer, share=share, **mamba) for _ in range(n_layers)]
        self.layers = as_layers(mixers, d_model, d_ffn, dropout)
        init_normal(self, kept=mixers)
        self.hidden_item = nn.Parameter(torch.randn(d_model) * 0.02)

    def embed(self, stream: TokenStream) -> Tensor:
        """The first layer's input, (T, D); an id of ``num_items`` is a hidden item."""
        hidden = stream.values == self.num_items
        known = self.item_embedding(torch.where(hidden, torch.zeros_like(stream.values), stream.values))
        x = torch.where(hidden[:, None], self.hidden_item.to(known.dtype), known)
        out: Tensor = self.norm(self.dropout(x))
        return out

    def encode_users(self, stream: TokenStream) -> Tensor:
        """What the model says of a hidden item after each history, (S, D)."""
        return self(with_last(stream, self.num_items)).pool("last")


def with_last(stream: TokenStream, last: int | Tensor) -> TokenStream:
    """Item ids (T,) with one more at the end of every segment: ``last``, one id or (S,) int64."""
    segments = stream.num_segments
    size = stream.num_tokens + segments
    values = stream.values.new_empty(size)
    end = stream.cu_seqlens[1:].long() + torch.arange(segments, device=stream.device)
    values[torch.arange(stream.num_tokens, device=stream.device) + stream.segment] = stream.values
    values[end] = last
    return TokenStream.from_lengths(values, stream.lengths + 1, source=values)


def hide(stream: TokenStream, share: float, last_only: float, hidden: int) -> tuple[TokenStream, Tensor]:
    """Hide some items of complete histories.

    Args:
        stream: item ids (T,).
        share: of the items of a history that are hidden, each by itself.
        last_only: share of the histories of which the last item is hidden instead, as it is when asked for the next.
        hidden: the id that stands for a hidden item.

    Returns:
        The stream with ``hidden`` at the hidden tokens, and which those are, (T,) bool.
    """
    device = stream.device
    some = torch.rand(stream.num_tokens, device=device) < share
    last = torch.zeros(stream.num_tokens, dtype=torch.bool, device=device)
    ends = stream.cu_seqlens[1:].long() - 1
    last[ends[stream.lengths > 0]] = True
    whole = (torch.rand(stream.num_segments, device=device) < last_only)[stream.segment]
    gone = torch.where(whole, last, some)
    return stream.with_values(torch.where(gone, torch.full_like(stream.values, hidden), stream.values)), gone
