"""``seqgraph predict``: a table of molecules in, the same table with predictions out."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def predict(
    run: Annotated[Path, typer.Argument(help="A run, or a checkpoint folder of it.")],
    molecules: Annotated[Path, typer.Argument(help="A .csv or .tsv file, plain or gzipped, with a column of SMILES.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write; standard output by default.")
    ] = None,
    smiles: Annotated[str, typer.Option(help="The column of SMILES.")] = "smiles",
    on_invalid: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do about a malformed SMILES; skip leaves its cells empty.")
    ] = "error",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    max_tokens: Annotated[int, typer.Option(min=1, help="Atoms in a batch.")] = 16384,
) -> None:
    """Predict properties of molecules with a trained graph model.

    Every row of the input is in the output, with one column more a target, "predicted ..." in the target's own unit
    (for labels and classes: a probability).
    """
    import seqgraph
    from seqgraph.errors import CheckpointError, DataError
    from seqgraph_graph_mamba.features import smiles_graph
    from seqgraph_graph_mamba.reading import existing_file, find_column, read_csv

    header, rows = read_csv(existing_file(molecules, "give a CSV file with a column of SMILES"))
    column = find_column(header, smiles, molecules)
    graphs, kept = [], []
    for i, row in enumerate(rows):
        try:
            graphs.append(smiles_graph(row[column].strip(), f"{molecules}, row {i + 1}"))
            kept.append(i)
        except DataError as error:
            if on_invalid == "error":
                raise DataError(error.message, f"{error.hint}, or run with --on-invalid skip") from error
            typer.echo(f"left out: {error.message}", err=True)
    model: Any = seqgraph.load(run, device=device)
    if not hasattr(model, "predict") or getattr(model, "node_features", None) != "atom":
        raise CheckpointError(
            f"{run} holds a {type(model).__name__}, which does not read molecules",
            "give a run on molecules: of ogbg-molesol, say, or of a CSV with data.name=smiles-csv",
        )
    if getattr(model, "level", "graph") != "graph":
        raise CheckpointError(
            f"{run} predicts atoms, not molecules",
            'in Python: seqgraph.load(run).predict(["CCO"]) gives one row an atom',
        )
    values = model.predict(graphs, max_tokens=max_tokens).reshape(len(graphs), model.d_out)
    names = model.assets.get("targets", {}).get("names") or [f"target_{k}" for k in range(values.shape[1])]
    names = [f"predicted {name}" for name in names]  # the targets' own names may say "measured"
    for row in rows:
        row.update(dict.fromkeys(names, ""))
    for i, value in zip(kept, values, strict=True):
        rows[i].update({name: f"{number:.6g}" for name, number in zip(names, value, strict=True)})
    _write(output, [*header, *names], rows)


def _write(path: Path | None, header: list[str], rows: list[dict[str, str]]) -> None:
    """Write a CSV whole or not at all; to standard output when there is no path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if path is None:
        sys.stdout.write(text.getvalue())
        return
    from seqgraph.train.checkpoint import write_file

    write_file(path, text.getvalue())
    typer.echo(f"{len(rows)} rows in {path}", err=True)
