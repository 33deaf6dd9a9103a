"""Graphs, proteins and user histories as ordered token streams, encoded by bidirectional selective SSMs.

Everything here is imported when it is first used: ``import seqgraph`` loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from seqgraph.api import create_model, list_models, load, register, tokenize, train
    from seqgraph.stream import TokenStream

__all__ = ["TokenStream", "create_model", "list_models", "load", "register", "tokenize", "train"]

_HOMES = {
    "TokenStream": "seqgraph.stream",
    "create_model": "seqgraph.api",
    "list_models": "seqgraph.api",
    "load": "seqgraph.api",
    "register": "seqgraph.api",
}
# Words that are a package and a function: sg.train(config), and from seqgraph.train import Task.
_CALLABLE = ("tokenize", "train")


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        api = importlib.import_module("seqgraph.api")
        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system comes by here when it has imported a submodule.
        if name in _CALLABLE and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _CALLABLE:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
