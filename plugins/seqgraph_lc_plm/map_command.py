"""``seqgraph map``: embeddings as points in the plane."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def draw_map(
    embeddings: Annotated[
        Path, typer.Argument(metavar="EMBEDDINGS", help="A folder of `seqgraph embed` or of esm-extract.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write: .png, .svg or .pdf.")],
    table: Annotated[Path | None, typer.Option("--table", help="CSV or TSV with a row for each protein.")] = None,
    color: Annotated[str | None, typer.Option("--color", "--colour", help="Column of the table to colour by.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Column of the proteins' names; the first by default.")
    ] = None,
    header_word: Annotated[
        int | None, typer.Option("--header-word", min=1, help="Colour by this word of the header instead.")
    ] = None,
    method: Annotated[
        Literal["auto", "umap", "tsne", "pca"], typer.Option("--method", help="auto: UMAP if installed, else t-SNE.")
    ] = "auto",
    kind: Annotated[Literal["mean", "bos"], typer.Option("--kind", help="Which vector of each protein.")] = "mean",
    layer: Annotated[int | None, typer.Option("--layer", help="Of which layer; the last there by default.")] = None,
    title: Annotated[str | None, typer.Option("--title", help="Above the picture.")] = None,
    coordinates: Annotated[Path | None, typer.Option("--csv", help="Also write label, x, y and value.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of UMAP and t-SNE.")] = 0,
) -> None:
    """Draw a two-dimensional map of embeddings, coloured by a column of a table or a word of the headers."""
    from seqgraph.errors import ConfigError
    from seqgraph_lc_plm import maps

    if (table is None) != (color is None):
        raise ConfigError("--table and --color go together", "--table labels.csv --color family")
    if table is not None and header_word is not None:
        raise ConfigError("--table and --header-word both give the colours", "leave out one")
    maps.new_figure(output, (1, 1))  # before the work: can it be written?
    chosen = maps.choose(method)
    from seqgraph_lc_plm.reading import read_vectors

    vectors = read_vectors(embeddings, kind=kind, layer=layer)
    values: list[str | None] | None = None
    if table is not None and color is not None:
        values = maps.read_column(table, color, vectors.labels, key=key)
    elif header_word is not None:
        values = maps.header_words(vectors.labels, header_word)
    places, name = maps.project(vectors.values, chosen, seed=seed)
    what = title if title is not None else f"{len(places):,} proteins, layer {vectors.layer}, {kind}"
    maps.draw(places, name, output, values=values, name=color or "", title=what)
    if coordinates is not None:
        from seqgraph.train.checkpoint import write_file

        write_file(coordinates, maps.as_csv(vectors.labels, places, values))
    print(f"{len(places)} proteins, {name}: {output}" + (f", {coordinates}" if coordinates else ""))
