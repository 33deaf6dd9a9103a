"""Other people's pickles and ``.pt`` files, read by unpicklers that know arrays and tensors and can run nothing."""

from __future__ import annotations

import collections
import io
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from seqgraph.errors import DataError


class _Sparse:
    """Stands for scipy's ``csr_matrix``, whose state is then checked before one is made."""


def _reconstructor(cls: type, base: type, state: Any) -> Any:
    if cls is not _Sparse:
        raise pickle.UnpicklingError(f"it makes a {cls.__name__} in an unusual way")
    return _Sparse()


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numpy._core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("scipy.sparse.csr", "csr_matrix"): _Sparse,
    ("scipy.sparse._csr", "csr_matrix"): _Sparse,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _Unpickler(pickle.Unpickler):
    """Knows numpy arrays, scipy's csr matrices, torch tensors and plain containers; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _NAMES[module, name]


def read_pickle(path: Path, hint: str, *, encoding: str = "ASCII") -> Any:
    """What a pickle holds, if it holds arrays, tensors and plain containers alone; nothing in it is executed.

    Args:
        path: the file.
        hint: what the file should be, for the error.
        encoding: of text; "latin1" for arrays of Python 2.

    Raises:
        DataError: for anything else in the file.
    """
    with _described(path, "pickle", hint), path.open("rb") as file:
        return _Unpickler(file, encoding=encoding).load()


def read_csr(path: Path, hint: str) -> sp.csr_matrix:
    """A pickled csr matrix, its indices checked.

    Raises:
        DataError: for anything else in the file.
    """
    held = read_pickle(path, hint, encoding="latin1")
    with _described(path, "pickled csr matrix", hint):
        if not isinstance(held, _Sparse):
            raise TypeError(f"it holds a {type(held).__name__}")
        state = vars(held)
        made = sp.csr_matrix((state["data"], state["indices"], state["indptr"]), shape=state["_shape"])
        made.check_format(full_check=True)
        return made


def read_torch(path: Path, hint: str) -> Any:
    """What ``torch.save`` wrote, by torch's own restricted reader: tensors, plain containers, and PyG's ``Data``.

    Raises:
        DataError: for anything else in the file.
    """
    from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import EdgeStorage, GlobalStorage, NodeStorage

    known = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage, NodeStorage, EdgeStorage]
    with _described(path, "file of tensors", hint), torch.serialization.safe_globals(known):
        return torch.load(path, weights_only=True, map_location="cpu")


@contextmanager
def _described(path: Path, what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a hostile or damaged file may raise anything
        raise DataError(f"{path} is not a {what} that can be read: {_reason(error)}", hint) from error


def _reason(error: Exception) -> str:
    """What was wrong, in a line; of torch's words not the advice to read the file without restriction."""
    said = str(error).strip() or type(error).__name__
    if "Weights only load failed" not in said:
        return said.splitlines()[0]
    if asked := re.search(r"GLOBAL (\S+)", said):
        return f"it asks for {asked[1]}"
    found = re.search(r"WeightsUnpickler error:\s*(.+)", said)
    return f"it is damaged, or torch.save did not write it{f' ({found[1].strip()})' if found else ''}"


def read_index_pickle(path: Path, names: Iterable[str], size: int) -> dict[str, np.ndarray]:
    """Row numbers of splits from a pickled dict of numpy arrays.

    Args:
        path: the file.
        names: keys that must be there.
        size: number of rows that the numbers index.

    Returns:
        One (n,) int64 array a name; together they name each row at most once.

    Raises:
        DataError: for anything else in the file.
    """
    hint = "it must be LRGB's splits_random_stratified_peptide.pickle"
    held = read_pickle(path, hint)
    splits = {}
    for name in names:
        index = held.get(name) if isinstance(held, dict) else None
        if not isinstance(index, np.ndarray) or index.ndim != 1 or index.dtype.kind not in "iu" or not len(index):
            raise DataError(f"{path}: {name!r} is not an array of row numbers", hint)
        if index.min() < 0 or index.max() >= size:
            raise DataError(f"{path}: {name!r} names row {index.max()} of {size}", hint)
        splits[name] = index.astype(np.int64)
    everything = np.concatenate(list(splits.values()))
    if len(np.unique(everything)) != len(everything):
        raise DataError(f"{path}: a row is in two splits", hint)
    return splits
