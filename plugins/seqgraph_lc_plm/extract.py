"""Embeds a FASTA file into one file a protein, as fair-esm's ``esm-extract`` does."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph_lc_plm.fasta import OnDuplicate, OnInvalid, Record, is_nucleotide, read_fasta
from seqgraph_lc_plm.model import LcPlm, cut_batches, residues_of

Include = Literal["mean", "per_tok", "bos"]
Format = Literal["pt", "safetensors", "npy"]
# what --include calls it -> the key in the dictionary of a .pt file
KEYS: dict[Include, str] = {
    "mean": "mean_representations",
    "per_tok": "representations",
    "bos": "bos_representations",
}
INDEX = "index.tsv"
_WINDOW = 64  # batches' worth of proteins that are sorted by length together
_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f]|^\.")
_LONGEST_NAME = 200  # bytes; file systems allow 255 with the suffix and the temporary name's


@dataclass(frozen=True)
class Survey:
    """What a FASTA file holds, and that every record can be embedded.

    Attributes:
        records: proteins that will be embedded.
        residues: their length together, after truncation.
        nucleotides: how many of them look like DNA or RNA.
    """

    records: int
    residues: int
    nucleotides: int


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What to embed, and how to write it.

    Attributes:
        fasta: the file of proteins.
        layers: layers as in ESM: 0 the embedding, i after block i, -1 the last.
        include: "mean" over residues, "per_tok" (residues), "bos" (the <cls> token).
        max_tokens: tokens in one forward pass; a longer protein is a pass by itself.
        truncate: residues that are kept of a protein, from its start; 0 keeps all.
        format: "pt": one dictionary with esm-extract's keys; "safetensors": the same, flat ("key.layer");
            "npy": one array a file, "name.include.layer.npy".
        on_invalid: see :func:`read_fasta`.
        on_duplicate: likewise.
        first_word: whether a protein is called by the first word of its header instead of all of it.
    """

    fasta: Path
    layers: tuple[int, ...] = (-1,)
    include: tuple[Include, ...] = ("mean",)
    max_tokens: int = 16384
    truncate: int = 0
    format: Format = "pt"
    on_invalid: OnInvalid = "error"
    on_duplicate: OnDuplicate = "error"
    first_word: bool = False

    def __post_init__(self) -> None:
        for kind in self.include:
            if kind not in KEYS:
                why = "a model without attention has no contact head; " if str(kind) == "contacts" else ""
                raise ConfigError(f"cannot include {kind!r}", f"{why}choose among {', '.join(KEYS)}")
        if self.format not in ("pt", "safetensors", "npy"):
            raise ConfigError(f"no format {self.format!r}", "one of pt, safetensors, npy")
        if not self.include or not self.layers:
            raise ConfigError("nothing to write", "name at least one layer and one of mean, per_tok, bos")
        if self.max_tokens < 1 or self.truncate < 0:
            raise ConfigError("max_tokens must be at least 1, and truncate not negative")

    def records(self) -> Iterator[Record]:
        """The proteins, truncated, one at a time."""
        reader = read_fasta(
            self.fasta, on_invalid=self.on_invalid, on_duplicate=self.on_duplicate, first_word=self.first_word
        )
        for record in reader:
            kept = record.sequence[: self.truncate] if self.truncate else record.sequence
            yield Record(record.label, kept, record.number)

    @cached_property
    def survey(self) -> Survey:
        """The file read once as a whole: every error in it shows before anything is computed or written.

        Raises:
            DataError: for the first record that cannot be used.
        """
        records = residues = nucleotides = 0
        for record in self.records():
            records, residues = records + 1, residues + len(record.sequence)
            nucleotides += is_nucleotide(record.sequence)
        if not records:
            raise DataError(f"{self.fasta}: no record is left to embed", "every one was skipped as invalid")
        return Survey(records, residues, nucleotides)

    def run(
        self, model: LcPlm, out: Path, progress: Callable[[int, int], Any] = lambda records, residues: None
    ) -> Survey:
        """Embed every protein into ``out``: one file each, and ``index.tsv`` (name, residues, label) in input order.

        A file appears under its name when it is whole. Memory holds one window of proteins and one batch.

        Args:
            model: used in evaluation mode, on the device it is on.
            out: folder, made if it is not there.
            progress: called with the records and residues done since the last call.

        Returns:
            What was embedded.

        Raises:
            DataError: when the FASTA file or the folder cannot be used.
            ConfigError: for a layer that the model does not have.
        """
        model.check_layers(self.layers)
        survey = self.survey
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out}: {error.strerror}", "give a folder to write into") from None
        with _staged(out / INDEX) as index:
            _append(index, out / INDEX, ["name\tresidues\tlabel\n"])
            for window in _windows(self.records(), self.max_tokens * _WINDOW):
                names = [file_name(record.label) for record in window]
                for batch in cut_batches([len(r.sequence) + 2 for r in window], self.max_tokens):
                    chosen = [window[i] for i in batch]
                    for i, result in zip(batch, self._embed(model, chosen), strict=True):
                        self._write(out, names[i], window[i].label, result)
                    progress(len(chosen), sum(len(r.sequence) for r in chosen))
                rows = [
                    f"{name}\t{len(record.sequence)}\t{record.label}\n"
                    for name, record in zip(names, window, strict=True)
                ]
                _append(index, out / INDEX, rows)
        return survey

    def _embed(self, model: LcPlm, records: list[Record]) -> list[dict[Include, dict[int, Tensor]]]:
        """For each record {include: {layer from 0: (D,) or (L, D) float32 on the CPU}}."""
        stream = model.alphabet.encode([r.sequence for r in records], names=[r.label for r in records], unknown="unk")
        results: list[dict[Include, dict[int, Tensor]]] = [{kind: {} for kind in self.include} for _ in records]
        for layer, states in model.represent(stream, self.layers).items():
            residues = residues_of(states)
            for kind in self.include:
                if kind == "per_tok":
                    values = residues.values.cpu().split(residues.lengths.tolist())
                else:
                    values = (residues.pool("mean") if kind == "mean" else states.pool("first")).cpu().unbind()
                for result, value in zip(results, values, strict=True):
                    # a copy: a slice would take the whole batch into the file
                    result[kind][layer % (model.n_layers + 1)] = value.clone()
        return results

    def _write(self, out: Path, name: str, label: str, result: dict[Include, dict[int, Tensor]]) -> None:
        if self.format == "npy":
            for kind, layers in result.items():
                for i, value in layers.items():
                    target = out / f"{name}.{kind}.{i}.npy"
                    with _reported(target), _staged(target) as path, path.open("wb") as file:
                        np.save(file, value.numpy())
            return
        target = out / f"{name}.{self.format}"
        with _reported(target), _staged(target) as path:
            if self.format == "pt":
                content = {"label": label} | {KEYS[kind]: layers for kind, layers in result.items()}
                with path.open("wb") as file:  # given a path, torch writes the temporary name into the file
                    torch.save(content, file)
            else:
                flat = {f"{KEYS[kind]}.{i}": value for kind, layers in result.items() for i, value in layers.items()}
                path.touch()
                mode = path.stat().st_mode
                save_file(flat, path, metadata={"label": label})
                path.chmod(mode)  # safetensors keeps its files to the owner


