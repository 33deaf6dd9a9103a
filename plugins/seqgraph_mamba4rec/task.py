"""The tasks: predict the next item of a history, or hidden items; judged by full ranking over all items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph.train.task import Dataset, Task
from seqgraph_mamba4rec.baselines import judge, popularity
from seqgraph_mamba4rec.captured import Captured
from seqgraph_mamba4rec.cloze import BiMamba4Rec, hide, with_last
from seqgraph_mamba4rec.histories import HistoryBatch, HistoryDataset
from seqgraph_mamba4rec.loss import gbce_loss, sampled_softmax_loss, softmax_loss
from seqgraph_mamba4rec.metrics import Metrics
from seqgraph_mamba4rec.ranking import Kind, all_scores, user_blocks
from seqgraph_mamba4rec.seen import Had, SeenTerm

Loss = Literal["softmax", "sampled-softmax", "gbce"]


class NextItem(Task):
    """A loss over items; HR, NDCG and MRR at k over the ranking of all items, in two protocols.

    ``HR@10``: every item is ranked, those that the user has seen among them (RecBole's protocol for sequential
    models). ``HR@10-unseen``: the seen items are taken out of the ranking first (SASRec+, gSASRec, HSTU). The two
    answer different questions and must not stand in one column.

    Args:
        model: encodes a stream of item ids to vectors (T, D) and has ``tied_vectors()``.
        k: length of the lists that are judged, one or several; the first picks the best epoch.
        select_by: the ranking on the validation events that picks the best epoch: of "all" items, or of the
            "unseen" ones.
        select_metric: what of that ranking picks it: "NDCG", "HR" or "MRR".
        lists: coverage and novelty of the lists as well.
        memory_mib: largest block of scores held at once, MiB.
        loss: "softmax" over all items, "sampled-softmax", or "gbce" (gSASRec's).
        negatives: items drawn for each prediction, for the latter two.
        gbce_t: calibration of "gbce", from 0 to 1.
        capture: replay training steps as CUDA graphs, on a GPU. Small batches are several times faster; a resumed
            training is no longer the same bit by bit.

    Raises:
        ConfigError: for ``capture`` with a model whose steps wait for the GPU, and for a model that sees what comes
            after a position.
    """

    mode = "max"
    both_sides = False  # may the model see what follows the position that is asked for?

    def __init__(
        self,
        model: nn.Module,
        k: int | Sequence[int] = 10,
        select_by: Literal["all", "unseen"] = "all",
        select_metric: Kind = "NDCG",
        lists: bool = False,
        memory_mib: int = 256,
        loss: Loss = "softmax",
        negatives: int = 256,
        gbce_t: float = 0.75,
        capture: bool = False,
    ) -> None:
        super().__init__(model)
        if isinstance(model, BiMamba4Rec) and not self.both_sides:
            raise ConfigError("a BiMamba4Rec sees the very items that the task next-item asks it for", "task=cloze")
        if capture and not getattr(model, "capturable", False):
            raise ConfigError(f"task.capture cannot record a step of {type(model).__name__}", "task.capture=false")
        self.ks = (k,) if isinstance(k, int) else tuple(k)
        self.monitor = f"{select_metric}@{self.ks[0]}" + ("-unseen" if select_by == "unseen" else "")
        self.budget = memory_mib << 20
        self.lists = lists
        self.loss, self.negatives, self.gbce_t = loss, negatives, gbce_t
        self.ranked = Metrics(self.ks)
        self.ranks: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.capture, self._captured = capture, cast(Captured | None, None)

    def setup(self, data: Dataset) -> None:
        """Learn how many items there are and who has met them, for coverage and novelty.

        Raises:
            ConfigError: for a model that cannot read histories as long as the data's.
        """
        if not isinstance(data, HistoryDataset):
            return
        self.ranked = Metrics(self.ks, data if self.lists else None)
        most = getattr(self.model, "max_length", None)
        if most is not None and (data.max_history is None or data.max_history > most):
            raise ConfigError(
                f"data.max_history is {data.max_history or 'unlimited'}, the model reads {most} events",
                "raise model.max_length or lower data.max_history",
            )

    def training_step(self, batch: HistoryBatch) -> dict[str, Tensor]:
        """Mean loss over the batch's predictions."""
        stream, model = batch.stream, cast(Any, self.model)
        # Sizes are known without waiting for a GPU; gathering every token would cost a sort of them backwards.
        every = len(batch.at) == stream.num_tokens
        at = None if every else batch.at
        wanted = self.capture and stream.device.type == "cuda" and torch.is_grad_enabled()
        # train.replay may be recording this very step: a graph cannot be recorded or replayed within another.
        if wanted and not torch.cuda.is_current_stream_capturing():
            self._captured = self._captured or Captured(self._counted, model.parameters())
            if (loss := self._captured(stream, batch.target, at)) is not None:
                return {"loss": loss, "size": torch.tensor(len(batch.target))}
        loss = self._loss(self._read(stream, at), batch.target, had=self._had(stream, at))
        return {"loss": loss, "size": torch.tensor(len(batch.target))}

    def _read(self, stream: TokenStream, at: Tensor | None) -> Tensor:
        """Read-outs of the tokens ``at``, (P, D); of all for None."""
        model = cast(Any, self.model)
        out: Tensor = model(stream).values if at is None else model.read(stream, at)
        return out

    def _had(self, stream: TokenStream, at: Tensor | None) -> Had | None:
        """What the users have had at the tokens that predict, where the model has a weight for it."""
        term = self._term()
        return None if term is None else term.had(stream, at)

    def _term(self) -> SeenTerm | None:
        return cast(SeenTerm | None, getattr(self.model, "seen", None))

    def _counted(self, stream: TokenStream, target: Tensor, at: Tensor | None, count: Tensor | None) -> Tensor:
        """Mean loss of the tokens ``at``; of the first ``count`` tokens where all predict."""
        return self._loss(self._read(stream, at), target, count=count, had=self._had(stream, at))

    def _loss(self, hidden: Tensor, target: Tensor, count: Tensor | None = None, had: Had | None = None) -> Tensor:
        options: dict[str, Any] = {"budget": self.budget, "count": count, "had": had}
        if self.loss == "softmax":
            return softmax_loss(hidden, self._items(), target, **options)
        options["negatives"] = self.negatives
        if self.loss == "gbce":
            return gbce_loss(hidden, self._items(), target, t=self.gbce_t, **options)
        return sampled_softmax_loss(hidden, self._items(), target, **options)

    def evaluation_step(self, batch: HistoryBatch) -> dict[str, Tensor]:
        """Rank every item for every user of the batch, in blocks of users; returns the mean cross-entropy."""
        users = cast(Any, self.model).encode_users(batch.stream)  # (S, D)
        items, seen, term = self._items(), batch.seen, self._term()
        if seen is None:
            raise ValueError("a training batch cannot be evaluated: it does not say what the users have seen")
        total = users.new_zeros((), dtype=torch.float64)
        for block in user_blocks(len(users), len(items), self.budget):
            scores = all_scores(users[block], items)  # (block, V)
            if term is not None:
                term.add_(scores, seen[block])
            target = batch.target[block]
            total += F.cross_entropy(scores, target, reduction="sum")
            ranks = self.ranked.update(scores, target, seen[block])
            if self.ranks is not None and batch.user is not None:
                self.ranks.append((batch.user[block], *ranks))
        return {"loss": total / max(1, len(users)), "size": torch.tensor(len(users))}

    def _items(self) -> Tensor:
        """The item vectors that the softmax is tied to, (V, D)."""
        return cast(Tensor, cast(Any, self.model).tied_vectors())

    def metrics(self) -> dict[str, Metric]:
        """``{HR,NDCG,MRR}@k`` and, with ``lists``, ``{coverage,novelty}@k``; each with ``-unseen`` too."""
        return self.ranked.by_name()

    def baseline(self, data: Dataset) -> dict[str, float]:
        """Popularity in the training events, by the same evaluator, on the test split."""
        if not isinstance(data, HistoryDataset):
            return {}
        return judge(popularity(data), data, k=self.ks, lists=self.lists, budget=self.budget)[0]


class Cloze(NextItem):
    """Name hidden items from both sides (BERT4Rec); judged as :class:`NextItem`.

    Args:
        model: a :class:`seqgraph_mamba4rec.cloze.BiMamba4Rec`.
        hidden: share of the items of a history that are hidden in training.
        last_only: share of the histories of which the last item is hidden instead.
        **options: see :class:`NextItem`.
    """

    both_sides = True

    def __init__(self, model: nn.Module, hidden: float = 0.2, last_only: float = 0.1, **options: Any) -> None:
        if not isinstance(model, BiMamba4Rec):
            raise ConfigError(f"the task cloze hides items, which a {type(model).__name__} cannot", "model=bimamba4rec")
        super().__init__(model, **options)
        self.hidden, self.last_only = hidden, last_only

    def training_step(self, batch: HistoryBatch) -> dict[str, Tensor]:
        """Mean loss over the hidden items of whole histories, last targets included."""
        whole = complete(batch)
        model = cast(BiMamba4Rec, self.model)
        holed, gone = hide(whole, self.hidden, self.last_only, model.num_items)
        at = gone.nonzero()[:, 0]
        return {"loss": self._loss(model(holed).values[at], whole.values[at]), "size": torch.tensor(len(at))}


def complete(batch: HistoryBatch) -> TokenStream:
    """The histories of a training batch with the item that follows each."""
    ends = torch.searchsorted(batch.at, batch.stream.cu_seqlens[1:].long() - 1)
    return with_last(batch.stream, batch.target[ends])
