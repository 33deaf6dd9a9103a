"""``seqgraph cluster-proteins``: a table of clusters for family-aware sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def cluster_proteins(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="Proteins: FASTA, plain or compressed.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write: cluster, tab, member.")],
    identity: Annotated[float, typer.Option(help="Estimated share of equal residues within a cluster.")] = 0.6,
    on_invalid: Annotated[
        Literal["error", "unk", "skip"],
        typer.Option("--on-invalid", "--on_invalid", help="Letters that are no amino acids, and empty records."),
    ] = "error",
) -> None:
    """Cluster the proteins of a FASTA file by the short words they share.

    The table has MMseqs2's form: the name of a cluster's longest protein, a tab, the name of a member. Training takes
    it as [bold]data.clusters[/]: then whole clusters are held out, and an epoch has one protein of each.
    """
    from seqgraph.errors import ConfigError
    from seqgraph.train.checkpoint import write_file
    from seqgraph_lc_plm.cluster import cluster
    from seqgraph_lc_plm.fasta import read_fasta, refuse_nucleotides

    if not 0 < identity <= 1:
        raise ConfigError(f"--identity {identity} is no share", "above 0 and at most 1")
    records = list(read_fasta(fasta, on_invalid=on_invalid, on_duplicate="error", first_word=True))
    sequences = [record.sequence for record in records]
    refuse_nucleotides(sequences, fasta)
    centres = cluster(sequences, identity).tolist()
    rows = sorted((centre, centre != i, i) for i, centre in enumerate(centres))
    write_file(output, "".join(f"{records[centre].label}\t{records[i].label}\n" for centre, _, i in rows))
    print(f"{len(records)} proteins in {len(set(centres))} clusters: {output}")
