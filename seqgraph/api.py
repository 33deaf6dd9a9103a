"""The functions behind ``import seqgraph as sg``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqgraph.plugin import manager
from seqgraph.plugin.manager import register

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

    from torch import nn

    from seqgraph.config import RunConfig
    from seqgraph.stream import TokenStream
    from seqgraph.train.run import RunResult

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
    """Load a trained model in ``eval`` mode, ready for raw input.

    Args:
        path: a run or a checkpoint folder; or weights of other software, a file or a folder, in a layout that a
            plugin knows (``seqgraph formats``).
        device: where the model goes.

    Raises:
        CheckpointError: when it is no checkpoint, is damaged, or has tensors missing, left over or of another shape.
        ConfigError: when the device is not there.
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


def train(
    config: RunConfig | str | PathLike[str] | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    output: str | PathLike[str] | None = None,
    data_root: str | PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Train, as ``seqgraph train`` does.

    Args:
        config: a preset's name, a YAML file, a run's folder, a mapping, or a configuration.
        overrides: ``section.key=value`` texts, or ``seed=0,1,2``.
        output: the run's folder; None for ``runs/`` and the name of the preset, file or model.
        data_root: where the data are: ``data.root``.
        resume: go on exactly where the run in the folder stopped.
        quiet: print nothing.

    Returns:
        The metrics of each seed, their mean and spread, and the trivial predictor's.

    Raises:
        ConfigError: for a wrong configuration, naming the key.

    Example::

        result = sg.train("weather-nyc", ["train.epochs=1", "seed=0,1"], output="runs/weather")
    """
    from seqgraph.config import load_config
    from seqgraph.train import run

    whole = load_config(config, overrides, data_root=data_root)  # type: ignore[arg-type]
    folder = run.default_output(config) if output is None else output
    return run.train(whole, output=folder, resume=resume, quiet=quiet)  # type: ignore[arg-type]
