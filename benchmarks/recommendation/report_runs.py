"""The runs and comparisons that are kept beside the page, and what new folders of train_gpu.py bring to them."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqgraph_mamba4rec.bootstrap import paired_bootstrap
from seqgraph_mamba4rec.ranking import KINDS, Kind, gain

SETS = {
    "ml-1m": "MovieLens-1M (6,040 users, 3,416 films)",
    "beauty": "Amazon Beauty (22,363 users, 12,101 items)",
    "sports": "Amazon Sports and Outdoors (35,598 users, 18,357 items)",
    "toys": "Amazon Toys and Games (19,412 users, 11,924 items)",
    "video-games": "Amazon Video Games (24,303 users, 10,672 items)",
}
TRIED = ("tune*", "all", "ssd", "equal*", "loss", "wide", "wide-2", "table", "table-2", "table-3")
"""Groups of trials: one seed each, of which the best on validation is shown."""
SETTINGS = ("strong", "deep", "item-dropout", "seen", "own", "best", "all", "faithful")
"""In which Mamba4Rec is compared with SASRec."""
OTHERS = (
    ("ml-1m", "SSD mixer less S6, deep", ("mamba4rec", "final-ssd"), ("mamba4rec", "deep")),
    ("ml-1m", "Mamba4Rec, deep, less LRURec", ("mamba4rec", "deep"), ("lrurec", "strong")),
    ("ml-1m", "Mamba4Rec, deep, less cloze", ("mamba4rec", "deep"), ("bimamba4rec", "strong")),
    ("ml-1m", "Mamba4Rec, deep, less GRU4Rec", ("mamba4rec", "deep"), ("gru4rec", "strong")),
    ("beauty", "SSD mixer less LRURec", ("mamba4rec", "final-ssd"), ("lrurec", "strong")),
    ("beauty", "SSD mixer less cloze", ("mamba4rec", "final-ssd"), ("bimamba4rec", "strong")),
    ("beauty", "SSD mixer less GRU4Rec", ("mamba4rec", "final-ssd"), ("gru4rec", "strong")),
    ("beauty", "wide S6 less narrow SSD", ("mamba4rec", "item-dropout"), ("mamba4rec", "final-ssd")),
)
"""Data, what is compared, and model and setting of both sides."""

DIGITS = 7
Rows = list[dict[str, Any]]
Runs = dict[str, dict[str, Any]]
Ranks = dict[str, np.ndarray]


def read(path: Path, folders: list[Path], drop: str = "") -> tuple[Runs, Ranks, set[str]]:
    """Runs by name, ranks by run and protocol, and which of the runs in ``path`` are others now.

    What is in ``path`` comes first; of a run that several have, the last counts. ``drop`` matches names that are left
    out of all but the last folder.
    """
    before: Runs = {row["name"]: row for row in rows_of(path)}
    runs, ranks = dict(before), Ranks()
    for folder in folders:
        new = {row["name"]: kept(row) for row in json.loads((folder / "runs.json").read_text())}
        gone = {name for name in runs if name in new or (drop and folder == folders[-1] and re.search(drop, name))}
        ranks = {name: found for name, found in ranks.items() if name.rpartition("/")[0] not in gone}
        runs = {name: row for name, row in runs.items() if name in new or name not in gone} | new
        with np.load(folder / "ranks.npz") as found:
            ranks |= {name: found[name] for name in found}
    return runs, ranks, {name for name, row in before.items() if runs.get(name) != row}


def rows_of(path: Path) -> Rows:
    """A list in JSON, or nothing."""
    return json.loads(path.read_text()) if path.exists() else []


def write(path: Path, rows: Rows) -> None:
    """A row a line."""
    lines = ",\n".join(map(json.dumps, rows))
    path.write_text(f"[\n{lines}\n]\n")


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """A run in a line: what it was told, how long it had, what came out, and the figure that picked its epoch."""
    facts = ("name", "words", "data", "parameters", "cut", "epochs", "best_epoch", "steps", "seconds", "wall", "device")
    task = row["config"]["task"]
    k = task["k"] if isinstance(task["k"], int) else task["k"][0]
    by = f"{task['select_metric']}@{k}" + ("-unseen" if task["select_by"] == "unseen" else "")
    figures = {
        which: {name: round(value, DIGITS) for name, value in row[which].items() if "@10" in name or name == by}
        for which in ("valid", "test")
    }
    return {name: row[name] for name in facts} | {"versions": row["versions"], "picked_by": by} | figures


def of(runs: Runs, data: str, model: str, kind: str) -> Rows:
    """The runs of one row: a seed each, or the best trial; of the strong setting the trials while nothing is final."""
    found = [row for name, row in sorted(runs.items()) if name.startswith(f"{data}/{model}/")]
    if kind == "best":  # of what had several candidates, by the mean of their validation figures
        several = [rows for one in ("deep", "item-dropout", "strong", "own") if (rows := of(runs, data, model, one))]
        return max(several, key=lambda rows: statistics.mean(map(picked, rows))) if len(several) > 1 else []
    group = [row for row in found if group_of(row) == ("final" if kind == "strong" else kind)]
    if (kind == "strong" and not group) or kind in TRIED or kind == "tune":
        group = [row for row in found if fnmatch(group_of(row), "tune*" if kind in ("strong", "tune") else kind)]
        return [max(group, key=picked)] if group else []
    return group


def group_of(row: dict[str, Any]) -> str:
    """The part of a run's name that says its setting."""
    return str(row["name"].split("/")[2])


