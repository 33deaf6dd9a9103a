"""What RecBole needs on today's stack, and ways in and out of it. Used only when asked for.

RecBole 1.2.1 breaks in four places that matter here. ``recbole.quick_start`` imports ray, which imports
``pkg_resources`` (gone from setuptools 82 on); ``Config`` and the metrics read ``np.float_``, ``np.float`` and others
(gone from numpy 2): both are repaired inside :func:`repaired` and nowhere else. Its trainer loads checkpoints that
torch 2.6 and later refuse, as they are pickles: allowed only on request, for files that RecBole itself has just
written. Under pandas 3 it leaves missing values unfilled without a word: refused, with the pin that cures it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import DataError, PluginError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.histories import HistoryDataset
from seqgraph_mamba4rec.ranking import without_seen
from seqgraph_mamba4rec.reading import Events

# The first three are read by its Config, the others by its metrics and data sets.
_NUMPY_NAMES = {
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
    "float": np.float64,
    "int": np.int64,
}


_UNPICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def _cure() -> str:
    if sys.version_info >= (3, 12):
        return (
            "RecBole 1.2.1 cannot be installed on Python 3.12 or later (ray<=2.6.3 has no wheel for it): use Python "
            "3.11, or set data.root to a folder with ml-100k.inter"
        )
    return "pip install 'seqgraph[rec]', or set data.root to a folder with ml-100k.inter"


def ml_100k_folder() -> Path:
    """The MovieLens-100k folder inside the installed RecBole, found without importing RecBole.

    Raises:
        DataError: when RecBole, or the folder in it, is not there; with the cure for this Python version.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("ml-100k comes with RecBole, which is not installed", _cure())
    folder = Path(next(iter(spec.submodule_search_locations))) / "dataset_example" / "ml-100k"
    if not (folder / "ml-100k.inter").is_file():
        raise DataError(f"{folder}: this RecBole does not carry ml-100k.inter", _cure())
    return folder


@contextmanager
def repaired(*, unpickle: bool = False) -> Iterator[None]:
    """A context in which RecBole 1.2.1 can be imported and run under numpy 2 and setuptools 82 and later.

    Adds the numpy names that it reads, stands an empty module in for ray, and hides ``sys.argv``, which
    its ``Config`` parses. All of it is undone at the end, so whatever uses RecBole must run inside. Undone as well is
    what its SINE model does on import: it turns autograd's anomaly detection on for the whole process.

    Args:
        unpickle: let its trainer load its checkpoints, which are pickles: whoever wrote one can run anything here. For
            ``trainer.evaluate(load_best_model=True)`` and ``load_data_and_model`` on files of your own.

    Raises:
        PluginError: when RecBole is not installed, or pandas is one that it misuses.
    """
    if importlib.util.find_spec("recbole") is None:
        raise PluginError("RecBole is not installed", _cure())
    pandas = importlib.metadata.version("pandas")
    if int(pandas.partition(".")[0]) >= 3:
        raise PluginError(f"RecBole leaves missing values unfilled under pandas {pandas}", "pip install 'pandas<3'")
    added = {name: value for name, value in _NUMPY_NAMES.items() if not hasattr(np, name)}
    stubs = {} if "ray" in sys.modules else {"ray": _module("ray"), "ray.tune": _module("ray.tune")}
    argv, allowed = sys.argv, os.environ.get(_UNPICKLE)
    anomalies = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        for name, value in added.items():
            setattr(np, name, value)
        sys.modules.update(stubs)
        if stubs:
            stubs["ray"].tune = stubs["ray.tune"]  # type: ignore[attr-defined]
        sys.argv = argv[:1]
        if unpickle:
            os.environ[_UNPICKLE] = "1"
        yield
    finally:
        torch.autograd.set_detect_anomaly(*anomalies)
        sys.argv = argv
        if unpickle:
            os.environ.pop(_UNPICKLE, None)
            if allowed is not None:
                os.environ[_UNPICKLE] = allowed
        for name in added:
            vars(np).pop(name, None)
        for name, module in stubs.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    return module


