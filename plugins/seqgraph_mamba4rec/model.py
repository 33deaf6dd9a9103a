"""Mamba4Rec (Liu et al. 2024, arXiv 2403.03900): a causal Mamba over user histories, packed instead of padded."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from seqgraph.encode import Mamba, Mamba2
from seqgraph_mamba4rec.base import NextItemModel, as_layers
from seqgraph_mamba4rec.blocks import init_normal
from seqgraph_mamba4rec.lists import Recommendation
from seqgraph_mamba4rec.seen import SeenKind
from seqgraph_mamba4rec.states import Streaming

__all__ = ["Mamba4Rec", "Recommendation"]


class Mamba4Rec(Streaming, NextItemModel):
    """Item embedding, causal Mamba layers, and a softmax over all items tied to the embedding.

    Item ids are 0 .. num_items - 1; there is no padding row and no position embedding. Row i of
    ``item_embedding`` is row i + 1 of a RecBole model, whose row 0 is its ``[PAD]``.

    Args:
        num_items: V, items that can be recommended.
        d_model: D, width.
        n_layers: blocks.
        d_state: N, states a channel.
        d_conv: width of the causal convolution.
        expand: inner width over D.
        mixer: "s6" (Mamba-1, published) or "ssd" (Mamba-2).
        headdim: channels of a head, for "ssd".
        d_ffn: inner width of the feed-forward part; 4 D by default.
        dropout: on the embedding (before its norm), the Mamba output and twice in the feed-forward part.
        residual: whether x is added to the Mamba block's output. None is the published rule: only when there are
            two or more layers. Norms in front ("pre") always have it.
        norm: "post" (published) norms after each part and the embedding, "pre" before each part and at the end.
        init: N(0, 0.02) for the embedding and the feed-forward part, either way. "mamba" leaves the Mamba block its
            own initialisation, with step sizes log-uniform in [0.001, 0.1]. "mamba4rec" is the release's: N(0, 0.02)
            for every linear weight inside Mamba too, and every bias zero, so that all step sizes start near
            softplus(0) = 0.69 and the state forgets within a few items. Those of "ssd" belong to no linear layer:
            they stay.
        seen: a learnt weight on the scores of what the user has had: "none" (published), "bias" for one weight or
            "recency" for one a distance: see :class:`seqgraph_mamba4rec.seen.SeenTerm`.
        item_dropout: in training, on the item vectors that the scores are tied to.

    Raises:
        ValueError: for norms in front without a residual.
    """

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
        d_ffn: int | None = None,
        dropout: float = 0.2,
        residual: bool | None = None,
        norm: Literal["post", "pre"] = "post",
        init: Literal["mamba", "mamba4rec"] = "mamba",
        seen: SeenKind = "none",
        item_dropout: float = 0.0,
    ) -> None:
        super().__init__(num_items, d_model, dropout, placement=norm, seen=seen, item_dropout=item_dropout)
        if norm == "pre" and residual is False:
            raise ValueError("norms in front (norm='pre') need the residual")
        mamba: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        kind: type[nn.Module] = Mamba if mixer == "s6" else Mamba2
        if mixer == "ssd":
            mamba["headdim"] = headdim
        mixers = [kind(d_model, **mamba) for _ in range(n_layers)]
        add = n_layers > 1 if residual is None else residual
        self.layers = as_layers(mixers, d_model, d_ffn, dropout, residual=add, placement=norm)
        init_normal(self, kept=mixers if init == "mamba" else ())
