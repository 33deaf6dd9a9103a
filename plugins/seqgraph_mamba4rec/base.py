"""What every model of next items offers: histories to vectors, scores of all items, and lists from raw ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.blocks import NORM_EPS, Layer, Placement
from seqgraph_mamba4rec.lists import Recommender
from seqgraph_mamba4rec.seen import SeenKind, seen_term


class NextItemModel(Recommender, nn.Module):
    """Item embedding, layers over packed histories, and scores tied to the embedding.

    Item ids are 0 .. num_items - 1; there is no padding row, so none can be recommended. Subclasses set ``layers``
    or override :meth:`forward`.

    Args:
        num_items: V, items that can be recommended.
        d_model: D, width.
        dropout: on the embedding.
        placement: "post" norms the embedding after its dropout, "pre" the last layer's output.
        max_length: the longest history that the model can read; None for any.
        seen: whether the scores of items that the user has had get a learnt weight more: "none", "bias" or "recency".
        item_dropout: on the item vectors that the scores are tied to: see :meth:`tied_vectors`.

    Attributes:
        assets: what :meth:`recommend` needs: "item_ids" (raw id of each row), "titles" (raw id to title),
            "max_history".
        seen: the term of items that a user has had, or None.
        capturable: whether a step waits for nothing and depends on the lengths by tensors alone, so that a CUDA graph
            can replay it.
    """

    capturable = True
    layers: nn.ModuleList

    def __init__(
        self,
        num_items: int,
        d_model: int,
        dropout: float,
        *,
        placement: Placement = "post",
        max_length: int | None = None,
        seen: SeenKind = "none",
        item_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_items, self.max_length, self.item_dropout = num_items, max_length, item_dropout
        self.seen = seen_term(seen)
        self.assets: dict[str, Any] = {}
        self.item_embedding = nn.Embedding(num_items, d_model)
        self.dropout = nn.Dropout(dropout)
        post = placement == "post"
        self.norm: nn.Module = nn.LayerNorm(d_model, eps=NORM_EPS) if post else nn.Identity()
        self.norm_f: nn.Module = nn.Identity() if post else nn.LayerNorm(d_model, eps=NORM_EPS)

    def forward(self, stream: TokenStream) -> TokenStream:
        """Encode histories.

        Args:
            stream: item ids (T,), one segment a history.

        Returns:
            The same stream with values (T, D): token t holds what the model knows after event t.
        """
        return stream.with_values(self._through(stream, None))

    def read(self, stream: TokenStream, at: Tensor) -> Tensor:
        """``self(stream).values[at]``, (P, D), without what follows the last mixer at the other tokens.

        Args:
            stream: item ids (T,), one segment a history.
            at: some of its tokens, (P,) int64.
        """
        return self._through(stream, at)

    def _through(self, stream: TokenStream, at: Tensor | None) -> Tensor:
        x, last = self.embed(stream), len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, stream.cu_seqlens, max_seqlen=stream.max_seqlen, at=at if i == last else None)
        out: Tensor = self.norm_f(x)
        return out

    def embed(self, stream: TokenStream) -> Tensor:
        """The first layer's input, (T, D)."""
        return self.norm(self.dropout(self.item_embedding(stream.values)))

    def tied_vectors(self) -> Tensor:
        """The item vectors that a loss compares read-outs with, (V, D).

        In training a share ``item_dropout`` of their entries is zero, drawn anew each time, and the rest is scaled up:
        with few events an item, a wide table is soon learnt by heart. RecTools' SASRec does so (item_net.py).
        """
        return F.dropout(self.item_embedding.weight, self.item_dropout, self.training)

    def encode_users(self, stream: TokenStream) -> Tensor:
        """The read-out of each history, (S, D): the last token's; zeros for an empty history."""
        return self(stream).pool("last")

    def scores(self, users: Tensor) -> Tensor:
        """Scores of every item, (S, V), for read-outs (S, D); without the term of what the
        users have had (``model.seen.add_(scores, histories)`` adds it)."""
        return users @ self.item_embedding.weight.T


def as_layers(mixers: Iterable[nn.Module], d_model: int, d_ffn: int | None, dropout: float, **options: Any) -> Any:
    """A ModuleList of a :class:`Layer` around each mixer; d_ffn is 4 D by default."""
    return nn.ModuleList(Layer(mixer, d_model, d_ffn or 4 * d_model, dropout, **options) for mixer in mixers)
