"""Reads what ``seqgraph embed`` and fair-esm's ``esm-extract`` have written."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from seqgraph.errors import ConfigError, DataError
from seqgraph.train.checkpoint import read_json
from seqgraph_lc_plm.folder import INDEX, MANIFEST
from seqgraph_lc_plm.writers import KEYS, Include

_VECTORS: tuple[Include, ...] = ("mean", "bos")


@dataclass(frozen=True)
class Vectors:
    """One vector a protein.

    Attributes:
        labels: names, (N,).
        values: (N, D) float32.
        layer: which layer they are of.
    """

    labels: list[str]
    values: np.ndarray
    layer: int


def read_vectors(folder: str | Path, *, kind: Include = "mean", layer: int | None = None) -> Vectors:
    """The vectors of a folder of embeddings, in the order of the input; of esm-extract's folder in that of the names.

    Args:
        folder: of ``seqgraph embed`` in any format, or of ``esm-extract``.
        kind: "mean" or "bos".
        layer: its number from 0; the last there is by default.

    Raises:
        DataError: for a folder that is no such thing, is unfinished or damaged.
        ConfigError: for a kind or layer that it does not hold.
    """
    folder = Path(folder)
    if kind not in _VECTORS:
        raise ConfigError(f"{kind!r} is not one vector a protein", "choose mean or bos")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", "make it: seqgraph embed MODEL FASTA OUT")
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        layer = _choose(kind, layer, manifest["layers"] if kind in manifest["include"] else [], folder)
        read = _shards if manifest["shard_bytes"] else _files
        labels, rows = read(folder, manifest["format"], kind, layer)
    else:
        labels, rows, layer = _extracted(folder, kind, layer)
    return Vectors(labels, np.stack(rows).astype(np.float32), layer)


def _choose(kind: Include, layer: int | None, there: list[int], folder: Path) -> int:
    if not there:
        raise ConfigError(f"{folder} has no {kind} embeddings", f"embed once more with --include {kind}")
    if layer is None:
        return max(there)
    if layer not in there:
        raise ConfigError(f"{folder} has no layer {layer}", f"there are {', '.join(map(str, there))}")
    return layer


def _index(folder: Path) -> Iterator[dict[str, str]]:
    with (folder / INDEX).open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _files(folder: Path, format: str, kind: Include, layer: int) -> tuple[list[str], list[np.ndarray]]:
    labels, rows = [], []
    for row in _index(folder):
        labels.append(row["label"])
        rows.append(_vectors(folder, row["name"], format, kind, layer))
    return labels, rows


def _shards(folder: Path, format: str, kind: Include, layer: int) -> tuple[list[str], list[np.ndarray]]:
    labels: list[str] = []
    rows: list[np.ndarray] = []
    held, part = np.empty(0), ""
    for row in _index(folder):
        if row["name"] != part:
            part = row["name"]
            held = _vectors(folder, part, format, kind, layer)
        labels.append(row["label"])
        rows.append(held[int(row["row"])])
    return labels, rows


def _vectors(folder: Path, name: str, format: str, kind: Include, layer: int) -> np.ndarray:
    """(D,) of a protein's file or (N, D) of a shard, in float32 where numpy lacks the dtype."""
    key = f"{KEYS[kind]}.{layer}"
    path = folder / (f"{name}.{kind}.{layer}.npy" if format == "npy" else f"{name}.{format}")
    try:
        if format == "npy":
            return np.load(path)
        if format == "h5":
            import h5py

            with h5py.File(path) as file:
                return file[key.replace(".", "/")][:]
        if format == "safetensors":
            with safe_open(path, "pt") as file:
                return file.get_tensor(key).float().numpy()
        return _unpickle(path)[KEYS[kind]][layer].float().numpy()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}", "embed once more") from None


def _extracted(folder: Path, kind: Include, layer: int | None) -> tuple[list[str], list[np.ndarray], int]:
    files = sorted(folder.glob("*.pt"))
    if not files:
        raise DataError(f"{folder} holds no embeddings", "is it finished? make it: seqgraph embed MODEL FASTA OUT")
    labels, rows = [], []
    for path in files:
        content = _unpickle(path)
        there = content.get(KEYS[kind], {}) if isinstance(content, dict) else {}
        layer = _choose(kind, layer, sorted(there), path)
        labels.append(str(content.get("label", path.stem)))
        rows.append(there[layer].float().numpy())
    assert layer is not None
    return labels, rows, layer


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read: {(str(error).splitlines() or ['empty'])[0]}", "embed again") from None
