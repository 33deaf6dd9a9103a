"""How plugins, and the things they offer, stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seqgraph.plugin.types import Descriptor

State = Literal["ok", "needs extra", "disabled", "broken"]


class PluginWarning(UserWarning):
    """A plugin that is left out, or part of it, and why."""


@dataclass
class Record:
    """What is known of one plugin.

    Attributes:
        name: its name: that of the entry point, the file's stem, or the one given to ``register``.
        source: how it came in: "built in", "entry point", "file", "module" or "registered".
        distribution: the installed distribution it belongs to, if any.
        version: the version of that distribution.
        status: "ok", "needs extra", "disabled" or "broken".
        reason: why it is not ok, one line.
        cure: the command that helps, if there is one.
        hooks: the hooks it implements.
    """

    name: str
    source: str
    distribution: str | None = None
    version: str | None = None
    status: State = "ok"
    reason: str | None = None
    cure: str | None = None
    hooks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its name, with distribution and version where it has them."""
        return f"{self.name} ({self.distribution} {self.version})" if self.distribution else self.name


@dataclass(frozen=True)
class Entry:
    """One descriptor as it stands.

    Attributes:
        kind: "models", "orders", ...
        descriptor: what the plugin yielded.
        record: the plugin.
        status: "ok", "needs extra", or "conflict" where several plugins claim the name, or "broken".
        reason: why it is not ok, one line.
        cure: the command that helps, if there is one.
    """

    kind: str
    descriptor: Descriptor
    record: Record
    status: Literal["ok", "needs extra", "conflict", "broken"] = "ok"
    reason: str | None = None
    cure: str | None = None
