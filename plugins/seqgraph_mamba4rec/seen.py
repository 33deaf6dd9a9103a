"""A learned term for what a user has had: items of the history get more or less of a score, as the data say.

Whether a user comes back to an item is a question of its own (RepeatNet, Ren et al. 2019, arXiv 1812.02646, gives it a
decoder of its own). Here it is a number: the score of item i after event t gets ``+ w`` if i is among the user's events
up to t, with ``w`` learnt at every position like all else. Where nobody comes back ``w`` falls until such items rank
behind the others, so that no mask is needed from outside; where people do, it rises. "recency" has a ``w`` for each
distance in events to the last time: 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 and more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from seqgraph.stream import TokenStream

SeenKind = Literal["none", "bias", "recency"]

_SCALE = 10.0
"""Weights are so many times their parameters: at rates of 1e-3 they have some hundred steps to get far."""

_EDGES = 5
"""Windows of 17 events reach the last weight, which counts for all that lies further back."""


class SeenTerm(nn.Module):
    """The weights, which start at zero.

    Args:
        kind: "bias" for one weight, "recency" for one a distance.
    """

    edges: Tensor

    def __init__(self, kind: Literal["bias", "recency"]) -> None:
        super().__init__()
        count = _EDGES if kind == "recency" else 0
        self.theta = nn.Parameter(torch.zeros(count + 1))
        self.register_buffer("edges", 2 ** torch.arange(count), persistent=False)

    def forward(self) -> Tensor:
        """What is added to a score, by bucket of distances, (K,)."""
        return _SCALE * self.theta

    def had(self, stream: TokenStream, at: Tensor | None = None) -> Had:
        """What the users of a stream (T,) of items have had at the tokens ``at``, (P,) int64; at every one for None."""
        return Had.of(stream, at, self(), self.edges)

    def of_histories(self, had: TokenStream) -> Tensor:
        """What is added to the score of each item of some histories, after their last events, (T,).

        An item that is there several times gets its weight once, at the last of them, and zeros before.
        """
        age = had.lengths[had.segment] - 1 - had.position
        return self()[bucket_of(age, self.edges)] * (following(had) == had.num_tokens)

    def add_(self, scores: Tensor, had: TokenStream) -> Tensor:
        """Add the term in place to the scores (S, V) of users with these histories (S segments); returns them."""
        worth = self.of_histories(had).to(scores.dtype)
        return scores.index_put_((had.segment, had.values), worth, accumulate=True)  # zeros but for one an item


def seen_term(kind: SeenKind) -> SeenTerm | None:
    """The term of a model; None for "none"."""
    return None if kind == "none" else SeenTerm(kind)


def bucket_of(age: Tensor, edges: Tensor) -> Tensor:
    """Of distances in events, any shape, the number of the weight, int64."""
    return (age[..., None] >= edges).sum(-1)


def following(stream: TokenStream) -> Tensor:
    """Of each token the next one of its segment with the same item, T where there is none, (T,) int64."""
    tokens, items = stream.num_tokens, stream.values
    out = torch.full_like(items, tokens)
    # Two stable sorts: by item, then by segment. Tokens of one item of one segment stand side by side, in order.
    order = items.argsort(stable=True)
    segment = stream.segment
    order = order[segment[order].argsort(stable=True)]
    one, next_ = order[:-1], order[1:]
    alike = (items[one] == items[next_]) & (segment[one] == segment[next_])
    return out.scatter_(0, one, torch.where(alike, next_, tokens))


@dataclass(frozen=True)
class Had:
    """What the user of each of P predictions has had by then. Waits for no GPU where it knows the longest segment.

    Attributes:
        values: items of all tokens, (T,) int64.
        begin: the first token of each token's segment, (T,) int64.
        following: see :func:`following`, (T,) int64.
        at: the token of each prediction, (P,) int64.
        longest: no segment has more tokens.
        weights: (K,); gradients go to it.
        edges: distances from which the next weight counts, (K - 1,) int64.
    """

    values: Tensor
    begin: Tensor
    following: Tensor
    at: Tensor
    longest: int
    weights: Tensor
    edges: Tensor

    @classmethod
    def of(cls, stream: TokenStream, at: Tensor | None, weights: Tensor, edges: Tensor) -> Had:
        """See :meth:`SeenTerm.had`."""
        begin = stream.cu_seqlens.long()[stream.segment]
        longest = stream.max_seqlen
        if longest is None:
            longest = int(stream.lengths.max()) if len(stream) else 0
        at = torch.arange(stream.num_tokens, device=stream.device) if at is None else at
        return cls(stream.values, begin, following(stream), at, longest, weights, edges)

    def pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Of some predictions the items had, by distance, (R, longest) int64, and which of them count, bool.

        An item counts at its least distance. Where none counts the prediction's own last item stands.
        """
        at = self.at[rows, None]
        token = torch.maximum(at - torch.arange(self.longest, device=at.device), self.begin[at])
        fresh = self.following[token] > at
        fresh[:, 1:] &= token[:, 1:] < token[:, :-1]  # before the first token stands the first token
        return self.values[torch.where(fresh, token, at)], fresh

    def buckets(self) -> Tensor:
        """Which weight counts at each distance, (longest,) int64."""
        return bucket_of(torch.arange(self.longest, device=self.at.device), self.edges)

    def finder(self, num_items: int) -> Callable[[slice, Tensor], Tensor]:
        """Of some predictions and items (R, n): the number of the weight, (R, n) int64; K where an item was not had."""
        tokens = len(self.values)
        # Segment, item and token as one number, in order: the item's last token up to ``at`` is the one before it.
        pair = self.begin * num_items + self.values
        keys = (pair * tokens + torch.arange(tokens, device=pair.device)).sort().values

        def find(rows: slice, items: Tensor) -> Tensor:
            at = self.at[rows, None]
            asked = (self.begin[at] * num_items + items) * tokens + at
            place = torch.searchsorted(keys, asked, right=True) - 1
            found = keys[place.clamp_min(0)]
            hit = (place >= 0) & (found // tokens == asked // tokens)
            return torch.where(hit, bucket_of(at - found % tokens, self.edges), len(self.weights))

        return find
