"""Finds plugins and answers for them; with :mod:`seqgraph.plugin.hookspec` the only user of pluggy.

Plugins come in by an entry point of the group ``seqgraph.plugins``, by ``-p file.py`` or by :func:`register`.
Each is loaded, and each of its hooks is called, by itself: one that fails is reported by name and harms no
other. Environment: ``SEQGRAPH_DISABLE_PLUGINS=a,b`` (or ``*``) leaves plugins out, ``SEQGRAPH_STRICT_PLUGINS=1``
turns every report into an error.
"""

from __future__ import annotations

import difflib
import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from seqgraph.errors import PluginError, UserError
from seqgraph.plugin import hookspec, requirements, sources
from seqgraph.plugin.state import Entry, PluginWarning, Record
from seqgraph.plugin.types import KINDS, Descriptor, Model, Preset

GROUP = "seqgraph.plugins"
DISABLE = "SEQGRAPH_DISABLE_PLUGINS"
STRICT = "SEQGRAPH_STRICT_PLUGINS"
CORE = "core"


@dataclass
class _Plugin:
    record: Record
    object: Any
    results: dict[str, list[Descriptor]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # of its hooks; conflicts come and go with the others


class Manager:
    """One set of plugins. The module's functions use the process's own; tests make their own.

    Args:
        builtin: register the core's own plugin.
        entry_points: the entry points to load; by default those of every installed distribution.
        environ: where the two variables are read from.
    """

    def __init__(
        self,
        *,
        builtin: bool = True,
        entry_points: Iterable[metadata.EntryPoint] | None = None,
        environ: dict[str, str] | os._Environ[str] = os.environ,
    ) -> None:
        self.strict = environ.get(STRICT, "") not in ("", "0")
        self._pluggy = pluggy.PluginManager(hookspec.PROJECT)
        self._pluggy.add_hookspecs(hookspec)
        self._plugins: dict[str, _Plugin] = {}
        self._left_out: list[Record] = []
        self._entries: dict[str, list[Entry]] = {}
        if builtin:
            self._add(importlib.import_module("seqgraph.plugin.builtin"), Record(CORE, "built in", *_own()))
        if entry_points is None:
            entry_points = metadata.entry_points(group=GROUP)
        disabled = {name.strip().replace("_", "-") for name in environ.get(DISABLE, "").split(",")}
        for point in sorted(entry_points, key=lambda p: (p.name, p.value)):
            self._load_entry_point(point, disabled)

    # ------------------------------------------------------------------ ways in
    def _load_entry_point(self, point: metadata.EntryPoint, disabled: set[str]) -> None:
        dist = point.dist
        record = Record(point.name, "entry point", dist.name if dist else None, dist.version if dist else None)
        if "*" in disabled or point.name.replace("_", "-") in disabled:
            record.status, record.reason = "disabled", f"named by {DISABLE}"
            self._left_out.append(record)
            return
        try:
            if point.name in self._plugins:
                other = self._plugins[point.name].record
                raise PluginError(f"plugin {other.title} has the same name")
            self._add(point.load(), record)
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises
            self._left_out.append(record)
            self._report(record, _first_line(error), error)

    def register(self, plugin: Any, name: str | None = None) -> Record:
        """Add a plugin by hand, in a notebook say.

        Args:
            plugin: a module or object with hook implementations, a class of them, a descriptor, or several.
            name: its name; by default the object's own. Registering it again replaces what was registered.

        Raises:
            PluginError: when the plugin is not valid, or the name belongs to an installed plugin.
        """
        module_like = sources.as_plugin(plugin)
        name = name or sources.name_of(plugin)
        old = self._plugins.get(name)
        if old is not None and old.record.source == "registered":
            self.unregister(name)
        return self._add_asked(module_like, Record(name, "registered"))

    def load(self, path_or_module: str | os.PathLike[str]) -> Record:
        """Add the plugin in a Python file, or in an importable module.

        Raises:
            PluginError: when it cannot be found or imported, or is not valid.
        """
        module, source = sources.import_plugin(path_or_module)
        for plugin in self._plugins.values():
            if plugin.object is module:
                return plugin.record
        return self._add_asked(module, Record(module.__name__, source))

    def unregister(self, name: str) -> None:
        """Take a plugin out again.

        Raises:
            PluginError: when there is none of this name.
        """
        if name not in self._plugins:
            raise PluginError(f"no plugin is named {name!r}")
        del self._plugins[name]
        self._pluggy.unregister(name=name)
        self._entries.clear()
        for plugin in self._plugins.values():  # a conflict with it is over
            plugin.record.status = "broken" if plugin.failures else "ok"
            plugin.record.reason, plugin.record.cure = "; ".join(plugin.failures) or None, None

    def _add_asked(self, plugin: Any, record: Record) -> Record:
        if record.name in self._plugins:
            raise PluginError(
                f"a plugin named {record.name!r} is there already: {self._plugins[record.name].record.title}"
            )
        try:
            self._add(plugin, record)
        except Exception as error:
            raise PluginError(f"plugin {record.name}: {_first_line(error)}") from error
        return record

    def _add(self, plugin: Any, record: Record) -> None:
        try:
            self._pluggy.register(plugin, name=record.name)
            # Straight after each register, so that a misspelt hook is blamed on its owner.
            self._pluggy.check_pending()
            callers = self._pluggy.get_hookcallers(plugin) or []
            record.hooks = tuple(sorted(caller.name for caller in callers))
            self._refuse_wrappers(plugin, callers)
            if not callers:
                raise PluginError("implements no hook", "is @hookimpl missing?")
        except Exception:
            if self._pluggy.has_plugin(record.name):
                self._pluggy.unregister(name=record.name)
            raise
        self._plugins[record.name] = _Plugin(record, plugin)
        self._entries.clear()

    @staticmethod
    def _refuse_wrappers(plugin: Any, callers: Sequence[Any]) -> None:
        for caller in callers:
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin and (impl.wrapper or impl.hookwrapper):
                    raise PluginError(f"{caller.name} is a wrapper; hooks of seqgraph only yield descriptors")

    def _report(self, record: Record, reason: str, error: BaseException | None) -> None:
        """Mark a plugin broken, with one warning."""
        record.status = "broken"
        record.reason = f"{record.reason}; {reason}" if record.reason else reason
        message = f"plugin {record.title} is broken: {reason}"
        if self.strict:
            raise PluginError(message, f"unset {STRICT} to go on without it") from error
        warnings.warn(message, PluginWarning, stacklevel=2)

    # ------------------------------------------------------------------ what there is
    def entries(self, kind: str) -> list[Entry]:
        """Everything of a kind, also what cannot be used, in order of plugin and of yielding."""
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        if kind not in self._entries:
            found = [(plugin.record, d) for plugin in self._plugins.values() for d in self._yielded(plugin, kind)]
            self._entries[kind] = [self._entry(kind, d, record, found) for record, d in found]
            self._report_conflicts(kind)
        return self._entries[kind]

    def _yielded(self, plugin: _Plugin, kind: str) -> list[Descriptor]:
        """Call the plugin's own implementation of one hook, once, and hold on to what it yields."""
        if kind not in plugin.results:
            results: list[Descriptor] = []
            try:
                for impl in getattr(self._pluggy.hook, f"seqgraph_{kind}").get_hookimpls():
                    if impl.plugin is plugin.object:
                        results = _checked(kind, impl.function())
            except (Exception, SystemExit) as error:  # whatever a stranger's hook raises
                plugin.results[kind] = []
                plugin.failures.append(f"seqgraph_{kind} raised {_first_line(error)}")
                self._report(plugin.record, plugin.failures[-1], error)
            plugin.results[kind] = results
        return plugin.results[kind]

    def _entry(self, kind: str, d: Descriptor, record: Record, found: list[tuple[Record, Descriptor]]) -> Entry:
        claims = [other.title for other, claimed in found if claimed.name == d.name]
        if len(claims) > 1:
            return Entry(
                kind,
                d,
                record,
                "conflict",
                f"{_singular(kind)} {d.name!r} is claimed by {' and '.join(claims)}",
            )
        if d.extra is None or record.distribution is None:
            return Entry(kind, d, record)
        if not requirements.has_extra(record.distribution, d.extra):
            return Entry(kind, d, record, "broken", f"{record.distribution} has no extra {d.extra!r}")
        missing = requirements.missing_requirements(record.distribution, d.extra)
        if not missing:
            return Entry(kind, d, record)
        cure = f'pip install "{record.distribution}[{d.extra}]"'
        return Entry(kind, d, record, "needs extra", f"needs {', '.join(missing)}", cure)

    def _report_conflicts(self, kind: str) -> None:
        for entry in self._entries[kind]:
            reason = entry.reason or ""
            if entry.status in ("conflict", "broken") and reason not in (entry.record.reason or ""):
                self._report(entry.record, reason, None)

    def descriptors(self, kind: str) -> list[Descriptor]:
        """What can be asked for by name; some may still need an extra."""
        return [entry.descriptor for entry in self.entries(kind) if entry.status in ("ok", "needs extra")]

    def entry(self, descriptor: Descriptor) -> Entry:
        """How a descriptor stands.

        Raises:
            PluginError: when no plugin of this manager yielded it.
        """
        for kind, type_ in KINDS.items():
            if type(descriptor) is type_:
                same = [e for e in self.entries(kind) if e.descriptor == descriptor]
                if same:
                    return next((e for e in same if e.descriptor is descriptor), same[0])
        raise PluginError(f"no plugin offers {descriptor.name!r}")

    def provider(self, descriptor: Descriptor) -> Record:
        """The plugin that offers a descriptor."""
        return self.entry(descriptor).record

    def records(self) -> list[Record]:
        """Every plugin, also those that are disabled or broken; calls every hook to know."""
        entries = [entry for kind in KINDS for entry in self.entries(kind)]
        for record in (plugin.record for plugin in self._plugins.values()):
            waiting = [e for e in entries if e.record is record and e.status == "needs extra"]
            if record.status == "ok" and waiting:
                record.status = "needs extra"
                record.reason = "; ".join(dict.fromkeys(e.reason or "" for e in waiting))
                record.cure = " && ".join(dict.fromkeys(e.cure or "" for e in waiting))
        return [plugin.record for plugin in self._plugins.values()] + self._left_out

    def get(self, kind: str, name: str) -> Descriptor:
        """The descriptor of a name.

        Raises:
            PluginError: for a name that nobody offers (with near matches), that several claim, or whose extra
                is not installed (with the command).
        """
        named = [entry for entry in self.entries(kind) if entry.descriptor.name == name]
        if not named:
            raise self._unknown(kind, name)
        entry = named[0]
        if entry.status == "needs extra":
            raise PluginError(f"{_singular(kind)} {name!r} {entry.reason}", entry.cure)
        if entry.status == "conflict":
            raise PluginError(entry.reason or "", f"leave one out: {DISABLE}={named[-1].record.name}")
        if entry.status == "broken":
            raise PluginError(f"{_singular(kind)} {name!r}: {entry.reason}")
        return entry.descriptor

    def _unknown(self, kind: str, name: str) -> PluginError:
        names = [d.name for d in self.descriptors(kind)]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif names:
            hint = f"there are: {', '.join(sorted(names))}"
        else:
            hint = "no plugin offers any; see: seqgraph plugins"
        out = [f"{r.name} is {r.status}" for r in self._left_out]
        if out:
            hint += f"; note that plugin {', '.join(out)}"
        return PluginError(f"no {_singular(kind)} is named {name!r}", hint)

    # ------------------------------------------------------------------ using it
    def resolve(self, descriptor: Descriptor) -> Any:
        """Import what a descriptor names: a class or a function; for a preset, its YAML file (a ``Path``).

        Raises:
            PluginError: naming the plugin, when it cannot be imported.
        """
        if isinstance(descriptor, Preset):
            return self._import(descriptor, descriptor.target, sources.preset_file)
        return self._import(descriptor, descriptor.target)

    def resolve_config(self, descriptor: Descriptor) -> Any:
        """Import the pydantic class of a model's, data set's or task's arguments."""
        return self._import(descriptor, getattr(descriptor, "config", ""))

    def resolve_example(self, descriptor: Model) -> Any:
        """Import the ``ModelExample`` of a model, or give None where it has none."""
        return self._import(descriptor, descriptor.example) if descriptor.example else None

    def _import(self, descriptor: Descriptor, target: str, read: Callable[[str], Any] | None = None) -> Any:
        try:
            return (read or sources.import_target)(target)
        except UserError:
            raise
        except Exception as error:
            try:
                entry = self.entry(descriptor)
                owner, cure = f"plugin {entry.record.title}: ", entry.cure
            except PluginError:
                owner, cure = "", None
            raise PluginError(
                f"{owner}{descriptor.name}: cannot import {target}: {_first_line(error)}", cure
            ) from error


def _checked(kind: str, yielded: Iterable[Any] | None) -> list[Descriptor]:
    results = list(yielded or ())
    for thing in results:
        if type(thing) is not KINDS[kind]:
            raise TypeError(f"yielded {thing!r}, not a {KINDS[kind].__name__}")
    return results


def _own() -> tuple[str | None, str | None]:
    try:
        return "seqgraph", metadata.version("seqgraph")
    except metadata.PackageNotFoundError:
        return None, None


def _singular(kind: str) -> str:
    return kind.removesuffix("s")


def _first_line(error: BaseException) -> str:
    if isinstance(error, pluggy.PluginValidationError):
        text = str(error).replace("\n", " ").strip()
    else:
        text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, UserError | pluggy.PluginValidationError) else f"{type(error).__name__}: {text}"


