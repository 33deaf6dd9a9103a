"""Checkpoints: a folder of safetensors and JSON, written whole or not at all, and read without pickle."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seqgraph.errors import CheckpointError, ConfigError
from seqgraph.train.tree import pack_tree, unpack_tree

FORMAT = 1
"""Version of the folder's layout; a reader refuses a later one."""

MODEL, CONFIG, ASSETS, METRICS, CARD = (
    "model.safetensors",
    "config.json",
    "assets.json",
    "metrics.json",
    "MODEL_CARD.md",
)
TASK, TRAINER = "task.safetensors", "trainer"
_ALIASES = "aliases"


class CheckpointWarning(UserWarning):
    """Something about a checkpoint that may matter."""


# ---------------------------------------------------------------------- the two functions
def save(
    folder: str | os.PathLike[str],
    model: nn.Module | Mapping[str, Tensor],
    *,
    name: str,
    fields: Mapping[str, Any],
    assets: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    card: str | None = None,
    task: Mapping[str, Tensor] | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint folder; what was there before stays until the new one is complete.

    Args:
        folder: where; its parents are made.
        model: the model, or its ``state_dict``.
        name: the model's registered name.
        fields: the constructor's arguments, which JSON can hold.
        assets: what the model needs on raw input; None takes ``model.assets``.
        metrics: results that belong to these weights.
        run: the resolved run configuration, if there was a run.
        extra: more entries for ``config.json``.
        card: the text of ``MODEL_CARD.md``; None for a short one.
        task: tensors that the task has besides the model's.
        trainer: what training needs to go on: a tree of dicts, lists, numbers, texts and tensors.

    Returns:
        The folder.

    Raises:
        CheckpointError: when the disk is full or the folder cannot be written; nothing half written stays.
    """
    folder = Path(folder)
    state = model if isinstance(model, Mapping) else model.state_dict()
    if assets is None:
        assets = getattr(model, "assets", {})
    config = {
        "format": FORMAT,
        "model": {"name": name, **fields},
        "plugin": _plugin(name),
        "versions": versions(),
        **({"run": dict(run)} if run is not None else {}),
        **(extra or {}),
    }

    def fill(target: Path) -> None:
        write_tensors(target / MODEL, state)
        write_json(target / CONFIG, config)
        write_json(target / ASSETS, assets)
        write_json(target / METRICS, metrics or {})
        (target / CARD).write_text(
            card if card is not None else f"# {name}\n\nA model of seqgraph.\n", encoding="utf-8"
        )
        if task:
            write_tensors(target / TASK, task)
        if trainer is not None:
            (target / TRAINER).mkdir()
            packed, tensors = pack_tree(trainer)
            write_json(target / TRAINER / "state.json", packed)
            write_tensors(target / TRAINER / "state.safetensors", tensors)

    return write_folder(folder, fill)


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> nn.Module:
    """Make the model of a checkpoint, with its weights and its ``assets``, in ``eval`` mode.

    Args:
        path: a checkpoint folder, or a run: its ``best`` checkpoint, or ``last`` where there is no best; or a file or
            folder of weights that other software wrote, in a layout that a plugin knows.
        device: where the model goes.

    Raises:
        CheckpointError: when a file is missing or damaged, or a tensor is missing or left over.
        ConfigError: when the device is not there.
        PluginError: when no installed plugin provides the model.
    """
    from seqgraph.config import arguments, checked
    from seqgraph.plugin import manager
    from seqgraph.train import foreign

    device = _device(device)
    if (file := foreign.locate(Path(path))) is not None:
        return foreign.load(file).to(device).eval()
    folder = find(path)
    config = read_config(folder)
    fields = dict(config["model"])
    descriptor = _descriptor(fields.pop("name"), config)
    cls = manager.resolve_config(descriptor)
    model = manager.resolve(descriptor)(**arguments(checked(cls, fields, str(folder / CONFIG), "model")))
    load_state(model, folder / MODEL)
    model.assets = read_json(folder / ASSETS)
    return model.to(device).eval()


def _device(device: torch.device | str) -> torch.device:
    """The device, once it is seen to be there."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of them
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"the device {str(device)!r} cannot be used: {reason}", "use cpu; see: seqgraph doctor"
        ) from None
    return found


def load_trainer(folder: str | os.PathLike[str]) -> Any:
    """The trainer's state, as it was given to :func:`save`.

    Raises:
        CheckpointError: when there is none, or it is damaged.
    """
    folder = find(folder) / TRAINER
    return unpack_tree(read_json(folder / "state.json"), read_tensors(folder / "state.safetensors"))


