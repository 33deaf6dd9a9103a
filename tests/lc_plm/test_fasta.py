"""The FASTA reader: what it reads, and how it refuses."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest

from seqgraph.errors import DataError
from seqgraph_lc_plm.fasta import is_nucleotide, read_fasta, refuse_nucleotides


@pytest.fixture
def fasta(tmp_path):
    def write(text, name="in.fasta"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def _pairs(path, **options):
    return [(r.label, r.sequence) for r in read_fasta(path, **options)]


def test_records_over_several_lines(fasta):
    path = fasta("\n>a first\nMKT\nAY\n\n>b|2\r\nG G\tG\r\n>c\nXBUZO.-")
    assert _pairs(path) == [("a first", "MKTAY"), ("b|2", "GGG"), ("c", "XBUZO.-")]
    assert [r.number for r in read_fasta(path)] == [1, 2, 3]
    assert _pairs(path, first_word=True)[0] == ("a", "MKTAY")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_by_content_not_by_name(fasta, pack):
    assert _pairs(fasta(pack(b">a\nMKT\n"), "proteins.txt")) == [("a", "MKT")]


def test_documented_repairs(fasta):
    """Lower case, a stop at the end, a byte order mark, and a header that is not UTF-8 are no errors."""
    assert _pairs(fasta(b"\xef\xbb\xbf>a \xe9\nmkT*\n")) == [("a \ufffd", "MKT")]


def test_a_record_without_a_name_is_called_as_in_fair_esm(fasta):
    esm = pytest.importorskip("esm", reason="fair-esm is not installed")
    path = fasta(">a\nMKT\n>\nGG\n")
    expected = esm.FastaBatchedDataset.from_file(path)
    assert [label for label, _ in _pairs(path)] == list(expected.sequence_labels)
    assert [sequence for _, sequence in _pairs(path)] == list(expected.sequence_strs)


@pytest.mark.parametrize(
    "text, says",
    [
        (">a\nMKT\n>b x\nMK*T\n", r"in\.fasta: record 2 \(b x, line 3\): letter '\*' at position 3"),
        (">a\nMJT\n", r"record 1 \(a, line 1\): letter 'J' at position 2"),
        (">a\nMKT\n>b\n>c\nMKT\n", r"record 2 \(b, line 3\): the sequence is empty"),
        (">a\n*\n", r"record 1 \(a, line 1\): the sequence is empty"),
        (">a\nMKT\n>b\nGG\n>a\nAA\n", r"record 3 has the same name as record 1: a"),
        ("", r"in\.fasta: the file is empty"),
        ("\n \n", r"in\.fasta: the file is empty"),
        ("MKT\n>a\nMKT\n", r"in\.fasta: line 1 is not FASTA: 'MKT'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", r"in\.fasta: line 1 is not FASTA"),
        (gzip.compress(b">a\n" + b"MKT\n" * 99, mtime=0)[:-9], r"in\.fasta: the compressed file is broken"),
        (lzma.compress(b">a\n" + b"MKT\n" * 99)[:-9], r"in\.fasta: the compressed file is broken"),
    ],
)
def test_refusals_name_file_and_record(fasta, text, says):
    with pytest.raises(DataError, match=says) as caught:
        list(read_fasta(fasta(text)))
    assert caught.value.hint


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.fasta: no such file"):
        list(read_fasta(tmp_path / "none.fasta"))
    with pytest.raises(DataError, match="directory"):
        list(read_fasta(tmp_path))


def test_skip_leaves_out_and_unk_keeps(fasta):
    path = fasta(">a\nMJT\n>b\n\n>c\nGG\n")
    assert _pairs(path, on_invalid="skip") == [("c", "GG")]
    with pytest.raises(DataError, match=r"record 2 \(b, line 3\): the sequence is empty"):
        _pairs(path, on_invalid="unk")
    assert _pairs(fasta(">a\nMJT\n"), on_invalid="unk") == [("a", "MJT")]


def test_numbered_duplicates_never_meet(fasta):
    path = fasta(">a\nM\n>a_2\nG\n>a\nA\n>a\nK\n")
    assert _pairs(path, on_duplicate="number") == [("a", "M"), ("a_2", "G"), ("a_3", "A"), ("a_4", "K")]


def test_dna_is_recognised():
    assert is_nucleotide("ACGTN" * 10) and is_nucleotide("ACGT") and not is_nucleotide("ACGTL" * 10)
    assert is_nucleotide("ACGT" * 10 + "RYS") and not is_nucleotide("ACGT" + "RYS")


@pytest.mark.parametrize(
    "sequences, says",
    [
        (["ATGGCAAAAGAAGACAATATTGAAATGCAAGG"], "all 1 records"),  # shorter than most genes
        (["ACGT" * 20, "ATG", "GGCA" * 8], "all 3 records"),
        (["ACGU" * 20, "ACGU" * 20 + "RYN"], "all 2 records"),  # RNA with ambiguous bases
        (["ACGT" * 100, "MKTAYIAKQR"], "1 of 2 records"),
        (["ACGT" * 20, "MKTAYIAKQR" * 2], None),  # a gene among proteins
        (["ACGT"], None),
        (["GA" * 40], None),  # two kinds of letters: as low in complexity as some proteins are
        (["MKTAYIAKQR"], None),
        ([], None),
    ],
)
def test_a_file_of_dna_is_told_from_proteins(sequences, says):
    if says is None:
        refuse_nucleotides(sequences, "x.fasta")
        return
    with pytest.raises(DataError, match=rf"x\.fasta looks like DNA or RNA: {says}") as error:
        refuse_nucleotides(sequences, "x.fasta")
    assert "translate it" in error.value.hint


def test_one_huge_line_is_read_in_pieces(fasta):
    """A sequence on one line, longer than what is read at a time, with blanks at the pieces' borders."""
    sequence = "MKTAY" * 30_000
    broken = " ".join(sequence[i : i + 65_535] for i in range(0, len(sequence), 65_535))
    assert _pairs(fasta(f">a\n{broken}\n>b\nGG\n")) == [("a", sequence), ("b", "GG")]


def test_what_no_protein_is(fasta, monkeypatch):
    monkeypatch.setattr("seqgraph_lc_plm.fasta.LONGEST", 1000)
    path = fasta(f">a\nGG\n>chromosome\n{'ACGT' * 100_000}\n")
    with pytest.raises(DataError, match=r"record 2 \(chromosome, line 3\): more than 1,000 letters"):
        list(read_fasta(path))
    with pytest.raises(DataError, match="more than 1,000 letters"):
        list(read_fasta(path, on_invalid="unk"))
    assert _pairs(path, on_invalid="skip") == [("a", "GG")]
    with pytest.raises(DataError, match=r"line 1: the header is longer than 65536 letters"):
        list(read_fasta(fasta(">" + "x" * 100_000 + "\nGG\n")))
    with pytest.raises(DataError, match=r"line 1 is not FASTA"):
        list(read_fasta(fasta(b"\x00" * 1_000_000)))


def test_headers_are_kept_as_they_are_when_told(fasta):
    assert _pairs(fasta(">a\nM\n>a\nG\n"), on_duplicate="keep") == [("a", "M"), ("a", "G")]