def picked(row: dict[str, Any]) -> float:
    """The validation figure that picked the run's epoch."""
    return float(row["valid"][row["picked_by"]])


def pairs(runs: Runs) -> Iterator[tuple[str, str, tuple[list[str], list[str]]]]:
    """Data, setting, and the names of Mamba4Rec's and SASRec's runs in it; then those of ``OTHERS``."""
    shown: list[tuple[list[str], list[str]]] = []
    for data, setting in product(SETS, SETTINGS):
        mine, other = ([row["name"] for row in of(runs, data, m, setting)] for m in ("mamba4rec", "sasrec"))
        if mine and other and (mine, other) not in shown:  # the best of both may be a setting that both have
            shown.append((mine, other))
            yield data, setting, (mine, other)
    for data, what, *both in OTHERS:
        first, second = ([row["name"] for row in of(runs, data, *side)] for side in both)
        if first and second:
            yield data, what, (first, second)


def compared(runs: Runs, ranks: Ranks, before: Rows, changed: set[str]) -> tuple[Rows, dict[str, list[str]]]:
    """The first less the second of every pair, and the runs without ranks of the pairs that could not be compared.

    A comparison of ``before`` stays while it is of the same runs and none of them is among ``changed``.
    """
    known = {_key(row): row for row in before if not changed & {*row["first"], *row["second"]}}
    rows: Rows = []
    missing: dict[str, list[str]] = {}
    for which, (data, setting, names) in product(("all", "unseen"), list(pairs(runs))):
        for kind in KINDS:
            row = dict(zip(_KEY, (data, which, f"{kind}@10", *names), strict=True))
            if _key(row) in known:
                rows.append(known[_key(row)] | {"setting": setting})
            elif without := [name for name in chain(*names) if f"{name}/{which}" not in ranks]:
                missing[f"{data} {setting}"] = without
            else:
                i = paired_bootstrap(*(_worth(side, ranks, which, kind) for side in names))
                figures = {k: round(getattr(i, k), DIGITS) for k in ("a", "b", "difference", "low", "high")}
                p = "< .001" if i.p < 0.001 else f"{i.p:.3f}"
                rows.append({"setting": setting} | row | figures | {"p": p, "seeds": [len(side) for side in names]})
    return rows, missing


_KEY = ("data", "protocol", "metric", "first", "second")


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row[name] for name in _KEY])


def _worth(names: list[str], ranks: Ranks, which: str, kind: Kind) -> np.ndarray:
    """Each user's share in a metric at 10, mean over the runs, (n,)."""
    return np.mean(
        [gain(torch.from_numpy(ranks[f"{name}/{which}"].astype(np.int64)), kind, 10) for name in names], axis=0
    )