def file_name(label: str) -> str:
    """A file name, without suffix, for a header.

    A header that is a safe name of at most 200 bytes is kept as it is, blanks and "|" included, as esm-extract does.
    In any other, characters that a file system would not take become "_", the name is cut, and a hash of the whole
    header is put behind it, so that different headers never share a file.
    """
    safe = _UNSAFE.sub("_", label)
    cut = safe.encode()[:_LONGEST_NAME].decode(errors="ignore")
    if cut == label:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:12]
    return f"{safe.encode()[: _LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"


def _windows(records: Iterator[Record], tokens: int) -> Iterator[list[Record]]:
    """Consecutive records in lists of about so many tokens."""
    window: list[Record] = []
    used = 0
    for record in records:
        window.append(record)
        used += len(record.sequence) + 2
        if used >= tokens:
            yield window
            window, used = [], 0
    if window:
        yield window


def _append(path: Path, target: Path, rows: list[str]) -> None:
    with _reported(target), path.open("a", encoding="utf-8") as lines:
        lines.writelines(rows)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A temporary path beside the target, renamed to it at the end, or removed on an error."""
    temporary = target.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _reported(target: Path) -> Iterator[None]:
    """Turn what can go wrong in writing, a full disk above all, into one clear error."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        # torch hides the cause behind words about its own file format.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise DataError(f"cannot write {target}: {reason}", _SPACE) from error


_SPACE = "free some space or choose another folder; the files that are there are whole"
