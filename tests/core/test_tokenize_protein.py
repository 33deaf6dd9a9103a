"""The protein alphabet against fair-esm's, and what it does with records that are not clean."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError
from seqgraph.tokenize.protein import RESIDUE, SPECIAL, ProteinAlphabet, residues

LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO.-"


def test_alphabet_is_esm2s_id_by_id():
    esm = pytest.importorskip("esm")
    theirs = esm.Alphabet.from_architecture("ESM-1b")
    ours = ProteinAlphabet()
    assert list(ours.tokens) == theirs.all_toks
    assert len(ours) == 33
    ids = (ours.cls_id, ours.pad_id, ours.eos_id, ours.unk_id, ours.mask_id)
    assert ids == (theirs.cls_idx, theirs.padding_idx, theirs.eos_idx, theirs.unk_idx, theirs.mask_idx)
    assert all(ours.to_id(t) == theirs.get_idx(t) for t in theirs.all_toks)
    sequences = ["MKTAYIAKQRQISFVKSHFSRQ", "W", LETTERS, "AC<mask>D"]
    _, _, dense = theirs.get_batch_converter()([(str(i), s) for i, s in enumerate(sequences)])
    stream = ours.encode(sequences).validate()
    for row, segment in zip(dense, stream.unbind(), strict=True):
        assert row[row != theirs.padding_idx].tolist() == segment.values.tolist()


@settings(max_examples=50, deadline=None)
@given(
    sequences=st.lists(st.text(LETTERS + LETTERS.lower(), min_size=1, max_size=30), max_size=6),
    cls=st.booleans(),
    eos=st.booleans(),
)
def test_encode_against_a_loop(sequences, cls, eos):
    alphabet = ProteinAlphabet()
    stream = alphabet.encode(sequences, cls=cls, eos=eos).validate()
    values, source, role = [], [], []
    for number, sequence in enumerate(sequences):
        middle = [alphabet.tokens.index(letter.upper()) for letter in sequence]
        values += [0] * cls + middle + [2] * eos
        role += [SPECIAL] * cls + [RESIDUE] * len(middle) + [SPECIAL] * eos
        source += [number] * (len(middle) + cls + eos)
    assert stream.values.tolist() == values
    assert stream.source.tolist() == source
    assert stream.role.tolist() == role
    assert stream.lengths.tolist() == [len(s) + cls + eos for s in sequences]
    assert alphabet.decode(stream) == [s.upper() for s in sequences]


def test_stop_codons_masks_and_unknown_letters():
    alphabet = ProteinAlphabet()
    assert torch.equal(alphabet.encode(["MKV*", " MKV\n"]).values, alphabet.encode(["MKV", "mkv"]).values)
    masked = alphabet.encode(["M<mask>V"])
    assert masked.values.tolist() == [0, 20, 32, 7, 2]
    assert masked.role.tolist() == [SPECIAL, RESIDUE, RESIDUE, RESIDUE, SPECIAL]
    assert alphabet.decode(masked) == ["M<mask>V"]
    assert alphabet.decode(masked, special=True) == ["<cls>M<mask>V<eos>"]
    odd = "MJ*1\x01é日V"
    assert alphabet.encode([odd], unknown="unk").values.tolist() == [0, 20, 3, 3, 3, 3, 3, 3, 7, 2]
    assert alphabet.decode(torch.tensor([20, 3, 7])) == ["M<unk>V"]


@pytest.mark.parametrize(
    ("sequences", "names", "message"),
    [
        (["MKV", "MJV"], None, "sequence 2 has 'J' at position 2"),
        (["MKV", "MKVB*V"], ["a", "P1"], "sequence 'P1' has '*' at position 5"),
        (["MKV", "", "M"], None, "sequence 2 is empty"),
        (["*"], ["P1"], "sequence 'P1' is empty"),
        (["M<cls>V"], None, "'<' at position 2"),
        (["MV", "M日V"], None, "sequence 2 has '日' at position 2"),
        (["MKV", None], None, "sequence 2 is not text"),
        ("MKV", None, "a single text"),
    ],
)
def test_a_bad_record_is_named(sequences, names, message):
    with pytest.raises(DataError, match=re.escape(message)):
        ProteinAlphabet().encode(sequences, names=names)


def test_other_errors_and_edges():
    alphabet = ProteinAlphabet(links=True)
    assert len(alphabet) == 35
    assert alphabet.tokens[33:] == ("<edge>", "<no_edge>")
    assert alphabet.residue_ids.tolist() == list(range(4, 31))
    assert sorted(alphabet.residue_ids.tolist() + alphabet.special_ids) == list(range(35))
    assert alphabet.encode([]).validate().num_segments == 0
    with pytest.raises(DataError, match="id 33"):
        ProteinAlphabet().decode(torch.tensor([5, 33]))
    with pytest.raises(DataError, match="no token 'l'"):
        alphabet.to_id("l")
    with pytest.raises(ConfigError, match="unknown"):
        alphabet.encode(["M"], unknown="skip")
    assert residues(["MK"]).equal(alphabet.encode(["MK"]))
