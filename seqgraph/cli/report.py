"""``seqgraph report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seqgraph.cli import output as out


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")] = Path("report.html"),
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON as well.")] = False,
) -> None:
    """Compare runs in one HTML page: results, trivial predictor, learning curves, what differs."""
    from seqgraph.report import collect, write_report

    path = write_report(runs, output)
    if json:
        found = [collect(run) for run in runs]
        out.print_json(
            {"report": str(path), "runs": [{"run": r.name, "seeds": r.seeds, "results": r.results} for r in found]}
        )
    else:
        out.print_table(["report"], [[str(path)]])
