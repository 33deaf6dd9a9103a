"""From proteins to what is asked of them, batch by batch, on whatever device the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import RESIDUE
from seqgraph_lc_plm.base import ProteinLM, Semantics, cut_batches
from seqgraph_lc_plm.contacts import jacobian_contacts
from seqgraph_lc_plm.fasta import Record, short
from seqgraph_lc_plm.memory import attempt
from seqgraph_lc_plm.writers import LAYERED, Include, Key

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Batch:
    """Results on their way from the device: copies that may be still under way.

    Attributes:
        places: where in their part the proteins stand.
        results: for each of them {(what, layer): tensor on the CPU}.
        ready: waits for the copies.
    """

    places: Sequence[int]
    results: list[dict[Key, Tensor]]
    ready: Callable[[], None]


@dataclass(kw_only=True)
class Encoding:
    """Computes what is asked for.

    Attributes:
        model: used on the device it is on.
        layers: from 0, without repetition.
        include: see :data:`seqgraph_lc_plm.writers.KEYS`.
        dtype: of the results.
        precision: of matrix products: "fp32", or "bf16" by autocast.
        max_tokens: tokens in one forward pass; halved whenever memory does not suffice.
        semantics: what layer i is; see :meth:`ProteinLM.represent`.
        on_halved: called with the new number.
    """

    model: ProteinLM
    layers: tuple[int, ...]
    include: tuple[Include, ...]
    dtype: torch.dtype
    precision: Precision
    max_tokens: int
    semantics: Semantics = "residual"
    on_halved: Callable[[int], Any] = lambda tokens: None

    def run(self, records: Sequence[Record]) -> Iterator[Batch]:
        """The results of some proteins, a batch at a time, longest first.

        A batch is handed out when the next one has been started, so that a GPU does not wait for what is done with it.

        Raises:
            DataError: when memory does not suffice for a protein by itself.
        """
        lengths = [len(record.sequence) + 2 for record in records]
        todo = cut_batches(lengths, self.max_tokens)[::-1]
        waiting: Batch | None = None
        while todo:
            places = todo.pop()
            batch = self._attempt([records[i] for i in places], places)
            if batch is None:
                left = sorted(i for group in [places, *todo] for i in group)
                self._halve(sum(lengths[i] for i in places), len(places), records[places[0]])
                todo = [[left[i] for i in group] for group in cut_batches([lengths[i] for i in left], self.max_tokens)]
                todo.reverse()
                continue
            if waiting is not None:
                waiting.ready()
                yield waiting
            waiting = batch
        if waiting is not None:
            waiting.ready()
            yield waiting

    def _attempt(self, records: Sequence[Record], places: Sequence[int]) -> Batch | None:
        """The batch, or None when memory does not suffice."""
        return attempt(lambda: self._start(records, places), self.model.device)

    def _halve(self, tokens: int, count: int, record: Record) -> None:
        if count == 1:
            raise DataError(
                f"memory on {self.model.device} does not suffice for record {record.number} ({short(record.label)}) of "
                f"{len(record.sequence):,} residues by itself",
                "go on with --resume and --nogpu or --precision bf16, or cut long proteins by --truncation_seq_length",
            )
        self.max_tokens //= 2
        while self.max_tokens >= tokens:  # else the same batch would be cut again
            self.max_tokens //= 2
        self.on_halved(self.max_tokens)

    def _start(self, records: Sequence[Record], places: Sequence[int]) -> Batch:
        device = self.model.device
        names = [record.label for record in records]
        stream = self.model.alphabet.encode([r.sequence for r in records], names=names, unknown="unk")
        lengths = stream.lengths - 2
        assert stream.role is not None
        rows = (stream.role == RESIDUE).nonzero()[:, 0]  # on the CPU: a mask there would wait for the device
        first = stream.cu_seqlens[:-1].long()
        moved = stream.to(device)
        on_device = [t.to(device, non_blocking=True) for t in (rows, first, lengths)]
        found: dict[Key, Tensor] = {}
        with torch.no_grad(), self.autocast():
            states = self._states(moved)
            logits = None
            if "logits" in self.include:
                logits = self.model(moved)[:, : len(self.model.alphabet)].float()
            contacts = []
            if "contacts" in self.include:
                contacts = [self._contacts(stream[i]) for i in range(len(records))]
        for kind in self.include:
            if kind == "logits" and logits is not None:
                found[kind, None] = logits[on_device[0]]
            elif kind != "contacts":
                for layer in self.layers:
                    found[kind, layer] = _reduce(kind, states[layer].values, *on_device)
        copies, ready = _to_cpu({key: value.to(self.dtype) for key, value in found.items()}, device)
        sizes = lengths.tolist()
        results: list[dict[Key, Tensor]] = [{} for _ in records]
        for (kind, of_layer), value in copies.items():
            ragged = kind in ("per_tok", "logits")
            for result, own in zip(results, value.split(sizes) if ragged else value.unbind(), strict=True):
                result[kind, of_layer] = own
        for result, square in zip(results, contacts):
            result["contacts", None] = square.cpu().to(self.dtype)
        return Batch(places, results, ready)

    def _contacts(self, stream: TokenStream) -> Tensor:
        """Contacts of one protein (L, L): many copies of it a pass, fewer where memory does not suffice."""
        while True:
            found = attempt(lambda: jacobian_contacts(self.model, stream, self.max_tokens), self.model.device)
            if found is not None:
                return found
            if self.max_tokens // 2 < stream.num_tokens:
                raise torch.OutOfMemoryError("contacts")  # one copy was too much
            self.max_tokens //= 2
            self.on_halved(self.max_tokens)

    def _states(self, stream: TokenStream) -> dict[int, TokenStream]:
        if not any(kind in self.include for kind in LAYERED):
            return {}
        return self.model.represent(stream, self.layers, semantics=self.semantics)

    def autocast(self) -> AbstractContextManager:
        """The context of the precision."""
        return torch.autocast(self.model.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def _reduce(kind: Include, values: Tensor, rows: Tensor, first: Tensor, lengths: Tensor) -> Tensor:
    """(T, D) -> (S, D), or (residues, D)."""
    if kind == "bos":
        return values[first]
    residues = values[rows]
    if kind == "per_tok":
        return residues
    # Unlike index_add, the same bits every time on a GPU; "unsafe" leaves out a check that would wait for it.
    return torch.segment_reduce(residues, "mean", lengths=lengths, axis=0, unsafe=True)


def _to_cpu(found: dict[Key, Tensor], device: torch.device) -> tuple[dict[Key, Tensor], Callable[[], None]]:
    if device.type != "cuda":
        return found, lambda: None
    copies = {}
    for key, value in found.items():
        copies[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return copies, done.synchronize
