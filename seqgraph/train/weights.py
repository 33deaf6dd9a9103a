"""Where a training may start from: weights that are there already, of a run, a checkpoint or other software."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from seqgraph.errors import CheckpointError, ConfigError
from seqgraph.train import checkpoint, foreign
from seqgraph.train.task import Task


def start_from(task: Task, path: str | Path, fields: Mapping[str, Any]) -> None:
    """Give a task's model the weights at a path, strictly: every tensor there, none left over, every shape right.

    A task may make something of weights that do not fit yet; see :meth:`Task.adapt_weights`.

    Args:
        task: set up, on its new model.
        path: what :func:`seqgraph.load` takes.
        fields: the model's constructor arguments, and its ``name``.

    Raises:
        CheckpointError: with the names that do not fit, and the settings of the model that would.
    """
    given, theirs = _read(Path(path))
    state = task.adapt_weights(given)
    try:
        checkpoint.load_state(task.model, Path(path), state)
    except CheckpointError as error:
        # What the task has adapted is no reason to change the model.
        changed = [(given[name].shape, state[name].shape) for name in state.keys() & given.keys()]
        settled = {old for a, b in changed for old, new in zip(a, b, strict=False) if old != new}
        kept = {key: value for key, value in theirs.items() if isinstance(value, str) or value not in settled}
        raise CheckpointError(error.message, _cure(fields, kept)) from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the fields of the model that they are of where these are known."""
    if (file := foreign.locate(path)) is not None:
        return foreign.load(file).state_dict(), {}
    try:
        folder = checkpoint.find(path)
    except CheckpointError as error:
        raise ConfigError(f"train.weights={path}: {error.message}", error.hint) from None
    return checkpoint.read_tensors(folder / checkpoint.MODEL), dict(checkpoint.read_config(folder)["model"])


def _cure(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    if not theirs:
        return "give the model the shape that the file has"
    if theirs["name"] != ours["name"]:
        return f"they are of another model: model.name={theirs['name']}"
    differ = [f"model.{key}={value}" for key, value in theirs.items() if key in ours and ours[key] != value]
    return f"give the model the settings of the weights: {' '.join(differ)}" if differ else "was the plugin another?"
