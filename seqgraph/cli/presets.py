"""``seqgraph presets``: list the run configurations that ship, or show one."""

from __future__ import annotations

from typing import Annotated

import typer

from seqgraph.cli.listing import Domain, Json, list_entries, of_domain
from seqgraph.plugin import manager

presets = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@presets.callback()
def list_presets(context: typer.Context, domain: Domain = None, json: Json = False) -> None:
    """List the presets, or show one."""
    if context.invoked_subcommand is None:
        list_entries("presets", of_domain("presets", domain), json)


@presets.command()
def show(name: Annotated[str, typer.Argument(help="A preset of `seqgraph presets`.")]) -> None:
    """Print a preset's YAML file: copy it by `seqgraph presets show NAME > mine.yaml`."""
    path = manager.resolve(manager.get("presets", name))
    print(path.read_text(encoding="utf-8"), end="")