# ---------------------------------------------------------------------- the process's own
_manager: Manager | None = None


def current() -> Manager:
    """The process's own manager, made when first asked for."""
    global _manager
    if _manager is None:
        _manager = Manager()
    return _manager


def use(manager: Manager | None) -> Manager | None:
    """Put another manager in its place, None for a fresh one when next asked; returns the one before."""
    global _manager
    old, _manager = _manager, manager
    return old


def entries(kind: str) -> list[Entry]:
    """See :meth:`Manager.entries`."""
    return current().entries(kind)


def descriptors(kind: str) -> list[Any]:
    """See :meth:`Manager.descriptors`."""
    return current().descriptors(kind)


def get(kind: str, name: str) -> Any:
    """See :meth:`Manager.get`."""
    return current().get(kind, name)


def resolve(descriptor: Descriptor) -> Any:
    """See :meth:`Manager.resolve`."""
    return current().resolve(descriptor)


def resolve_config(descriptor: Descriptor) -> Any:
    """See :meth:`Manager.resolve_config`."""
    return current().resolve_config(descriptor)


def resolve_example(descriptor: Model) -> Any:
    """See :meth:`Manager.resolve_example`."""
    return current().resolve_example(descriptor)


def provider(descriptor: Descriptor) -> Record:
    """See :meth:`Manager.provider`."""
    return current().provider(descriptor)


def records() -> list[Record]:
    """See :meth:`Manager.records`."""
    return current().records()


def load_plugin(path_or_module: str | os.PathLike[str]) -> Record:
    """See :meth:`Manager.load`."""
    return current().load(path_or_module)


def register(plugin: Any, name: str | None = None) -> Record:
    """See :meth:`Manager.register`."""
    return current().register(plugin, name)
