"""What the backbones share: the layer around a mixer, its feed-forward part, and the initial values."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from seqgraph_mamba4rec.readout import read_mixer

NORM_EPS = 1e-12
Placement = Literal["post", "pre"]


class FeedForward(nn.Module):
    """D to d_ffn and back, with exact GELU and a residual.

    "post": LN(Dropout(W2 Dropout(GELU(W1 h))) + h). "pre": h + Dropout(W2 Dropout(GELU(W1 LN(h)))).
    """

    def __init__(self, d_model: int, d_ffn: int, dropout: float, placement: Placement = "post") -> None:
        super().__init__()
        self.w_1 = nn.Linear(d_model, d_ffn)
        self.w_2 = nn.Linear(d_ffn, d_model)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.placement = placement

    def forward(self, h: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        x = self.norm(h) if self.placement == "pre" else h
        out = self.dropout(self.w_2(self.dropout(self.activation(self.w_1(x))))) + h
        return out if self.placement == "pre" else self.norm(out)


class Layer(nn.Module):
    """A mixer of tokens and a feed-forward part, each with a norm.

    "post": h = LN(Dropout(mixer(x)) [+ x]); out = FeedForward(h). "pre": h = x + Dropout(mixer(LN(x))).

    Args:
        mixer: (x (T, D), cu_seqlens, max_seqlen=) to (T, D) within each segment.
        d_model: D.
        d_ffn: inner width of the feed-forward part.
        dropout: on the mixer's output and twice in the feed-forward part.
        residual: whether x is added to the mixer's output ("post" only: "pre" always adds it).
        placement: of the norms.
    """

    def __init__(
        self,
        mixer: nn.Module,
        d_model: int,
        d_ffn: int,
        dropout: float,
        residual: bool = True,
        placement: Placement = "post",
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.ffn = FeedForward(d_model, d_ffn, dropout, placement)
        self.residual, self.placement = residual, placement

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, *, max_seqlen: int | None = None, at: Tensor | None = None
    ) -> Tensor:
        """(T, D) to (T, D); to (P, D) where only the tokens ``at``, (P,) int64, are asked for.

        ``max_seqlen``: no segment is longer than this, where the host knows it.
        """
        u = self.enter(x)
        if at is None:
            return self.leave(x, self.mixer(u, cu_seqlens, max_seqlen=max_seqlen))
        return self.leave(x.index_select(0, at), read_mixer(self.mixer, u, cu_seqlens, at, max_seqlen))

    def enter(self, x: Tensor) -> Tensor:
        """What the mixer reads, of the tokens x (T, D)."""
        return self.norm(x) if self.placement == "pre" else x

    def leave(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output (T, D) from its input x and what the mixer made of ``enter(x)``, both (T, D)."""
        h = self.dropout(mixed)
        if self.placement == "pre":
            return self.ffn(h + x)
        return self.ffn(self.norm(h + x if self.residual else h))


@torch.no_grad()
def init_normal(model: nn.Module, *, kept: Collection[nn.Module] = (), std: float = 0.02) -> None:
    """N(0, std) for every Linear and Embedding weight and zero for their biases, but not inside ``kept``.

    Tables left at torch's N(0, 1) drown item vectors of this size: SASRec with such a position table scores half.
    """
    skip = {id(inner) for module in kept for inner in module.modules()}
    for module in model.modules():
        if id(module) not in skip and isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
