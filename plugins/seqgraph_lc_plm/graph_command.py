"""``seqgraph embed-network``: proteins beside their neighbours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from seqgraph_lc_plm.commands import Budget, Model, NoGpu


def embed_network(
    model: Model,
    interactions: Annotated[Path, typer.Argument(metavar="EDGES", help="STRING's files, a table of pairs, .graphml.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")],
    sequences: Annotated[
        Path | None, typer.Option("--sequences", help="FASTA file, or table of name, tab, sequence.")
    ] = None,
    proteins: Annotated[int, typer.Option(min=1, help="Of a context at most; 1 embeds each protein alone.")] = 3,
    walks: Annotated[int, typer.Option(min=1, help="Contexts that each protein begins; their mean is written.")] = 4,
    p: Annotated[float, typer.Option("--p", help="node2vec's return parameter.")] = 4.0,
    q: Annotated[float, typer.Option("--q", help="node2vec's in-out parameter.")] = 1.0,
    layer: Annotated[int, typer.Option(help="0 to n, or from the end.")] = -1,
    min_score: Annotated[float, typer.Option("--min-score", help="Of an interaction (STRING: 0 to 1000).")] = 0.0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out interactions of names without a sequence.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the walks.")] = 0,
    toks_per_batch: Budget = 16384,
    nogpu: NoGpu = False,
) -> None:
    """Embed every protein of an interaction graph, beside its neighbours or (--proteins 1) alone.

    The folder is one of seqgraph embed with --shard-bytes: one vector a protein, in the order of the sequences, which
    seqgraph map and read_vectors take.
    """
    import torch

    from seqgraph_lc_plm.folder import Done, Folder
    from seqgraph_lc_plm.graph import read_graph
    from seqgraph_lc_plm.graph_embed import embed_in_graph
    from seqgraph_lc_plm.memory import halved
    from seqgraph_lc_plm.models import open_model
    from seqgraph_lc_plm.progress import ResidueProgress
    from seqgraph_lc_plm.writers import SHARD, Shard

    began = time.perf_counter()
    graph = read_graph(interactions, sequences, min_score=min_score, on_missing="skip" if skip_missing else "error")
    network = open_model(model, "cuda" if torch.cuda.is_available() and not nogpu else "cpu")
    network.check_layers([layer])
    depth = layer % (network.n_layers + 1)
    settings = {
        "model": model, "interactions": str(interactions), "sequences": str(sequences), "layers": [depth],
        "include": ["mean"], "format": "safetensors", "dtype": "float32", "shard_bytes": 1 << 62,
        "proteins": proteins, "walks": walks, "p": p, "q": q, "min_score": min_score, "seed": seed,
    }  # fmt: skip
    folder = Folder(output, settings, ("name", "residues", "label", "row"))
    folder.open(overwrite=True, shards=True)
    residues = sum(map(len, graph.sequences)) * (walks if proteins > 1 else 1)
    with ResidueProgress("embedding", None, residues) as progress:
        found = embed_in_graph(
            network, graph, proteins=proteins, walks=walks, p=p, q=q, layer=depth,
            max_tokens=toks_per_batch, seed=seed, progress=lambda count: progress(0, count),
            on_halved=lambda tokens: progress.note(halved(tokens)),
        )  # fmt: skip
    writer = Shard(folder, "safetensors", 0)
    rows = []
    for place, (name, sequence) in enumerate(zip(graph.names, graph.sequences, strict=True)):
        writer.add(place, name, name, {("mean", depth): found[place]})
        rows.append(f"{SHARD.format(0)}\t{len(sequence)}\t{name}\t{place}")
    writer.close()
    folder.commit(0, Done(toks_per_batch, tuple(rows)))
    folder.finish(1, {})
    beside = "alone" if proteins == 1 else f"beside neighbours over {graph.edge_index.shape[1]:,} interactions"
    print(f"{len(rows):,} proteins {beside} in {time.perf_counter() - began:.1f} s: {output}")
