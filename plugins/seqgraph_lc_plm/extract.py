"""Embeds a FASTA file: a drop-in for fair-esm's ``esm-extract`` that resumes, spreads over GPUs and bounds memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph_lc_plm.background import Background
from seqgraph_lc_plm.base import ProteinLM, Semantics
from seqgraph_lc_plm.encoding import Batch, Encoding, Precision
from seqgraph_lc_plm.fasta import OnInvalid, Record
from seqgraph_lc_plm.folder import Done, Folder
from seqgraph_lc_plm.memory import halved
from seqgraph_lc_plm.ranks import Ranks
from seqgraph_lc_plm.survey import Cut, Source, Survey, survey
from seqgraph_lc_plm.writers import KEYS, LAYERED, RAGGED, SHARD, Format, Include, OneEach, Shard, check_format

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Batches in a part: what is sorted by length together, and what a kill may cost.
_BATCHES, _BATCHES_OF_SHARD = 16, 64
_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f]|^\.")
_LONGEST_NAME = 200  # bytes; file systems allow 255 with the suffix


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What to embed, and how to write it.

    Attributes:
        fasta: the file of proteins.
        layers: layers as in ESM: 0 the embedding, i after block i, -1 the last.
        include: "mean" over residues, "per_tok" (residues), "bos" (the <cls> token), "logits" (of the 33 tokens at each
            residue), "contacts" (categorical Jacobian).
        max_tokens: tokens in one forward pass; a longer protein is a pass by itself.
        truncate: residues that are kept of a protein, from its start; 0 keeps all.
        format: "pt": a dictionary with esm-extract's keys; "safetensors": the same, flat ("key.layer"); "npy": one
            array a file, "name.include.layer.npy"; "h5": as safetensors, only with ``shard_bytes``.
        dtype: of the numbers in the files: "float32", "float16" or "bfloat16".
        precision: of the computation: "fp32", or "bf16" matrix products.
        semantics: what layer i is; see :meth:`ProteinLM.represent`.
        shard_bytes: about the size of a file that holds many proteins; 0 for one file a protein.
        on_invalid: see :func:`read_fasta`.
        on_duplicate: "error" or "number".
        first_word: whether a protein is called by the first word of its header instead of all of it.
        nucleotides: whether a file of nothing but DNA or RNA is taken for proteins.
        contacts_max: residues of the longest protein whose contacts are computed.
    """

    fasta: Path
    layers: tuple[int, ...] = (-1,)
    include: tuple[Include, ...] = ("mean",)
    max_tokens: int = 16384
    truncate: int = 0
    format: Format = "pt"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    precision: Precision = "fp32"
    semantics: Semantics = "residual"
    shard_bytes: int = 0
    on_invalid: OnInvalid = "error"
    on_duplicate: Literal["error", "number"] = "error"
    first_word: bool = False
    nucleotides: bool = False
    contacts_max: int = 512

    def __post_init__(self) -> None:
        for kind in self.include:
            if kind not in KEYS:
                raise ConfigError(f"cannot include {kind!r}", f"choose among {', '.join(KEYS)}")
        if not self.include or not self.layers:
            raise ConfigError("nothing to write", f"name at least one layer and one of {', '.join(KEYS)}")
        if self.max_tokens < 1 or self.truncate < 0 or self.shard_bytes < 0:
            raise ConfigError("max_tokens must be at least 1, truncate and shard_bytes not negative")
        if self.dtype not in DTYPES:
            raise ConfigError(f"no dtype {self.dtype!r}", f"one of {', '.join(DTYPES)}")
        if "contacts" in self.include and self.shard_bytes:
            raise ConfigError("contacts are written one file a protein", "leave out --shard-bytes or contacts")
        check_format(self.format, DTYPES[self.dtype], bool(self.shard_bytes))

    @cached_property
    def source(self) -> Source:
        """The file and how it is read."""
        return Source(
            path=self.fasta,
            truncate=self.truncate,
            on_invalid=self.on_invalid,
            on_duplicate=self.on_duplicate,
            first_word=self.first_word,
            nucleotides=self.nucleotides,
            longest=self.contacts_max if "contacts" in self.include else None,
        )

    def cut(self, model: ProteinLM) -> Cut:
        """How the file is cut into parts for a model."""
        size = DTYPES[self.dtype].itemsize
        layers = len({layer % (model.n_layers + 1) for layer in self.layers})
        wide = dict.fromkeys(LAYERED, model.d_model * layers) | {"logits": len(model.alphabet), "contacts": 0}
        return Cut(
            tokens=self.max_tokens * (_BATCHES_OF_SHARD if self.shard_bytes else _BATCHES),
            bytes=self.shard_bytes,
            per_record=size * sum(wide[kind] for kind in self.include if kind not in RAGGED),
            per_residue=size * sum(wide[kind] for kind in self.include if kind in RAGGED),
        )

    @cached_property
    def survey(self) -> Survey:
        """The file read once as a whole: every error in it shows before anything is computed or written.

        Raises:
            DataError: for the first record that cannot be used.
        """
        return survey(self.source)

    def run(
        self,
        model: ProteinLM,
        out: Path,
        *,
        surveyed: Survey | None = None,
        ranks: Ranks | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: Callable[[int, int, bool], Any] = lambda records, residues, new: None,
        note: Callable[[str], Any] = lambda text: None,
    ) -> Survey:
        """Embed every protein into ``out``, with ``index.tsv`` (in the order of the input) and ``manifest.json``.

        A file appears under its name when it is whole, and a run that was killed goes on with ``resume`` at the last
        part that is whole: then files, index and manifest are, byte for byte, what an undisturbed run leaves.

        Memory holds one part's sequences, a few batches of results, and with ``shard_bytes`` one shard.

        Args:
            model: used in evaluation mode, on the device it is on.
            out: folder, made if it is not there.
            surveyed: what another rank found; by default :attr:`survey`.
            ranks: the processes that share the work.
            resume: go on with what an earlier run left.
            overwrite: begin anew where it left something.
            progress: called with the records and residues done since the last call, and whether they were computed now.
            note: called with what the user should know.

        Returns:
            What was embedded.

        Raises:
            DataError: when the FASTA file or the folder cannot be used, or memory does not suffice.
            ConfigError: for a layer that the model does not have.
        """
        ranks = ranks or Ranks()
        model.check_layers(self.layers)
        model.eval()
        encoding = Encoding(
            model=model,
            layers=tuple(dict.fromkeys(layer % (model.n_layers + 1) for layer in self.layers)),
            include=self.include,
            dtype=DTYPES[self.dtype],
            precision=self.precision,
            semantics=self.semantics,
            max_tokens=self.max_tokens,
            on_halved=lambda tokens: note(halved(tokens)),
        )
        found = surveyed or ranks.first(lambda: self.survey)
        columns = ("name", "residues", "label", "row") if self.shard_bytes else ("name", "residues", "label")
        folder = Folder(out, self._settings(encoding, found), columns)
        state = ranks.first(lambda: folder.open(resume=resume, overwrite=overwrite, shards=bool(self.shard_bytes)))
        if state == "complete":
            note(f"{out} is complete: nothing was left to do")
            return found
        with Background() as background:
            for part, records in enumerate(self.cut(model).split(self.source.named(found))):
                if part % ranks.world == ranks.rank:
                    self._part(part, records, encoding, folder, background, progress)
        ranks.wait()
        if ranks.rank == 0:
            folder.finish(
                len(self.cut(model).sizes(found.lengths)), {"records": found.records, "residues": found.residues}
            )
        ranks.wait()
        return found

    def _part(
        self,
        part: int,
        records: list[Record],
        encoding: Encoding,
        folder: Folder,
        background: Background,
        progress: Callable[[int, int, bool], Any],
    ) -> None:
        if done := folder.done(part):
            # The budget that memory allowed then decides what the next part's batches are.
            encoding.max_tokens = min(encoding.max_tokens, done.tokens)
            progress(len(records), sum(len(record.sequence) for record in records), False)
            return
        writer = (Shard if self.shard_bytes else OneEach)(folder, self.format, part)
        names = [file_name(record.label) for record in records]

        def write(batch: Batch) -> None:
            for i, result in zip(batch.places, batch.results, strict=True):
                writer.add(i, names[i], records[i].label, result)

        for batch in encoding.run(records):
            background.put(partial(write, batch))
            progress(len(batch.places), sum(len(records[i].sequence) for i in batch.places), True)
        rows = []
        for i, record in enumerate(records):
            start = SHARD.format(part) if self.shard_bytes else names[i]
            row = (start, str(len(record.sequence)), record.label.replace("\t", " "))
            rows.append("\t".join((*row, str(i)) if self.shard_bytes else row))
        finished = Done(encoding.max_tokens, tuple(rows))

        def close() -> None:
            writer.close()
            folder.commit(part, finished)

        background.put(close)

    def _settings(self, encoding: Encoding, found: Survey) -> dict[str, Any]:
        """All that the files depend on."""
        return {
            "fasta": self.fasta.name,
            "sequences": found.digest,
            "weights": fingerprint(encoding.model),
            "layers": list(encoding.layers),
            "include": list(self.include),
            "toks_per_batch": self.max_tokens,
            "truncation_seq_length": self.truncate,
            "format": self.format,
            "dtype": self.dtype,
            "precision": self.precision,
            "layer_semantics": self.semantics,
            "shard_bytes": self.shard_bytes,
            "on_invalid": self.on_invalid,
            "on_duplicate": self.on_duplicate,
            "id": "first-word" if self.first_word else "full-header",
        }


def fingerprint(model: ProteinLM, samples: int = 1024) -> str:
    """A hash of names, shapes and some numbers of every tensor of a model: other weights have another one."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            flat = value.detach().flatten()
            some = flat[:: max(1, len(flat) // samples)].double().cpu()
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


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
