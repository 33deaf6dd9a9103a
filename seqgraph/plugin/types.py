"""What a plugin offers: frozen descriptors. Import paths are text, so that listing imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Common to every kind.

    Attributes:
        name: lower case with hyphens, unique within its kind: "graph-mamba".
        target: where the thing lives, "package.module:attribute"; imported on first use.
        summary: one line, shown in listings.
        extra: the extra of the plugin's own distribution that it needs, if any.
        since: the plugin's version that introduced it.
    """

    name: str
    target: str
    summary: str
    extra: str | None = None
    since: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            raise ValueError(f"{type(self).__name__} name {self.name!r}: lower case, digits and single hyphens")
        if not isinstance(self.target, str) or not _TARGET.match(self.target):
            raise ValueError(f"{type(self).__name__} {self.name}: target {self.target!r} is not 'module:attribute'")
        if not self.summary or "\n" in self.summary:
            raise ValueError(f"{type(self).__name__} {self.name}: summary must be one line")


@dataclass(frozen=True, kw_only=True)
class Model(Descriptor):
    """An ``nn.Module`` class whose constructor takes keywords: the fields of ``config``.

    Attributes:
        domain: "graph", "protein", "recommendation", or the plugin's own word.
        config: the pydantic class of its constructor's arguments, "module:Class".
        example: a ``seqgraph.testing.ModelExample``, "module:attribute", for the conformance suite.
        paper: where it was published, one line.
    """

    domain: str
    config: str
    example: str | None = None
    paper: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Descriptor):
    """A function from a domain object to a TokenStream."""

    domain: str


@dataclass(frozen=True, kw_only=True)
class Order(Descriptor):
    """A function ``(edge_index, num_nodes, batch, *, generator) -> scores (V,)``; important nodes last."""


@dataclass(frozen=True, kw_only=True)
class Dataset(Descriptor):
    """A ``seqgraph.train.task.Dataset`` class; ``config`` is the pydantic class of its arguments."""

    domain: str
    config: str


@dataclass(frozen=True, kw_only=True)
class Task(Descriptor):
    """A ``seqgraph.train.task.Task`` class taking the model, then the fields of ``config`` as keywords."""

    domain: str
    config: str


@dataclass(frozen=True, kw_only=True)
class Preset(Descriptor):
    """A run configuration that ships: ``target`` is "package:file", the YAML file without its suffix in
    ``package/presets/`` (hyphens of the file's name are written as underscores)."""

    domain: str


@dataclass(frozen=True, kw_only=True)
class Command(Descriptor):
    """A command of the program: ``target`` is a function with typer annotations, or a ``typer.Typer``."""


@dataclass(frozen=True, kw_only=True)
class Format(Descriptor):
    """A layout in which other software writes weights: ``target`` is a function of a
    :class:`seqgraph.train.foreign.Weights` that gives the model, or None where the layout is another one."""

    domain: str


KINDS: dict[str, type[Descriptor]] = {
    "models": Model,
    "tokenizers": Tokenizer,
    "orders": Order,
    "datasets": Dataset,
    "tasks": Task,
    "presets": Preset,
    "commands": Command,
    "formats": Format,
}
