"""Makes the shipped Swiss-Prot sample: ``python -m seqgraph_lc_plm.curate swissprot_2014_01.tsv.xz -o OUT``.

The source is a table of accession, cluster, split and sequence (tab separated, first row of a cluster is its
representative), in which no valid or test sequence has a train neighbour of 50 % identity over 80 % of its length.
Only representatives are taken, so that each family counts once. Which ones is decided by a hash of the accession:
the same table gives the same sample on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path

STANDARD = frozenset("ACDEFGHIKLMNPQRSTVWY")
SHORT = (40, 300)
LONG = (301, 2_000)
# (split, length range, how many): the long ones are held out to show what happens beyond the training length
TAKE = (
    ("train", SHORT, 5_000),
    ("valid", SHORT, 200),
    ("test", SHORT, 250),
    ("test", LONG, 50),
)


def representatives(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (accession, split, sequence) of the first row of each cluster."""
    seen: set[str] = set()
    with lzma.open(path, "rt", encoding="ascii") as lines:
        for line in lines:
            accession, cluster, split, sequence = line.rstrip("\n").split("\t")
            if cluster not in seen:
                seen.add(cluster)
                yield accession, split, sequence


def curate(path: Path) -> list[tuple[str, str, str]]:
    """Choose the sample.

    Returns:
        Rows (accession, split, sequence), in the order train, valid, test, by accession within each.
    """
    pool: dict[tuple[str, tuple[int, int]], list[tuple[bytes, str, str]]] = {}
    for accession, split, sequence in representatives(path):
        if not STANDARD.issuperset(sequence):
            continue
        length = len(sequence)
        bounds = SHORT if length <= SHORT[1] else LONG
        if bounds[0] <= length <= bounds[1]:
            digest = hashlib.sha256(accession.encode()).digest()
            pool.setdefault((split, bounds), []).append((digest, accession, sequence))
    rows = []
    for split, bounds, count in TAKE:
        chosen = sorted(pool[split, bounds])[:count]
        rows += [(accession, split, sequence) for _, accession, sequence in chosen]
    order = ["train", "valid", "test"]
    return sorted(rows, key=lambda row: (order.index(row[1]), row[0]))


def main() -> None:
    """Read the table named on the command line and write the sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="accession, cluster, split, sequence; .tsv.xz")
    parser.add_argument("-o", "--out", type=Path, required=True, help="where to write the sample, .tsv.xz")
    arguments = parser.parse_args()
    rows = curate(arguments.table)
    text = "".join("\t".join(row) + "\n" for row in rows)
    arguments.out.write_bytes(lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(rows)} sequences, {sum(len(r[2]) for r in rows)} residues, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
