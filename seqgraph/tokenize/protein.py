"""Proteins as token streams: ESM-2's alphabet, and one token a residue."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream

RESIDUE, SPECIAL, EDGE = 0, 1, 2
"""Roles of protein tokens: an amino acid (or a mask in its place), <cls> and <eos>, a link between proteins."""

Unknown = Literal["error", "unk"]

# ESM-2's tokens, id by id: the order of fair-esm's Alphabet.from_architecture("ESM-1b").
_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
_LINKS = ("<edge>", "<no_edge>")
_INVALID = -1
# A byte that no text has stands for <mask>, so that every residue is one byte.
_MASK_BYTE = "\x01"


class ProteinAlphabet:
    """ESM-2's 33 tokens; with ``links``, two more for interaction graphs, ids 33 and 34.

    Letters may be lower case. A ``*`` at the end of a sequence (a stop codon) is dropped, white space around it too.
    ``X B U Z O . -`` are tokens of their own; ``<mask>`` may stand in a sequence in place of a residue.

    Args:
        links: add ``<edge>`` and ``<no_edge>``, the EDGE and NO_EDGE of LC-PLM-G (arXiv 2411.08909).

    Attributes:
        tokens: every token's text, by id.
        cls_id, pad_id, eos_id, unk_id, mask_id: ids of the special tokens.
        edge_id, no_edge_id: 33 and 34, in the alphabet only with ``links``.
        residue_ids: ids that stand for residues, (27,) int64: the 20 amino acids first, then X B U Z O . -
        special_ids: ids of all others, a list.
    """

    cls_id, pad_id, eos_id, unk_id, mask_id, edge_id, no_edge_id = 0, 1, 2, 3, 32, 33, 34

    def __init__(self, *, links: bool = False) -> None:
        self.tokens: tuple[str, ...] = _TOKENS + (_LINKS if links else ())
        # A table, whatever torch's default device is (a model may be made on "meta").
        self.residue_ids: Tensor = torch.tensor([i for i, t in enumerate(self.tokens) if len(t) == 1], device="cpu")
        self.special_ids: list[int] = [i for i, t in enumerate(self.tokens) if len(t) > 1]
        self._id_of_byte = np.full(256, _INVALID, np.int64)
        self._byte_of_id = np.zeros(len(self.tokens), np.uint8)
        for index in self.residue_ids.tolist():
            letter = self.tokens[index]
            self._id_of_byte[[ord(letter), ord(letter.lower())]] = index
            self._byte_of_id[index] = ord(letter)
        self._id_of_byte[ord(_MASK_BYTE)] = self.mask_id

    def __len__(self) -> int:
        return len(self.tokens)

    def to_id(self, token: str) -> int:
        """Id of a token's text.

        Raises:
            DataError: when it is not in the alphabet.
        """
        if token not in self.tokens:
            raise DataError(f"no token {token!r} in the alphabet", "letters are upper case here")
        return self.tokens.index(token)

    def encode(
        self,
        sequences: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        unknown: Unknown = "error",
        cls: bool = True,
        eos: bool = True,
    ) -> TokenStream:
        """Turn sequences into token ids, one segment each.

        Args:
            sequences: S texts.
            names: what to call them in an error, (S,); otherwise they are counted from 1.
            unknown: a letter that is no residue (``J``, a digit, a ``*`` inside) is an "error" or becomes "unk".
            cls: begin each segment with <cls>.
            eos: end each segment with <eos>.

        Returns:
            ``values`` ids (T,) int64; ``source`` the index of the sequence that each token belongs to; ``role``
            RESIDUE or SPECIAL.

        Raises:
            DataError: for an empty sequence or an unknown letter, naming the record and the position (from 1).
            ConfigError: for another ``unknown``.
        """
        if unknown not in ("error", "unk"):
            raise ConfigError(f"unknown={unknown!r}", "choose error or unk")
        if isinstance(sequences, str):
            raise DataError("a single text instead of a list of sequences", "write [sequence]")
        sequences = [_tidy(s) if isinstance(s, str) else self._refuse(names, i) for i, s in enumerate(sequences)]
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        if not lengths.all():
            raise DataError(f"{_name(names, int(lengths.argmin()))} is empty", "remove the record")
        # One byte a letter: what Latin-1 lacks becomes "?", which is no residue.
        letters = np.frombuffer("".join(sequences).encode("latin-1", "replace"), np.uint8)
        ids = self._id_of_byte[letters]
        wrong = ids == _INVALID
        if wrong.any():
            if unknown == "error":
                self._complain(sequences, names, lengths, int(wrong.argmax()))
            ids = np.where(wrong, self.unk_id, ids)
        return self._frame(ids, lengths, int(cls), int(eos))

    def _frame(self, ids: np.ndarray, lengths: np.ndarray, cls: int, eos: int) -> TokenStream:
        owner = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(ids)) + owner * (cls + eos) + cls
        whole = lengths + cls + eos
        ends = whole.cumsum()
        values = np.empty(len(ids) + len(lengths) * (cls + eos), np.int64)
        role = np.full(len(values), SPECIAL, np.int8)
        values[place], role[place] = ids, RESIDUE
        if cls:
            values[ends - whole] = self.cls_id
        if eos:
            values[ends - 1] = self.eos_id
        source = np.repeat(np.arange(len(lengths)), whole)
        return TokenStream.from_lengths(
            torch.from_numpy(values),
            torch.from_numpy(whole),
            source=torch.from_numpy(source),
            role=torch.from_numpy(role),
        )

    @staticmethod
    def _refuse(names: Sequence[str] | None, index: int) -> str:
        raise DataError(f"{_name(names, index)} is not text")

    @staticmethod
    def _complain(sequences: list[str], names: Sequence[str] | None, lengths: np.ndarray, at: int) -> None:
        record = int(np.searchsorted(lengths.cumsum(), at, side="right"))
        place = at - int(lengths[:record].sum())
        raise DataError(
            f"{_name(names, record)} has {sequences[record][place]!r} at position {place + 1}, which is no residue",
            "correct the sequence, or write X for what is not known",
        )

    def decode(self, tokens: TokenStream | Tensor, *, special: bool = False) -> list[str]:
        """Ids back to text.

        Args:
            tokens: a stream of ids, or one sequence of them, (L,).
            special: also write <cls>, <eos>, <pad> and the links; <mask> and <unk> are written always.

        Returns:
            One text a segment.

        Raises:
            DataError: for an id outside the alphabet.
        """
        stream = tokens if isinstance(tokens, TokenStream) else TokenStream.from_ragged([tokens])
        ids, borders = stream.values.cpu().numpy(), stream.cu_seqlens.tolist()
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            bad = ids[(ids < 0) | (ids >= len(self))][0]
            raise DataError(f"id {bad} is outside the alphabet of {len(self)} tokens")
        hidden = () if special else {*self.special_ids} - {self.mask_id, self.unk_id}
        texts = []
        for start, end in pairwise(borders):
            part = ids[start:end]
            plain = self._byte_of_id[part]
            if plain.all():
                texts.append(plain.tobytes().decode())
            else:
                texts.append("".join(self.tokens[i] for i in part.tolist() if i not in hidden))
        return texts


def residues(
    data: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    unknown: Unknown = "error",
    cls: bool = True,
    eos: bool = True,
) -> TokenStream:
    """One token a residue in ESM-2's alphabet: the tokenizer "residues". See :meth:`ProteinAlphabet.encode`.

    Args:
        data: protein sequences.
        names: what to call them in an error.
        unknown: "error" or "unk".
        cls: begin each segment with <cls>.
        eos: end each segment with <eos>.

    Returns:
        One segment a protein; ``source`` is the index of the protein.

    Raises:
        DataError: naming the record that cannot be read.
    """
    return ProteinAlphabet().encode(data, names=names, unknown=unknown, cls=cls, eos=eos)


def _tidy(sequence: str) -> str:
    sequence = sequence.strip().removesuffix("*")
    if "<" in sequence or _MASK_BYTE in sequence:
        return sequence.replace(_MASK_BYTE, "?").replace("<mask>", _MASK_BYTE)
    return sequence


def _name(names: Sequence[str] | None, index: int) -> str:
    return f"sequence {index + 1}" if names is None else f"sequence {names[index]!r}"