def find(path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder that a path means: itself, or a run's ``best``, or its ``last``.

    Raises:
        CheckpointError: when it is neither; for a run of several seeds, naming them.
    """
    path = Path(path)
    if path.name == MODEL and path.is_file():
        path = path.parent
    if not path.exists() and not _old(path).exists():
        raise CheckpointError(f"{path}: no such folder", "train first: seqgraph train PRESET -o RUN")
    for candidate in (path, path / "best", path / "last"):
        recover(candidate)
        if (candidate / MODEL).is_file():
            return candidate
    seeds = sorted(child.name for child in path.glob("seed-*") if child.is_dir())
    if seeds:
        raise CheckpointError(f"{path} holds several runs: {', '.join(seeds)}", f"name one: {path / seeds[0]}")
    raise CheckpointError(f"{path} is not a checkpoint: it has no {MODEL}", "name a run or a checkpoint folder")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: when it is missing, damaged or of a later format.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict) or "name" not in config["model"]:
        raise CheckpointError(f"{folder / CONFIG} does not name a model", "was it written by seqgraph?")
    if config.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"{folder} has format {config['format']}, this seqgraph reads {FORMAT}", "update seqgraph"
        )
    return config


def load_state(model: nn.Module, file: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Load weights strictly: every tensor there, none left over, every shape right.

    Args:
        model: takes them.
        file: where they are, or came from.
        state: the tensors, if they have been read.

    Raises:
        CheckpointError: with the names that do not fit.
    """
    state = read_tensors(file) if state is None else state
    own = model.state_dict()
    missing, left = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if state[k].shape != own[k].shape
    ]
    wrong = [
        f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("left over", left), ("of another shape", shapes))
        if names
    ]
    if wrong:
        raise CheckpointError(
            f"{file} does not fit the model; tensors {'; '.join(wrong)}",
            "was it written by another version of the plugin, or with other settings?",
        )
    model.load_state_dict(state)


def versions() -> dict[str, str]:
    """What wrote a checkpoint: versions of seqgraph, torch and python."""
    import seqgraph

    return {"seqgraph": seqgraph.__version__, "torch": torch.__version__, "python": platform.python_version()}


# ---------------------------------------------------------------------- plugins
def _plugin(name: str) -> dict[str, Any]:
    from seqgraph.plugin import manager

    record = manager.provider(manager.get("models", name))
    return {"name": record.name, "distribution": record.distribution, "version": record.version}


def _descriptor(name: str, config: dict[str, Any]) -> Any:
    """The model's descriptor, with the checkpoint's knowledge of its plugin in the error or warning."""
    from seqgraph.errors import PluginError
    from seqgraph.plugin import manager

    wrote = config.get("plugin") or {}
    known = any(d.name == name for d in manager.descriptors("models"))
    if not known:
        which = f"plugin {wrote.get('name')!r}" if wrote.get("name") else "a plugin"
        cure = f"pip install {wrote['distribution']}" if wrote.get("distribution") else "load it: seqgraph -p file.py …"
        raise PluginError(f"the model {name!r} comes from {which}, which is not here", cure)
    descriptor = manager.get("models", name)
    record = manager.provider(descriptor)
    if wrote.get("version") and (record.distribution, record.version) != (wrote.get("distribution"), wrote["version"]):
        warnings.warn(
            f"the checkpoint was written with {wrote.get('distribution')} {wrote['version']}, "
            f"here is {record.distribution} {record.version}",
            CheckpointWarning,
            stacklevel=3,
        )
    return descriptor


# ---------------------------------------------------------------------- folders and files
def write_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Have a folder filled under a temporary name, bring it to the disk, and put it in place of the old one.

    Raises:
        CheckpointError: when that fails; the old folder is as it was.
    """
    with _written(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _written(folder):
            temporary.mkdir()
            fill(temporary)
            for file in [*temporary.rglob("*"), temporary]:
                _sync(file)
            # A folder cannot be renamed onto another: for an instant the old one waits under a second name,
            # where recover() finds it should we die between the two renames.
            if folder.exists():
                shutil.rmtree(_old(folder), ignore_errors=True)
                folder.rename(_old(folder))
            temporary.rename(folder)
            _sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        recover(folder)
        raise
    shutil.rmtree(_old(folder), ignore_errors=True)
    return folder


def recover(folder: Path) -> None:
    """Put back the old folder if writing the new one was cut off between two renames."""
    if not folder.exists() and _old(folder).exists():
        _old(folder).rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Say a failure to write as a CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"{path}: the disk is full; nothing was changed", "free some space") from error
        raise CheckpointError(
            f"{path}: cannot write: {error.strerror or error}", "check the folder's rights"
        ) from error
    except SafetensorError as error:  # its writer reports what the operating system says as text
        full = "space" in str(error).lower() or "os error 28" in str(error).lower()
        said = "the disk is full; nothing was changed" if full else f"cannot write: {error}"
        raise CheckpointError(f"{path}: {said}", "free some space" if full else None) from error


def write_file(path: Path, text: str) -> None:
    """Replace a text file in one go; its folder is made if it is not there.

    Raises:
        CheckpointError: when it cannot be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            _sync(temporary)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file (into a folder that is not in place yet).

    Raises:
        CheckpointError: when JSON cannot hold the value.
    """
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be written as JSON: {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: naming the file, when it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", "the checkpoint is not complete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "take another checkpoint") from None


def write_tensors(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors by name; those that are one tensor under several names are written once.

    Raises:
        CheckpointError: for an entry that is not a tensor.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name} in the state is a {type(value).__name__}, not a tensor")
        value = value.detach()
        key = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
        tensors[name] = (value if whole else value.clone(memory_format=torch.contiguous_format)).cpu()
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt", _ALIASES: json.dumps(aliases)})
    path.chmod(mode)  # safetensors keeps its files to the owner


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, onto the CPU.

    Raises:
        CheckpointError: naming the file, when it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "the checkpoint is not complete")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            aliases = json.loads((file.metadata() or {}).get(_ALIASES, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "take another checkpoint") from None
    return {**tensors, **{name: tensors[kept] for name, kept in aliases.items()}}
