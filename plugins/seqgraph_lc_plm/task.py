"""Masked language modelling of residues."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import RESIDUE, ProteinAlphabet
from seqgraph.train.task import Dataset, Task

MASK, SWAP = 0.8, 0.1  # BERT's and ESM-2's shares; the rest stays as it is


class LossByLength(Metric):
    """The mean of a loss over the predicted residues of proteins in each bin of length.

    Args:
        bounds: largest number of residues of each bin but the last, ascending.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, bounds: Sequence[int]) -> None:
        super().__init__()
        self.bounds = tuple(bounds)
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(len(self.bounds) + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, residues: Tensor) -> None:
        """Losses (K,) of predicted residues, and the number of residues of the protein of each (K,)."""
        bins = torch.bucketize(residues, torch.tensor(self.bounds, device=residues.device))
        self.sums.index_add_(0, bins, losses.double())
        self.counts += torch.bincount(bins, minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """{"loss_to_256": ..., "loss_over_4096": ...}; a bin without a protein is left out."""
        names = [f"loss_to_{bound}" for bound in self.bounds] + [f"loss_over_{self.bounds[-1]}"]
        means = self.sums / self.counts
        return {name: mean for name, mean in zip(names, means, strict=True) if not mean.isnan()}


class MaskedLM(Task):
    """Predict 15 % of the residues; specials are never chosen.

    In training 80 % of the chosen read as <mask>, 10 % as a random amino acid and 10 % as themselves, drawn from
    torch's global generator.

    In evaluation all of them read as <mask>: a model that is scored where it can see the letter guesses it half of
    the time and looks some 15 % better in perplexity than it is. Which ones are chosen depends on the sequence and
    ``eval_seed`` alone, not on batch size, order, epoch or model.

    Args:
        model: called as ``model(stream, where)`` with ids (T,) and a mask (T,) of K tokens; returns logits (K, V).
        mask_fraction: share of the residues that are predicted.
        eval_seed: decides which residues are masked in evaluation.
        length_bins: largest lengths of bins of proteins, ascending, whose losses are metrics of their own.

    Raises:
        ConfigError: for bins that do not ascend.
    """

    monitor = "loss"
    mode = "min"

    def __init__(
        self, model: nn.Module, *, mask_fraction: float = 0.15, eval_seed: int = 0, length_bins: Sequence[int] = ()
    ) -> None:
        super().__init__(model)
        if list(length_bins) != sorted({*length_bins}):
            raise ConfigError(f"length_bins {list(length_bins)} do not ascend", "for example [256,512,1024]")
        self.mask_fraction, self.eval_seed = mask_fraction, eval_seed
        self.alphabet = ProteinAlphabet()
        self.loss = MeanMetric()
        self.perplexity = Perplexity()
        self.accuracy = MulticlassAccuracy(num_classes=len(self.alphabet), average="micro")
        self.by_length = LossByLength(length_bins) if length_bins else None

    def training_step(self, batch: TokenStream) -> dict[str, Tensor]:
        """{"loss": nats a masked residue, "size": masked residues, "accuracy": share guessed right}."""
        where, inputs = self.training_mask(batch)
        logits, target = self.model(inputs, where), batch.values[where]
        size = len(target)
        loss = F.cross_entropy(logits.float(), target, reduction="sum") / max(size, 1)
        accuracy = (logits.argmax(-1) == target).float().sum() / max(size, 1)
        return {"loss": loss, "size": torch.tensor(size), "accuracy": accuracy.detach()}

    def evaluation_step(self, batch: TokenStream) -> dict[str, Tensor]:
        """Update the metrics; {"loss": nats a masked residue, "size": masked residues}."""
        where, inputs = self.evaluation_mask(batch)
        logits, target = self.model(inputs, where).float(), batch.values[where]
        size = len(target)
        if not size:
            return {}
        losses = F.cross_entropy(logits, target, reduction="none")
        loss = losses.mean()
        self.loss.update(loss, size)
        self.perplexity.update(logits[None], target[None])
        self.accuracy.update(logits[:, : len(self.alphabet)], target)
        if self.by_length is not None:
            residues = torch.bincount(batch.segment[batch.role == RESIDUE], minlength=batch.num_segments)
            self.by_length.update(losses, residues[batch.segment[where]])
        return {"loss": loss, "size": torch.tensor(size)}

    def flops(self, lengths: Sequence[int]) -> float | None:
        """Three times the forward pass, where the model counts it: the backward pass is two of them."""
        count = getattr(self.model, "flops", None)
        return None if count is None else 3 * count(lengths, self.mask_fraction)

    def training_mask(self, batch: TokenStream) -> tuple[Tensor, TokenStream]:
        """The residues that training predicts, (T,) bool, and the stream that the model reads."""
        chance, kind = torch.rand(2, batch.num_tokens, device=batch.device)
        where = self._choose(batch, chance)
        amino_acids = self.alphabet.residue_ids[:20].to(batch.device)
        other = amino_acids[torch.randint(20, (batch.num_tokens,), device=batch.device)]
        read = torch.where(kind < MASK, self.alphabet.mask_id, torch.where(kind < MASK + SWAP, other, batch.values))
        return where, batch.with_values(torch.where(where, read, batch.values))

    def evaluation_mask(self, batch: TokenStream) -> tuple[Tensor, TokenStream]:
        """The residues that evaluation predicts, (T,) bool, and the stream that the model reads."""
        draws = []
        for ids in batch.values.cpu().split(batch.lengths.tolist()):
            generator = torch.Generator().manual_seed(zlib.crc32(ids.numpy().tobytes(), self.eval_seed))
            draws.append(torch.rand(len(ids), generator=generator))
        where = self._choose(batch, torch.cat(draws).to(batch.device))
        return where, batch.with_values(batch.values.masked_fill(where, self.alphabet.mask_id))

    def metrics(self) -> dict[str, Metric]:
        """loss (nats a masked residue), perplexity (its exponential) and accuracy; the losses of bins of length."""
        found = {"loss": self.loss, "perplexity": self.perplexity, "accuracy": self.accuracy}
        return found if self.by_length is None else {**found, "by_length": self.by_length}

    def baseline(self, data: Dataset) -> dict[str, float]:
        """The training set's residue frequencies (add-one smoothed), on the residues masked in the test set."""
        counts = torch.ones(len(self.alphabet), dtype=torch.float64)
        counts[self.alphabet.special_ids] = 0
        with torch.random.fork_rng(devices=[]):  # crops must not move the training's generator
            for batch in _chunks(data, "train"):
                counts += torch.bincount(batch.values[batch.role == RESIDUE], minlength=len(counts))
        logs = (counts / counts.sum()).log()
        targets = torch.cat([b.values[self.evaluation_mask(b)[0]] for b in _chunks(data, "test")])
        loss = -float(logs[targets].mean())
        accuracy = float((targets == counts.argmax()).double().mean())
        return {"loss": loss, "perplexity": math.exp(loss), "accuracy": accuracy}

    def _choose(self, batch: TokenStream, draws: Tensor) -> Tensor:
        return (batch.role == RESIDUE) & (draws < self.mask_fraction)


def _chunks(data: Dataset, split: str, size: int = 256) -> Any:
    examples = data.split(split)  # type: ignore[arg-type]
    for start in range(0, len(examples), size):
        yield data.collate([examples[i] for i in range(start, min(start + size, len(examples)))])
