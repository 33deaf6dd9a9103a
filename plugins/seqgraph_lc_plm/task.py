"""Masked language modelling of residues."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import RESIDUE, ProteinAlphabet
from seqgraph.train.task import Dataset, Task

MASK, SWAP = 0.8, 0.1  # BERT's and ESM-2's shares; the rest stays as it is


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
    """

    monitor = "loss"
    mode = "min"

    def __init__(self, model: nn.Module, *, mask_fraction: float = 0.15, eval_seed: int = 0) -> None:
        super().__init__(model)
        self.mask_fraction, self.eval_seed = mask_fraction, eval_seed
        self.alphabet = ProteinAlphabet()
        self.loss = MeanMetric()
        self.perplexity = Perplexity()
        self.accuracy = MulticlassAccuracy(num_classes=len(self.alphabet), average="micro")

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
        return self._score(logits, target)

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
        """loss (nats a masked residue), perplexity (its exponential) and accuracy."""
        return {"loss": self.loss, "perplexity": self.perplexity, "accuracy": self.accuracy}

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

    def _score(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        size = len(target)
        if not size:
            return {}
        loss = F.cross_entropy(logits, target)
        self.loss.update(loss, size)
        self.perplexity.update(logits[None], target[None])
        self.accuracy.update(logits[:, : len(self.alphabet)], target)
        return {"loss": loss, "size": torch.tensor(size)}


def _chunks(data: Dataset, split: str, size: int = 256) -> Any:
    examples = data.split(split)  # type: ignore[arg-type]
    for start in range(0, len(examples), size):
        yield data.collate([examples[i] for i in range(start, min(start + size, len(examples)))])
