"""Masked language modelling of residues in contexts of several proteins: LC-PLM-G's second stage."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import EDGE, ProteinAlphabet
from seqgraph.train.task import Dataset
from seqgraph_lc_plm.task import MaskedLM

LINKED = ProteinAlphabet.no_edge_id + 1
"""Rows that an embedding must have at least: ESM-2's 33 tokens, <edge> and <no_edge>."""


class InteractionLM(MaskedLM):
    """Predict 15 % of the residues of every protein of a context; links and specials are never chosen.

    In evaluation residues of the first, held-out protein alone are predicted: in its context ("loss"), and once more
    by itself ("loss_alone"). Both mask the same residues, so their difference is what the neighbours tell.

    Weights to start from (``train.weights``) may lack the rows of the links: these begin as the row of <eos>, which
    also stands between proteins and is never predicted.

    Args:
        model: as for :class:`MaskedLM`, with a ``vocab_size`` of at least 35.
        mask_fraction: share of the residues that are predicted.
        eval_seed: decides which residues are masked in evaluation.
    """

    def __init__(self, model: nn.Module, *, mask_fraction: float = 0.15, eval_seed: int = 0) -> None:
        super().__init__(model, mask_fraction=mask_fraction, eval_seed=eval_seed)
        self.alone = MeanMetric()

    def setup(self, data: Dataset) -> None:
        """See that the model has rows for the links.

        Raises:
            ConfigError: when it has not.
        """
        rows = getattr(self.model, "vocab_size", 33)
        if rows < LINKED:
            raise ConfigError(
                f"the model has {rows} tokens; <edge> and <no_edge> make {LINKED}",
                f"model.vocab_size={LINKED} or more, with a model that has it (lc-plm)",
            )

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the rows that the links need to embedding and head."""
        own = self.model.state_dict()
        return {
            name: _grown(value, own[name]) if name in own and _of_tokens(name) else value
            for name, value in state.items()
        }

    def evaluation_step(self, batch: TokenStream) -> dict[str, Tensor]:
        """Update the metrics; {"loss": nats a masked residue in context, "size": masked residues}."""
        found = super().evaluation_step(batch)
        alone = first_proteins(batch)
        where, inputs = super().evaluation_mask(alone)
        if found:
            logits = self.model(inputs, where).float()
            self.alone.update(F.cross_entropy(logits, alone.values[where]), found["size"])
        return found

    def evaluation_mask(self, batch: TokenStream) -> tuple[Tensor, TokenStream]:
        """Residues of each context's first protein, chosen as if it stood alone, and the stream that is read."""
        chosen, _ = super().evaluation_mask(first_proteins(batch))
        where = torch.zeros(batch.num_tokens, dtype=torch.bool, device=batch.device)
        where[_first(batch)] = chosen
        return where, batch.with_values(batch.values.masked_fill(where, self.alphabet.mask_id))

    def metrics(self) -> dict[str, Metric]:
        """Those of :class:`MaskedLM`, in context, and "loss_alone"."""
        return {**super().metrics(), "loss_alone": self.alone}

    def baseline(self, data: Any) -> dict[str, float]:
        """The training proteins' residue frequencies (add-one smoothed), on the residues masked in the test set."""
        counts = torch.ones(len(self.alphabet), dtype=torch.float64)
        counts[self.alphabet.special_ids] = 0
        for place in data.members["train"].tolist():
            ids = self.alphabet.encode([data.graph.sequences[place]], unknown="unk", cls=False, eos=False).values
            counts += torch.bincount(ids, minlength=len(counts))
        counts[self.alphabet.special_ids] = 0
        logs = (counts / counts.sum()).log()
        parts = []
        for context in data.split("test"):
            stream = data.collate([context])
            parts.append(stream.values[self.evaluation_mask(stream)[0]])
        targets = torch.cat(parts)
        loss = -float(logs[targets].mean())
        accuracy = float((targets == counts.argmax()).double().mean())
        return {"loss": loss, "perplexity": math.exp(loss), "accuracy": accuracy, "loss_alone": loss}


def first_proteins(contexts: TokenStream) -> TokenStream:
    """The first protein of each context by itself."""
    first = _first(contexts)
    lengths = torch.bincount(contexts.segment[first], minlength=contexts.num_segments)
    assert contexts.role is not None
    return TokenStream.from_lengths(
        contexts.values[first], lengths, source=contexts.source[first], role=contexts.role[first]
    )


def _first(contexts: TokenStream) -> Tensor:
    """Which tokens are of the first protein of their context, (T,) bool; ``source`` tells the proteins apart."""
    assert contexts.role is not None
    own = contexts.source[contexts.cu_seqlens[:-1].long()][contexts.segment]
    return (contexts.source == own) & (contexts.role != EDGE)


def _of_tokens(name: str) -> bool:
    return name.endswith(("embedding.weight", "lm_head.weight"))


def _grown(value: Tensor, own: Tensor) -> Tensor:
    missing = max(0, own.shape[0] - value.shape[0])
    return torch.cat([value, value[ProteinAlphabet.eos_id].expand(missing, -1)])
