"""``seqgraph evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seqgraph.cli import output as out


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a checkpoint folder in it.")],
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    accelerator: Annotated[str, typer.Option("--accelerator", help="auto, cpu or gpu.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Evaluate a run's best checkpoint on one split."""
    from seqgraph.train.run import evaluate_on

    metrics, data, trained_on = evaluate_on(run, split, accelerator=accelerator)
    if data != trained_on:
        out.print_note("Warning", f"trained on the data {trained_on or 'none'}, evaluated on {data or 'none'}")
    if json:
        out.print_json({"run": str(run), "split": split, "data": data, "metrics": metrics})
    else:
        out.print_table(["metric", split], [[name, f"{value:.6g}"] for name, value in metrics.items()])
        typer.echo(f"data {data or 'none'}")
