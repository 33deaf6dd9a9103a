"""The two contracts between a domain and the trainer: a data set, and a task on it.

Neither knows Lightning: :mod:`seqgraph.train.fit` alone adapts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

Split = Literal["train", "valid", "test"]


@runtime_checkable
class Batch(Protocol):
    """Anything that moves: a TokenStream, or a domain's own dataclass of tensors.

    One that has ``pin_memory()`` is page-locked first, and its ``to`` gets ``non_blocking=True`` as well.
    """

    def to(self, device: Any) -> Any: ...


class Dataset:
    """Where examples come from. Subclass it and register a descriptor for it.

    The constructor takes the fields of the descriptor's config class as keywords.

    Attributes:
        length_buckets: whether training batches may be made of examples of like length, which balances work. Set it
            to False where length tells about the target and the model normalises over a batch: batch statistics of
            small examples alone, or of large ones, are not those of inference.
    """

    length_buckets: bool = True

    def split(self, name: Split) -> Sequence[Any]:
        """The examples of one split; indexable, and cheap to index."""
        raise NotImplementedError

    def lengths(self, name: Split) -> Sequence[int]:
        """Tokens of each example of a split, in the same order; what a token budget counts."""
        return [len(example) for example in self.split(name)]

    def sizes(self, name: Split) -> np.ndarray | None:
        """What decides the shapes of a batch's tensors beside how many examples and tokens it has, (n, D) integers in
        the order of a split: the edges of each graph, say; (n, 0) where nothing else does. ``train.level``
        makes batches with equal sums of them. None where nobody has said."""
        return None

    def leveled(self, batch: Any) -> Any:
        """A batch of ``train.level`` with its bounds, which the host knows and a recorded step would hold
        (``TokenStream.max_seqlen``, say), replaced by ones that are true of every batch."""
        return batch

    def draw(self, name: Split, epoch: int, seed: int) -> Sequence[int] | np.ndarray | None:
        """The examples of one epoch of training, as distinct indices into a split; None for all of them.

        It depends on the arguments alone, so that a resumed run goes on with the same examples. For data in which
        some examples stand for others: one protein of each family, one session of each user.
        """
        return None

    def collate(self, examples: list[Any]) -> Batch:
        """Make one batch of some examples, on the CPU, without padding."""
        raise NotImplementedError

    def model_defaults(self) -> dict[str, Any]:
        """Values of the model's constructor that only the data know (``num_items``, ``d_out``); a user's own win."""
        return {}

    def assets(self) -> dict[str, Any]:
        """What the trained model needs to be used on raw input (vocabularies, target mean); JSON only."""
        return {}

    def fingerprint(self) -> str:
        """A short hash of the content and of the settings that shape it; saved with every result."""
        return ""


class Task(nn.Module):
    """What is learnt from a data set: the loss and the metrics. Subclass it and register a descriptor for it.

    Attributes:
        model: the model that is trained.
        monitor: the metric that picks the best epoch, a key of ``metrics()`` or "loss".
        mode: whether the monitored metric is better when "min" or "max".
    """

    monitor: str = "loss"
    mode: Literal["min", "max"] = "min"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def setup(self, data: Dataset) -> None:
        """Called once before training with the data (target statistics, item counts). Must be idempotent."""

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to make of the tensors of ``train.weights`` before they are loaded into the model: rows of new tokens,
        a head for another number of classes. What does not fit afterwards is refused."""
        return state

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        """One batch forward. Returns {"loss": scalar with gradient, "size": items the loss is a mean over, ...};
        other scalars are logged."""
        raise NotImplementedError

    def evaluation_step(self, batch: Any) -> dict[str, Tensor]:
        """One batch without gradient: update ``metrics()``; return {"loss": scalar, "size": ...} or {}."""
        raise NotImplementedError

    def flops(self, lengths: Sequence[int]) -> float | None:
        """Floating-point operations of a training step, forward and backward, without what is computed twice to save
        memory; None where nobody has counted. With it the trainer logs the hardware's utilisation.

        Args:
            lengths: tokens of each example of the batch, as ``Dataset.lengths`` gives them.
        """
        return None

    def metrics(self) -> dict[str, Any]:
        """Torchmetrics by name. They are module attributes of the task, so that they move and synchronise."""
        return {}

    def baseline(self, data: Dataset) -> dict[str, float]:
        """The test metrics of the trivial predictor (mean, unigram, popularity), by the names of ``metrics()``."""
        return {}
