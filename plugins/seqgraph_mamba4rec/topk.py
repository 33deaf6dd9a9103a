"""The best k of all items by inner product: exact, in blocks, by torch or by FAISS's flat index."""

from __future__ import annotations

import importlib.util
import math
from typing import Any, Literal

import torch
from torch import Tensor

from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.seen import SeenTerm

Backend = Literal["auto", "torch", "faiss"]

# Below so many rows of users a block of items is cut instead.
_ROWS = 64
# FAISS looks for the k best and all those seen: beyond so many it is slower than torch, and for more users at once.
_FAISS_MOST, _FAISS_USERS = 1024, 4


class ItemIndex:
    """All items, to be searched for the best k.

    Args:
        items: (V, D).
        backend: "faiss" (``IndexFlatIP``, which is exact; on a CPU), "torch", or "auto": FAISS for a few users at once
            if it is installed, the items are on the CPU and there are at least ``faiss_from`` of them.
        budget: bytes of scores that torch holds at once.
        faiss_from: see ``backend``.
        term: what is added to the scores of items that a user has had; FAISS does not know it.

    Raises:
        ModuleNotFoundError: for "faiss" where it is not installed.
        ValueError: for "faiss" and items on another device, or a term.
    """

    def __init__(
        self,
        items: Tensor,
        *,
        backend: Backend = "auto",
        budget: int = 64 << 20,
        faiss_from: int = 100_000,
        term: SeenTerm | None = None,
    ) -> None:
        self.items, self.budget, self.term = items.detach(), budget, term
        if backend == "auto":
            large = term is None and items.device.type == "cpu" and len(items) >= faiss_from
            backend = "auto" if large and importlib.util.find_spec("faiss") else "torch"
        self.backend = backend
        self._flat: Any = None
        if backend != "torch":
            if term is not None:
                raise ValueError("FAISS knows no term for what a user has had, use torch")
            if items.device.type != "cpu":
                raise ValueError(f"FAISS searches on the CPU, the items are on {items.device}")
            import faiss

            self._flat = faiss.IndexFlatIP(items.shape[1])
            self._flat.add(self.items.float().contiguous().numpy())

    def search(
        self, users: Tensor, k: int, *, seen: TokenStream | None = None, had: TokenStream | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k best items of each user, best first; of equal scores the lower row first.

        Which of the items that tie for the last place get in is left open.

        Args:
            users: (S, D).
            k: length of the lists, cut to V.
            seen: per user (segment) the rows of the items to leave out.
            had: per user the rows of the items of the history, oldest first; an index with a term needs it.

        Returns:
            Scores (S, k) fp32, minus infinity where too few items are left, and rows of items (S, k) int64.

        Raises:
            ValueError: for a k below 1, and for an index with a term and no ``had``.
        """
        if k < 1:
            raise ValueError(f"a list of {k} items: k is 1 or more")
        if self.term is not None and had is None and len(users):
            raise ValueError("this index has a term for what users have had, pass had=")
        k = min(k, len(self.items))
        had = had if self.term is not None else None
        most = int(seen.lengths.max()) if seen is not None and len(users) else 0
        few = self.backend == "faiss" or len(users) <= _FAISS_USERS
        if self._flat is not None and few and k + most <= _FAISS_MOST:
            return self._by_faiss(users, k, min(k + most, len(self.items)), seen)
        rows = max(1, min(_ROWS, self.budget // 4), self.budget // (4 * max(1, len(self.items))))
        scores = [users.new_empty((0, k), dtype=torch.float32)]
        found = [torch.empty((0, k), dtype=torch.int64, device=users.device)]
        for start in range(0, len(users), rows):
            block = slice(start, min(start + rows, len(users)))
            best = self._by_torch(users[block], k, *(None if one is None else one[block] for one in (seen, had)))
            scores.append(best[0])
            found.append(best[1])
        return torch.cat(scores), torch.cat(found)

    def _by_torch(
        self, users: Tensor, k: int, seen: TokenStream | None, had: TokenStream | None
    ) -> tuple[Tensor, Tensor]:
        """For one block of users: block after block of items, keeping the best so far."""
        worth = None if had is None or self.term is None else self.term.of_histories(had).float()
        width = max(1, self.budget // (4 * len(users)))
        scores = users.new_empty((len(users), 0), dtype=torch.float32)
        found = torch.empty((len(users), 0), dtype=torch.int64, device=users.device)
        for start in range(0, len(self.items), width):
            part = self.items[start : start + width]
            here = (users @ part.T).float()  # (rows, width)
            if had is not None and worth is not None:
                inside = (had.values >= start) & (had.values < start + len(part))
                place = (had.segment[inside], had.values[inside] - start)
                here.index_put_(place, worth[inside], accumulate=True)
            if seen is not None:
                inside = (seen.values >= start) & (seen.values < start + len(part))
                here[seen.segment[inside], seen.values[inside] - start] = -math.inf
            best = here.topk(min(k, len(part)), dim=1)
            scores = torch.cat([scores, best.values], dim=1)
            found = torch.cat([found, best.indices + start], dim=1)
            if scores.shape[1] > k:
                scores, at = scores.topk(k, dim=1)
                found = found.gather(1, at)
        return in_order(scores, found)

    def _by_faiss(self, users: Tensor, k: int, wide: int, seen: TokenStream | None) -> tuple[Tensor, Tensor]:
        """The best ``wide``, of which at least k are not seen."""
        got, rows = self._flat.search(users.float().contiguous().numpy(), wide)
        scores, found = torch.from_numpy(got), torch.from_numpy(rows)
        if seen is not None:
            # One number for each pair of user and item.
            pairs = torch.arange(len(users))[:, None] * len(self.items) + found
            scores[torch.isin(pairs, seen.segment * len(self.items) + seen.values)] = -math.inf
        scores, at = scores.topk(k, dim=1)
        return in_order(scores, found.gather(1, at))


def in_order(scores: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of scores and items, (S, k), by falling score and, where those are equal, rising item."""
    at = items.argsort(dim=1)
    at = at.gather(1, scores.gather(1, at).argsort(dim=1, descending=True, stable=True))
    return scores.gather(1, at), items.gather(1, at)
