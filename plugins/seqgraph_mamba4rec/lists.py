"""Lists of items for users: raw ids and names in, the best k items out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.topk import ItemIndex

_TOKENS_AT_ONCE = 1 << 16

Unknown = Literal["error", "skip"]


class Recommendation(NamedTuple):
    """One line of a list: the item's id in the original data, its score, and its title if one is known."""

    item: str
    score: float
    title: str | None


class Catalogue:
    """The items by row, by raw id and by name.

    Args:
        assets: "item_ids", the raw id of each row, and "titles", raw id to name, if there are any.
        num_items: V, the rows that there must be.

    Raises:
        DataError: when the ids are not there.
    """

    def __init__(self, assets: Mapping[str, Any], num_items: int) -> None:
        self.ids: list[str] = assets.get("item_ids") or []
        if len(self.ids) != num_items:
            raise DataError(
                "this model does not know the ids of its items",
                "load a trained run with seqgraph.load, or set model.assets['item_ids']",
            )
        self.titles: dict[str, str] = assets.get("titles") or {}
        self._rows = {raw: row for row, raw in enumerate(self.ids)}
        self._named: dict[str, list[str]] = {}
        for raw, title in self.titles.items():
            if raw in self._rows:
                self._named.setdefault(title.casefold(), []).append(raw)

    def row(self, raw: str) -> int | None:
        """The row of an item by its id, or None."""
        return self._rows.get(raw)

    def find(self, item: Any) -> int | None:
        """The row of an item given by its id (text or number) or, failing that, by its name in any case; or None.

        Raises:
            DataError: for a name that several items have.
        """
        text = str(item)
        row = self.row(text)
        if row is not None:
            return row
        named = self._named.get(text.casefold(), [])
        if len(named) > 1:
            raise DataError(f"{len(named)} items are called {text!r}", f"give an id: {', '.join(named)}")
        return self._rows[named[0]] if named else None

    def rows(self, histories: Iterable[Sequence[Any]], on_unknown: Unknown, *, empty: bool = False) -> list[Tensor]:
        """Histories as rows of items, each (L,) int64.

        Args:
            histories: raw ids or names, oldest first.
            on_unknown: what to do with an item that is not there.
            empty: whether a history may be empty.

        Raises:
            DataError: naming the history and what is wrong with it.
        """
        found = []
        for number, history in enumerate(histories):
            if isinstance(history, str):  # its letters are no items
                raise DataError(f"history {number} is the text {history!r}", "give a list of items for each user")
            row = [self.find(raw) for raw in history]
            if on_unknown == "error" and None in row:
                raise DataError(
                    f"history {number}: item {history[row.index(None)]!r} was not in the training data",
                    'pass on_unknown="skip" to leave such items out',
                )
            known = [i for i in row if i is not None]
            if not known and not empty:
                raise DataError(f"history {number} has no item that the model knows", "leave it out")
            found.append(torch.tensor(known, dtype=torch.int64))
        return found

    def describe(self, scores: Tensor, items: Tensor) -> list[list[Recommendation]]:
        """Lists for people: scores (S, k), minus infinity where there is no item, and rows of items (S, k)."""
        return [
            [
                Recommendation(self.ids[i], s, self.titles.get(self.ids[i]))
                for s, i in zip(row_scores, row_items, strict=True)
                if s > -torch.inf
            ]
            for row_scores, row_items in zip(scores.tolist(), items.tolist(), strict=True)
        ]


class Recommender:
    """Lists for users, for a model with an ``item_embedding``, an ``encode_users(stream)`` and ``assets``.

    ``max_length``, if the model has it, is the longest history that it can read.
    """

    assets: dict[str, Any]

    @torch.inference_mode()
    def recommend(
        self,
        histories: Iterable[Sequence[Any]],
        k: int = 10,
        filter_seen: bool = True,
        *,
        on_unknown: Unknown = "error",
        max_history: int | None = None,
    ) -> list[list[Recommendation]]:
        """The best k items for each history, of users that need not have been in the training data.

        Args:
            histories: items in time order, oldest first: raw ids (str or int) or names of items.
            k: length of the lists; shorter where fewer items are left.
            filter_seen: leave out every item of the history, the ones beyond ``max_history`` too.
            on_unknown: what to do with an item that the model has never met.
            max_history: look at the last so many items only; by default as many as in training. A weight for what
                the user has had (``model.seen``) counts the whole history.

        Raises:
            DataError: naming the history and the item that is unknown, or the history without any known item; or
                for a model that does not know its item ids.
        """
        catalogue = self.catalogue()
        known = catalogue.rows(histories, on_unknown)
        window, most = max_history or self.assets.get("max_history"), getattr(self, "max_length", None)
        if most is not None:
            window = min(window or most, most)
        weight = self.item_vectors()
        recent = [h[-window:] if window else h for h in known]
        encode = cast(Any, self).encode_users
        with evaluating(self):
            users = torch.cat([encode(s.to(weight.device)) for s in batches(recent)] or [weight[:0]])
        had = TokenStream.from_ragged(known).to(weight.device) if known else None
        return catalogue.describe(*self.index().search(users, k, seen=had if filter_seen else None, had=had))

    def index(self) -> ItemIndex:
        """The items, to be searched."""
        return ItemIndex(self.item_vectors(), term=getattr(self, "seen", None))

    def catalogue(self) -> Catalogue:
        """The items by id and name.

        Raises:
            DataError: for a model that does not know its item ids.
        """
        return Catalogue(self.assets, len(self.item_vectors()))

    def item_vectors(self) -> Tensor:
        """What read-outs are compared with, (V, D)."""
        return cast(nn.Embedding, cast(Any, self).item_embedding).weight.detach()


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Have no dropout meanwhile."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def batches(histories: list[Tensor]) -> Iterable[TokenStream]:
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