def from_recbole_dataset(dataset: Any, **options: Any) -> HistoryDataset:
    """A RecBole data set, as its own files, filters and renumbering left it, as one of ours.

    Args:
        dataset: of ``recbole.data.create_dataset``, before ``data_preparation`` has cut it into prefixes.
        **options: see :class:`seqgraph_mamba4rec.histories.HistoryDataset`. The order within users is RecBole's.

    Returns:
        Our data set; its item i is RecBole's i + 1.

    Raises:
        DataError: for a data set that is cut already, or has no times.
    """
    table = dataset.inter_feat
    if not hasattr(table, "columns") or not hasattr(table, "to_numpy"):
        raise DataError("this RecBole data set is cut into prefixes already", "pass what create_dataset gives")
    fields = (dataset.uid_field, dataset.iid_field, dataset.time_field)
    if dataset.time_field not in table.columns:
        raise DataError(f"RecBole did not load {dataset.time_field!r}", "list it in load_col")
    users, items, times = (table[field].to_numpy() for field in fields)
    user_ids, item_ids = (dataset.field2id_token[field][1:].tolist() for field in fields[:2])
    place = Path(dataset.dataset_path) / dataset.dataset_name
    events = Events(
        users.astype(np.int64) - 1, items.astype(np.int64) - 1, times.astype(np.float32), user_ids, item_ids, place
    )
    return HistoryDataset(events, **options)


def rounded_times(times: np.ndarray, *, scaled: bool) -> np.ndarray:
    """Timestamps (N,) as RecBole sorts by them: rounded to fp32, and under ``normalize_all`` scaled to [0, 1] before.

    Unscaled, fp32 tells seconds since 1970 apart by 64 only. Scaled over the seven months of ml-100k, whose own
    configuration in RecBole does so, it merges events about a second apart.
    """
    if scaled:
        low, high = times.min(), times.max()
        times = (times - low) / (high - low) if high > low else np.ones_like(times)
    return times.astype(np.float32)


def evaluate_scores(
    scores: Tensor, target: Tensor, *, seen: TokenStream | None = None, k: int = 10, decimals: int = 12
) -> dict[str, float]:
    """HR, NDCG and MRR at k by RecBole's own collector and evaluator, to check ours against.

    Args:
        scores: (S, V).
        target: the right item of each row, (S,) int64.
        seen: per user, the items to take out of the ranking.
        k: length of the list.
        decimals: RecBole rounds to so many (4 by default there).

    Returns:
        {"HR@k", "NDCG@k", "MRR@k"}.

    Raises:
        PluginError: when RecBole is not installed.
    """
    with repaired():
        return _evaluate(scores, target, seen, k, decimals)


def _evaluate(scores: Tensor, target: Tensor, seen: TokenStream | None, k: int, decimals: int) -> dict[str, float]:
    from recbole.evaluator import Collector, Evaluator

    config = {
        "metrics": ["Hit", "NDCG", "MRR"],
        "topk": [k],
        "device": "cpu",
        "metric_decimal_place": decimals,
        "eval_args": {"mode": {"valid": "full", "test": "full"}},
    }
    if seen is not None:
        scores = without_seen(scores, seen)
    # RecBole's item 0 is its [PAD], which its trainer takes out of the ranking.
    padded = torch.cat([scores.new_full((len(scores), 1), -torch.inf), scores], dim=1).cpu()
    collector = Collector(config)
    collector.eval_batch_collect(padded, None, torch.arange(len(target)), target.cpu() + 1)
    result = Evaluator(config).evaluate(collector.get_data_struct())
    names = {"HR": "hit", "NDCG": "ndcg", "MRR": "mrr"}
    return {f"{ours}@{k}": float(result[f"{theirs}@{k}"]) for ours, theirs in names.items()}


_KEYS = (
    ("item_embedding.", "item_embedding."),
    ("LayerNorm.", "norm."),
    ("mamba_layers.", "layers."),
    (".mamba.", ".mixer."),
    (".ffn.LayerNorm.", ".ffn.norm."),
    (".LayerNorm.", ".norm."),
)


def from_recbole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a Mamba4Rec trained with the authors' RecBole code, under our names.

    Row 0 of their item embedding, ``[PAD]``, is dropped: their item i is our i - 1. Load the checkpoint with
    ``torch.load`` yourself (it is a pickle: only from a source you trust) and pass its ``"state_dict"``.
    """
    renamed = {}
    for key, value in state.items():
        for theirs, ours in _KEYS:
            key = ours + key.removeprefix(theirs) if key.startswith(theirs) else key
            key = key.replace(theirs, ours) if theirs.startswith(".") else key
        renamed[key] = value
    renamed["item_embedding.weight"] = renamed["item_embedding.weight"][1:]
    return renamed
