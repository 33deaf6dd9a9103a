"""Where plugins and the things they name are read from: files, modules, objects at hand."""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from seqgraph.errors import PluginError
from seqgraph.plugin.hookspec import hookimpl
from seqgraph.plugin.types import KINDS, Descriptor


def import_target(target: str) -> Any:
    """Import "package.module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def preset_file(target: str) -> Path:
    """The YAML file of "package:name": ``package/presets/name.yaml``, hyphens and underscores being the same.

    Raises:
        FileNotFoundError: when the package has no such file.
    """
    package, _, name = target.partition(":")
    folder = importlib.resources.files(package) / "presets"
    if folder.is_dir():
        for file in folder.iterdir():
            stem, _, suffix = file.name.rpartition(".")
            if suffix in ("yaml", "yml") and stem.replace("-", "_") == name:
                return Path(str(file))
    raise FileNotFoundError(f"{package}/presets holds no {name}.yaml")


def import_plugin(path_or_module: str | os.PathLike[str]) -> tuple[ModuleType, str]:
    """Import the module of a ``-p`` option; returns it, and "file" or "module".

    Raises:
        PluginError: when it cannot be found or imported.
    """
    text = os.fspath(path_or_module)
    is_file = text.endswith(".py") or os.sep in text
    try:
        if is_file:
            return _import_file(Path(text)), "file"
        return importlib.import_module(text), "module"
    except PluginError:
        raise
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and (text == error.name or text.startswith(f"{error.name}.")):
            hint = "give a file that ends in .py, or an importable module"
            raise PluginError(f"no plugin module is named {text!r}", hint) from error
        raise PluginError(f"plugin {text}: ModuleNotFoundError: {error}") from error
    except Exception as error:
        raise PluginError(f"plugin {text}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    name = path.stem
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist")
    if not name.isidentifier():
        raise PluginError(f"plugin file {path}: {name!r} cannot be a module's name", "rename it: letters, digits, _")
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        raise PluginError(f"plugin file {path}: a module named {name!r} is imported already", "rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Under its own stem, so that the targets "stem:Class" of its descriptors can be imported.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def as_plugin(thing: Any) -> Any:
    """What pluggy can register for a module, an object, a class, a descriptor or several descriptors."""
    if isinstance(thing, type):
        return thing()
    if isinstance(thing, Descriptor):
        thing = [thing]
    if isinstance(thing, Iterable):
        return _plugin_of(list(thing))
    return thing


def name_of(thing: Any) -> str:
    """The name a plugin has if none is given."""
    if isinstance(thing, Descriptor):
        return thing.name
    if isinstance(thing, Iterable) and not isinstance(thing, type):
        return "registered"
    return getattr(thing, "__name__", None) or type(thing).__name__


def _plugin_of(descriptors: list[Any]) -> SimpleNamespace:
    plugin = SimpleNamespace()
    for thing in descriptors:
        if type(thing) not in KINDS.values():
            raise PluginError(
                f"{thing!r} is not a descriptor", "register a module, an object with hooks, or descriptors"
            )
    for kind, type_ in KINDS.items():
        mine = [d for d in descriptors if type(d) is type_]
        if mine:
            hook = _hook(f"seqgraph_{kind}", mine)
            setattr(plugin, f"seqgraph_{kind}", hook)
    return plugin


def _hook(name: str, results: list[Descriptor]) -> Any:
    def implementation() -> list[Descriptor]:
        return results

    implementation.__name__ = name
    return hookimpl(implementation)
