"""``seqgraph train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from seqgraph.cli import output as out


def train(
    source: Annotated[str, typer.Argument(metavar="PRESET|FILE", help="A preset, a YAML file, or a run to resume.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="train.lr=3e-4 model.n_layers=4 seed=0,1,2")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", metavar="DIR", help="Where the data are: data.root.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RUN", help="The run's folder; by default runs/NAME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on exactly where the run in the folder stopped.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Train a model, test it at its best epoch, and compare it with the trivial predictor.

    One folder holds everything: configuration, log, checkpoints, results. Ctrl-C finishes the step, saves, and says
    how to go on. With several seeds each is a run of its own, and mean ± std is printed. Several GPUs: torchrun
    --nproc-per-node N -m seqgraph train ...
    """
    from seqgraph.config import load_config

    config = load_config(source, overrides or (), data_root=data_root)
    from seqgraph.train.run import default_output
    from seqgraph.train.run import train as run
    from seqgraph.train.state import Interrupted

    folder = output if output is not None else default_output(source)
    try:
        result = run(config, output=folder, resume=resume, quiet=quiet or json)
    except Interrupted as stop:
        out.print_note("Saved", f"step {stop.step}; go on with: seqgraph train {shlex.quote(str(folder))} --resume")
        raise typer.Exit(130) from None
    if json:
        out.print_json(result.to_json())
