"""``seqgraph new-plugin``: the skeleton of a plugin, which works as it is written."""

from __future__ import annotations

import importlib.resources
import re
import shutil
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from seqgraph.cli import output as out
from seqgraph.errors import UserError
from seqgraph.plugin import manager

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = ".tmpl"


def new_plugin(
    name: Annotated[str, typer.Argument(help="Its name: lower case, digits, hyphens, as in my-domain.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Its folder; by default seqgraph-NAME.")
    ] = None,
) -> None:
    """Write the skeleton of a plugin of your own: it installs, is listed, trains and passes its tests."""
    folder = write_plugin(name, output)
    out.console().print(f"Wrote {folder}. What next:", soft_wrap=True)
    plain = name.removeprefix("seqgraph-")
    for command in (f"pip install -e {folder}", "seqgraph plugins", f"seqgraph train {plain}", f"pytest {folder}"):
        out.console().print(f"  {command}", soft_wrap=True)


def write_plugin(name: str, folder: Path | None = None) -> Path:
    """Write the skeleton.

    Args:
        name: the plugin's name; "seqgraph-" before it is dropped.
        folder: where; it must not exist yet.

    Returns:
        The folder.

    Raises:
        UserError: for a name that cannot be used, or a folder that exists.
    """
    name = name.removeprefix("seqgraph-")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be a plugin's name", "lower case, digits and single hyphens: my-domain")
    if any(name in (r.name, *_names(r)) for r in manager.records()):
        raise UserError(f"there is a plugin, or a thing of one, named {name!r} already", "choose another name")
    folder = Path(f"seqgraph-{name}") if folder is None else folder
    if folder.exists():
        raise UserError(f"{folder} exists already", "name another folder by -o")
    words = _words(name)
    half = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(half, ignore_errors=True)
    try:
        for path, template in _templates(importlib.resources.files("seqgraph.cli") / "templates" / "plugin"):
            target = half / path.replace("src/package/", f"src/{words['package']}/")
            target = target.with_name(target.name.replace("preset.yaml", f"{name}.yaml"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        half.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def _names(record: manager.Record) -> list[str]:
    kinds = ("models", "presets")
    return [entry.descriptor.name for kind in kinds for entry in manager.entries(kind) if entry.record is record]


def _words(name: str) -> dict[str, str]:
    from seqgraph import __version__

    return {
        "name": name,
        "distribution": f"seqgraph-{name}",
        "package": f"seqgraph_{name.replace('-', '_')}",
        "module": name.replace("-", "_"),
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "version": __version__,
    }


def _templates(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """Every template below a folder, with its path without the suffix."""
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _templates(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield f"{prefix}{entry.name.removesuffix(_SUFFIX)}", entry
