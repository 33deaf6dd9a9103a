"""The first reading of a FASTA file: names that are all different, parts, and millions of records in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from seqgraph.errors import DataError
from seqgraph_lc_plm.survey import Cut, Source, survey


@pytest.fixture
def fasta(tmp_path):
    def write(text):
        path = tmp_path / "in.fasta"
        path.write_text(text)
        return path

    return write


def test_counts_and_parts(fasta):
    path = fasta("".join(f">p{i}\n{'M' * n}\n" for i, n in enumerate((3, 8, 2, 2, 20, 1))))
    source = Source(path=path)
    found = survey(source)
    assert (found.records, found.residues, found.lengths.tolist()) == (6, 36, [3, 8, 2, 2, 20, 1])
    cut = Cut(tokens=15)
    parts = [[r.label for r in part] for part in cut.split(source.named(found))]
    assert parts == [["p0", "p1"], ["p2", "p3", "p4"], ["p5"]]
    assert cut.sizes(found.lengths) == [(2, 11), (3, 24), (1, 1)]
    sized = Cut(tokens=10**6, bytes=100, per_record=40, per_residue=1)
    assert [len(part) for part in sized.split(source.named(found))] == [3, 2, 1]
    assert sized.sizes(found.lengths) == [(3, 13), (2, 22), (1, 1)]


@pytest.mark.parametrize("lengths", [(), (5,), (5, 5)])
def test_parts_that_end_with_the_file(lengths):
    assert sum(n for n, _ in Cut(tokens=7).sizes(np.array(lengths, np.uint32))) == len(lengths)


def test_names_are_made_different_past_those_of_the_file(fasta):
    """A later a_2 of the file keeps its name: the repeated a goes round it."""
    path = fasta(">a\nM\n>a\nM\n>a_2\nM\n>b\nM\n>a\nM\n>a_2\nM\n")
    source = Source(path=path, on_duplicate="number")
    names = [r.label for r in source.named(survey(source))]
    assert names == ["a", "a_3", "a_2", "b", "a_4", "a_2_2"]
    with pytest.raises(DataError, match="record 2 has the same name as record 1: a"):
        survey(Source(path=path))


def test_two_names_of_one_hash_are_two_names(fasta, monkeypatch):
    monkeypatch.setattr("seqgraph_lc_plm.survey._hash", lambda label: len(label))
    source = Source(path=fasta(">a\nM\n>b\nG\n>cc\nG\n"))
    found = survey(source)
    assert [r.label for r in source.named(found)] == ["a", "b", "cc"]


def test_another_sequence_or_name_is_another_digest(fasta):
    digests = {
        survey(Source(path=fasta(text))).digest for text in (">a\nMG\n", ">a\nGM\n", ">b\nMG\n", ">a\nM\n>G\nG\n")
    }
    assert len(digests) == 4
    assert survey(Source(path=fasta(">a\nmg*\n"))).digest == survey(Source(path=fasta(">a\nM\nG\n"))).digest


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a pipe, and the file is read twice"):
        survey(Source(path=tmp_path / "pipe"))


_MANY = """
import resource, sys
from pathlib import Path
from seqgraph_lc_plm.survey import Source, survey
source = Source(path=Path(sys.argv[1]))
next(source.records())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = survey(source)
print(found.records, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_many_records_take_twelve_bytes_each(tmp_path):
    count = 200_000
    path = tmp_path / "many.fasta"
    with path.open("w") as lines:
        lines.writelines(
            f">sp|P{i:07d}|A_NAME_OF_SOME_LENGTH and what it does\nMKTAYIAKQRQISFVKSHFSRQ\n" for i in range(count)
        )
    done = subprocess.run([sys.executable, "-c", _MANY, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records, grown = map(int, done.stdout.split())
    assert records == count and grown < 15_000  # kB; the names alone would be 20,000


def test_parts_of_many_records_are_counted_without_a_list_of_them():
    lengths = np.random.default_rng(0).integers(300, 700, 400_000).astype(np.uint32)
    tracemalloc.start()
    try:
        sizes = Cut(tokens=1 << 20).sizes(lengths)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert tuple(map(sum, zip(*sizes, strict=True))) == (400_000, int(lengths.sum()))
    assert peak < 5e6  # a list of the numbers would be 14 MB
