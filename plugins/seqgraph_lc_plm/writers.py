"""The files of ``seqgraph embed``: one a protein, or one a part."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from seqgraph.errors import ConfigError, PluginError
from seqgraph_lc_plm.folder import Folder

Include = Literal["mean", "per_tok", "bos", "logits", "contacts"]
Format = Literal["pt", "safetensors", "h5", "npy"]
Key = tuple[Include, int | None]
"""What a tensor is, and of which layer; None for what belongs to no layer."""

# what --include calls it -> what the files call it, as esm-extract does
KEYS: dict[Include, str] = {
    "mean": "mean_representations",
    "per_tok": "representations",
    "bos": "bos_representations",
    "logits": "logits",
    "contacts": "contacts",
}
LAYERED = ("mean", "per_tok", "bos")
RAGGED = ("per_tok", "logits")
OFFSETS = "cu_seqlens"
FORMATS: tuple[Format, ...] = ("pt", "safetensors", "h5", "npy")
SHARD = "part-{:06d}"


def check_format(name: Format, dtype: torch.dtype, sharded: bool) -> None:
    """Raise for a format that is not there, or cannot hold what it is asked to hold."""
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}", f"one of {', '.join(FORMATS)}")
    if dtype == torch.bfloat16 and name in ("h5", "npy"):
        raise ConfigError(f"{name} files cannot hold bfloat16", "--dtype float16, or --format safetensors or pt")
    if name == "h5":
        if not sharded:
            raise ConfigError("h5 files hold many proteins each", "give --shard-bytes, for example 512M")
        _h5py()


class Writer(ABC):
    """Writes the results of one part.

    Args:
        folder: where.
        format: of the files.
        part: number of the part.
    """

    def __init__(self, folder: Folder, format: Format, part: int) -> None:
        self.folder, self.format, self.part = folder, format, part

    @abstractmethod
    def add(self, place: int, name: str, label: str, result: dict[Key, Tensor]) -> None:
        """Take the results of the part's protein ``place``: tensors on the CPU, (D,), (L, D), (L, 33) or (L, L)."""

    @abstractmethod
    def close(self) -> None:
        """Put all files of the part in their places."""


class OneEach(Writer):
    """One file a protein: esm-extract's dictionary (pt), the same flat ("key.layer", safetensors), or arrays (npy)."""

    def add(self, place: int, name: str, label: str, result: dict[Key, Tensor]) -> None:
        if self.format == "npy":
            for (kind, layer), value in result.items():
                _save_npy(self.folder, self.folder.path / f"{name}.{_dotted(kind, layer)}.npy", value)
            return
        # Copies: a slice would take the whole batch into the file.
        result = {key: value.clone() for key, value in result.items()}
        target = self.folder.path / f"{name}.{self.format}"
        if self.format == "pt":
            _save_pt(self.folder, target, {"label": label, **_nested(result)})
        else:
            _save_safetensors(self.folder, target, _flat(result), {"label": label})

    def close(self) -> None:
        """Every file is in its place already."""


class Shard(Writer):
    """One file a part: what is one vector a protein stacked, (N, D); what is one row a residue joined, (T, D).

    ``cu_seqlens`` (N + 1,) int64 says where each protein's rows begin; ``labels`` are beside it, in the order of the
    input. For npy they are in the index alone.
    """

    def __init__(self, folder: Folder, format: Format, part: int) -> None:
        super().__init__(folder, format, part)
        self._found: dict[int, tuple[str, dict[Key, Tensor]]] = {}

    def add(self, place: int, name: str, label: str, result: dict[Key, Tensor]) -> None:
        self._found[place] = (label, result)

    def close(self) -> None:
        ordered = [self._found[place] for place in sorted(self._found)]
        labels = [label for label, _ in ordered]
        tensors: dict[Key, Tensor] = {}
        lengths: list[int] = []
        for key in ordered[0][1]:
            values = [result[key] for _, result in ordered]
            if key[0] in RAGGED:
                lengths = [len(value) for value in values]
                tensors[key] = torch.cat(values)
            else:
                tensors[key] = torch.stack(values)
        offsets = torch.tensor([0, *lengths]).cumsum(0) if lengths else None
        self._save(labels, tensors, offsets)
        self._found.clear()

    def _save(self, labels: Sequence[str], tensors: dict[Key, Tensor], offsets: Tensor | None) -> None:
        stem = self.folder.path / SHARD.format(self.part)
        extra = {} if offsets is None else {OFFSETS: offsets}
        if self.format == "npy":
            for (kind, layer), value in tensors.items():
                _save_npy(self.folder, stem.with_name(f"{stem.name}.{_dotted(kind, layer)}.npy"), value)
            for name, value in extra.items():
                _save_npy(self.folder, stem.with_name(f"{stem.name}.{name}.npy"), value)
        elif self.format == "pt":
            _save_pt(self.folder, stem.with_suffix(".pt"), {"labels": list(labels), **_nested(tensors), **extra})
        elif self.format == "safetensors":
            about = {"labels": json.dumps(list(labels), ensure_ascii=False)}
            _save_safetensors(self.folder, stem.with_suffix(".safetensors"), {**_flat(tensors), **extra}, about)
        else:
            _save_h5(self.folder, stem.with_suffix(".h5"), {**_flat(tensors), **extra}, labels)


def _dotted(kind: Include, layer: int | None) -> str:
    return kind if layer is None else f"{kind}.{layer}"


def _nested(result: dict[Key, Tensor]) -> dict[str, Any]:
    """esm-extract's form: {"representations": {layer: tensor}, "logits": tensor}."""
    nested: dict[str, Any] = {}
    for (kind, layer), value in result.items():
        if layer is None:
            nested[KEYS[kind]] = value
        else:
            nested.setdefault(KEYS[kind], {})[layer] = value
    return nested


def _flat(result: dict[Key, Tensor]) -> dict[str, Tensor]:
    return {KEYS[kind] if i is None else f"{KEYS[kind]}.{i}": value for (kind, i), value in result.items()}


def _save_npy(folder: Folder, target: Path, value: Tensor) -> None:
    with folder.staged(target) as path, path.open("wb") as file:
        np.save(file, value.numpy())


def _save_pt(folder: Folder, target: Path, content: dict[str, Any]) -> None:
    # Given a path, torch would write the temporary name into the file.
    with folder.staged(target) as path, path.open("wb") as file:
        torch.save(content, file)


def _save_safetensors(folder: Folder, target: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    with folder.staged(target) as path:
        path.touch()
        mode = path.stat().st_mode
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=about)
        path.chmod(mode)  # safetensors keeps its files to the owner


def _save_h5(folder: Folder, target: Path, tensors: dict[str, Tensor], labels: Sequence[str]) -> None:
    h5py = _h5py()
    with folder.staged(target) as path, h5py.File(path, "w") as file:
        file.create_dataset("labels", data=list(labels), dtype=h5py.string_dtype(), track_times=False)
        for name, value in tensors.items():
            file.create_dataset(name.replace(".", "/"), data=value.numpy(), track_times=False)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise PluginError("h5 files need h5py", "pip install h5py, or --format safetensors") from None
    return h5py
