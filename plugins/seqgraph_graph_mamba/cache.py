"""Preprocessed arrays on disk, named by a hash of what they were made from."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """``$SEQGRAPH_CACHE``, or the platform's place for caches."""
    chosen = os.environ.get("SEQGRAPH_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "seqgraph"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "seqgraph" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "seqgraph"


def content_key(*parts: bytes | str | Path) -> str:
    """A hash of files (by their bytes), texts and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def cached(key: str, compute: Callable[[], Arrays], *, use: bool = True) -> Arrays:
    """The arrays under a key, computed and stored when they are not there or cannot be read.

    A file appears under its name only when it is whole. A full or read-only disk costs the cache, not the result.
    """
    path = cache_folder() / "graph-mamba" / f"{key}.npz"
    if use and path.is_file():
        try:
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            pass  # damaged: made anew below
    arrays = compute()
    if use:
        _store(path, arrays)
    return arrays


def _store(path: Path, arrays: Arrays) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        from rich.console import Console

        message = f"not cached in {path.parent}: {error}"
        Console(stderr=True).print(message, style="yellow", markup=False, highlight=False)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
