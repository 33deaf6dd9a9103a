"""Weights that other software wrote: read as they are, handed to the plugin whose layout they have."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from seqgraph.errors import CheckpointError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_NAMES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_SHOWN = 20
_AGAIN = "download it again: the file is not whole"


@dataclass(frozen=True)
class Weights:
    """Tensors by the names that other software gave them.

    Attributes:
        file: where they are.
        config: ``config.json`` beside them; empty where there is none.
        tensors: by name, on the CPU, memory-mapped where the file allows; a name that the file declares to be another
            one's alias is there too.
        aliases: name -> the name whose tensor it is, as the file declares.
    """

    file: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str]


def locate(path: Path) -> Path | None:
    """The file of foreign weights that a path means: itself, or the one in a folder; None where there is none.

    A folder that seqgraph wrote, whole or not, is not foreign, nor is a file in it.
    """
    if path.is_file():
        return path if path.suffix in SUFFIXES and not _ours(path.parent) else None
    if not path.is_dir() or _ours(path):
        return None
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    single = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    return single[0] if len(single) == 1 else None


def _ours(folder: Path) -> bool:
    """Whether seqgraph wrote a folder: by the files that it alone writes."""
    return (folder / "assets.json").is_file() or (folder / "MODEL_CARD.md").is_file()


def load(file: Path) -> nn.Module:
    """The model of foreign weights, made by the first plugin that knows their layout.

    Raises:
        CheckpointError: when the file is damaged, no plugin knows its layout, or its tensors do not fit.
    """
    from seqgraph.plugin import manager

    weights = read(file)
    formats = [entry for entry in manager.entries("formats") if entry.status == "ok"]
    for entry in formats:
        model = manager.resolve(entry.descriptor)(weights)
        if model is not None:
            return model
    names = ", ".join(sorted(weights.tensors)[:4])
    raise CheckpointError(
        f"{file} holds {len(weights.tensors)} tensors ({names}, ...) in a layout that no plugin knows",
        f"known are {', '.join(entry.descriptor.name for entry in formats) or 'none'}; see: seqgraph formats",
    )


# ---------------------------------------------------------------------- reading
def read(file: Path) -> Weights:
    """Read a file of tensors, or the several that an index names, and ``config.json`` beside it.

    Pickles are read with ``weights_only``: nothing in them is run.

    Raises:
        CheckpointError: naming the file that is missing, damaged, a pointer of Git LFS or no file of tensors.
    """
    config = _json(file.with_name("config.json")) if file.with_name("config.json").is_file() else {}
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for part in _parts(file):
        if not part.is_file():
            raise CheckpointError(f"{part} is missing; {file.name} names it", "download it too")
        _refuse_pointer(part)
        if part.suffix == ".safetensors":
            found, declared = _read_safetensors(part)
            metadata.update(declared)
        else:
            found, declared = _read_pickle(part)
            metadata.update(declared)
        tensors.update(found)
    # safetensors' save_model writes {name left out: name kept} into the metadata, among other things
    aliases = {name: kept for name, kept in metadata.items() if kept in tensors}
    tensors = {**{name: tensors[kept] for name, kept in aliases.items()}, **tensors}
    if not tensors:
        raise CheckpointError(f"{file} holds no tensors")
    return Weights(file, config, tensors, aliases)


def _parts(file: Path) -> list[Path]:
    if not file.name.endswith(".index.json"):
        return [file]
    _refuse_pointer(file)
    names = _json(file).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{file} has no weight_map", _AGAIN)
    return [file.with_name(Path(name).name) for name in sorted(set(map(str, names.values())))]


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}", _AGAIN) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is damaged: no JSON object", _AGAIN)
    return found


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{file} is a pointer of Git LFS, not the file", "in its repository: git lfs pull")


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (it is no mapping)
            metadata = content.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}", _AGAIN) from None
    return tensors, metadata


def _read_pickle(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # fair-esm's files hold one
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is damaged, or holds more than tensors: {(str(error).splitlines() or [''])[0]}",
            "only plain tensors are read from a pickle; save its state_dict as safetensors",
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {(str(error).splitlines() or [''])[0]}", _AGAIN) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not tensors by name", "save its state_dict")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    first: dict[tuple[int, torch.Size], str] = {}
    kept = {name: first.setdefault((value.data_ptr(), value.shape), name) for name, value in tensors.items()}
    return tensors, {name: other for name, other in kept.items() if other != name}


# ---------------------------------------------------------------------- filling
def fill(model: nn.Module, weights: Weights, source: Callable[[str], str], *, cast: torch.dtype | None = None) -> None:
    """Give a model of the "meta" device its parameters, strictly; it must have no buffers.

    Args:
        model: its parameters that are one tensor under several names stay one.
        weights: where they come from.
        source: a parameter's name in the model -> its name in the weights. Tensors declared aliases of used ones
            count as used.
        cast: dtype of the parameters; as stored by default.

    Raises:
        CheckpointError: with the names (in the weights) that are missing, left over or of another shape.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    names = {name: source(name) for name in own}
    used = set(names.values())
    kept = {weights.aliases.get(name, name) for name in used}
    tensors = weights.tensors
    missing = sorted(used - tensors.keys())
    left = sorted(name for name in tensors.keys() - used if weights.aliases.get(name, name) not in kept)
    shapes = sorted(
        f"{there} {tuple(tensors[there].shape)} for {tuple(own[name].shape)}"
        for name, there in names.items()
        if there in tensors and tensors[there].shape != own[name].shape
    )
    wrong = [
        f"{what}: {', '.join(found[:_SHOWN])}{f' and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''}"
        for what, found in (("missing", missing), ("left over", left), ("of another shape", shapes))
        if found
    ]
    if wrong:
        raise CheckpointError(
            f"{weights.file} does not fit a {type(model).__name__}; tensors {'; '.join(wrong)}",
            "is the file whole, and of the layout that its names say?",
        )
    filled: dict[int, nn.Parameter] = {}
    for name, old in own.items():
        if id(old) not in filled:
            value = tensors[names[name]]
            new = nn.Parameter(value if cast is None else value.to(cast), requires_grad=old.requires_grad)
            vars(new).update(vars(old))
            filled[id(old)] = new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, filled[id(old)])
