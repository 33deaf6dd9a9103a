"""The functions behind ``import seqgraph as sg``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqgraph.plugin import manager
from seqgraph.plugin.manager import register

if TYPE_CHECKING:
    from os import PathLike

    from torch import nn

    from seqgraph.stream import TokenStream

__all__ = ["create_model", "list_models", "load", "register", "tokenize", "train"]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Make an untrained model.

    Args:
        name: a model of ``list_models()``.
        **kwargs: the fields of its config class; the others keep their defaults.

    Returns:
        The model, on torch's current default device ("meta" works).

    Raises:
        PluginError: for an unknown name, or one whose extra is not installed.
        ConfigError: for an unknown key or a wrong value, naming it.

    Example::

        model = sg.create_model("graph-mamba", d_model=96, n_layers=4)
    """
    from seqgraph.config import arguments, checked

    descriptor = manager.get("models", name)
    config = checked(manager.resolve_config(descriptor), kwargs, f"model {name}")
    model = manager.resolve(descriptor)(**arguments(config))
    if not hasattr(model, "assets"):
        model.assets = {}
    return model


def list_models(domain: str | None = None) -> list[str]:
    """Names of the models that plugins offer, sorted; of one domain if it is given."""
    return sorted(d.name for d in manager.descriptors("models") if domain in (None, d.domain))


def load(path: str | PathLike[str], device: str = "cpu") -> nn.Module:
    """Load a trained model from a run or a checkpoint folder, in ``eval`` mode, ready for raw input.

    Raises:
        CheckpointError: when the folder is not a checkpoint, or is damaged.
    """
    from seqgraph.train import checkpoint

    return checkpoint.load(path, device=device)


def tokenize(name: str, data: Any, **kwargs: Any) -> TokenStream:
    """Turn a domain object into a token stream.

    Args:
        name: a tokenizer of ``seqgraph tokenizers``.
        data: what that tokenizer takes.
        **kwargs: its options.
    """
    return manager.resolve(manager.get("tokenizers", name))(data, **kwargs)


def train(config: Any, *args: Any, **kwargs: Any) -> Any:
    """Train what a run configuration describes; see :func:`seqgraph.train.run.train`."""
    from seqgraph.train import run

    return run.train(config, *args, **kwargs)
