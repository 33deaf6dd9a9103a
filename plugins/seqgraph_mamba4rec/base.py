"""What every model of next items offers: histories to vectors, scores of all items, and lists from raw ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.blocks import NORM_EPS, Layer, Placement
from seqgraph_mamba4rec.ranking import top_k

_TOKENS_AT_ONCE = 1 << 16


class Recommendation(NamedTuple):
    """One line of a list: the item's id in the original data, its score, and its title if one is known."""

    item: str
    score: float
    title: str | None


class NextItemModel(nn.Module):
    """Item embedding, layers over packed histories, and scores tied to the embedding.

    Item ids are 0 .. num_items - 1; there is no padding row, so none can be recommended. Subclasses set ``layers``
    or override :meth:`forward`.

    Args:
        num_items: V, items that can be recommended.
        d_model: D, width.
        dropout: on the embedding.
        placement: "post" norms the embedding after its dropout, "pre" the last layer's output.
        max_length: the longest history that the model can read; None for any.

    Attributes:
        assets: what :meth:`recommend` needs: "item_ids" (raw id of each row), "titles" (raw id to title),
            "max_history".
    """

    layers: nn.ModuleList

    def __init__(
        self,
        num_items: int,
        d_model: int,
        dropout: float,
        *,
        placement: Placement = "post",
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.num_items, self.max_length = num_items, max_length
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
        x = self.embed(stream)
        for layer in self.layers:
            x = layer(x, stream.cu_seqlens)
        return stream.with_values(self.norm_f(x))

    def embed(self, stream: TokenStream) -> Tensor:
        """The first layer's input, (T, D)."""
        return self.norm(self.dropout(self.item_embedding(stream.values)))

    def encode_users(self, stream: TokenStream) -> Tensor:
        """The read-out of each history, (S, D): the last token's; zeros for an empty history."""
        return self(stream).pool("last")

    def scores(self, users: Tensor) -> Tensor:
        """Scores of every item, (S, V), for read-outs (S, D)."""
        return users @ self.item_embedding.weight.T

    @torch.inference_mode()
    def recommend(
        self,
        histories: Iterable[Sequence[Any]],
        k: int = 10,
        filter_seen: bool = True,
        *,
        on_unknown: Literal["error", "skip"] = "error",
        max_history: int | None = None,
    ) -> list[list[Recommendation]]:
        """The best k items for each history, of users that need not have been in the training data.

        Args:
            histories: raw item ids (str or int) in time order, oldest first.
            k: length of the lists; shorter where fewer items are left.
            filter_seen: leave out every item of the history, the ones beyond ``max_history`` too.
            on_unknown: what to do with an item that the model has never met.
            max_history: look at the last so many items only; by default as many as in training.

        Raises:
            DataError: naming the history and the item that is unknown, or the history without any known item; or
                for a model that does not know its item ids.
        """
        known = self._tokens(histories, on_unknown)
        window = max_history or self.assets.get("max_history")
        if self.max_length is not None:
            window = min(window or self.max_length, self.max_length)
        device = self.item_embedding.weight.device
        recent = [h[-window:] if window else h for h in known]
        training = self.training
        self.eval()
        try:
            users = torch.cat([self.encode_users(s.to(device)) for s in _batches(recent)] or [self._nobody()])
        finally:
            self.train(training)
        seen = TokenStream.from_ragged(known).to(device) if filter_seen and known else None
        scores, items = top_k(users, self.item_embedding.weight, k, seen=seen)
        ids, titles = self.assets["item_ids"], self.assets.get("titles") or {}
        return [
            [
                Recommendation(ids[i], s, titles.get(ids[i]))
                for s, i in zip(row_scores, row_items, strict=True)
                if s > -torch.inf
            ]
            for row_scores, row_items in zip(scores.tolist(), items.tolist(), strict=True)
        ]

    def _nobody(self) -> Tensor:
        return self.item_embedding.weight.new_empty((0, self.item_embedding.embedding_dim))

    def _tokens(self, histories: Iterable[Sequence[Any]], on_unknown: str) -> list[Tensor]:
        if len(self.assets.get("item_ids", ())) != self.num_items:
            raise DataError(
                "this model does not know the ids of its items",
                "load a trained run with seqgraph.load, or set model.assets['item_ids']",
            )
        index = {raw: i for i, raw in enumerate(self.assets["item_ids"])}
        tokens = []
        for number, history in enumerate(histories):
            if isinstance(history, str):  # its letters are no items
                raise DataError(f"history {number} is the text {history!r}", "give a list of items for each user")
            row = [index.get(str(raw)) for raw in history]
            if on_unknown == "error" and None in row:
                raise DataError(
                    f"history {number}: item {history[row.index(None)]!r} was not in the training data",
                    'pass on_unknown="skip" to leave such items out',
                )
            known = [i for i in row if i is not None]
            if not known:
                raise DataError(f"history {number} has no item that the model knows", "leave it out")
            tokens.append(torch.tensor(known, dtype=torch.int64))
        return tokens


def as_layers(mixers: Iterable[nn.Module], d_model: int, d_ffn: int | None, dropout: float, **options: Any) -> Any:
    """A ModuleList of a :class:`Layer` around each mixer; d_ffn is 4 D by default."""
    return nn.ModuleList(Layer(mixer, d_model, d_ffn or 4 * d_model, dropout, **options) for mixer in mixers)


def _batches(histories: list[Tensor]) -> Iterable[TokenStream]:
    """Streams of at most ``_TOKENS_AT_ONCE`` tokens, or of one history that is longer."""
    batch: list[Tensor] = []
    size = 0
    for history in histories:
        if batch and size + len(history) > _TOKENS_AT_ONCE:
            yield TokenStream.from_ragged(batch)
            batch, size = [], 0
        batch.append(history)
        size += len(history)
    if batch:
        yield TokenStream.from_ragged(batch)
