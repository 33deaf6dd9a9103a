"""Results of train_gpu.py: where they are, which is best, what is packed and shown."""

from __future__ import annotations

import json
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


def merged(words: list[str]) -> list[str]:
    """Preset and overrides, of each key the last."""
    last = {word.partition("=")[0]: number for number, word in enumerate(words)}
    return [word for number, word in enumerate(words) if last[word.partition("=")[0]] == number]


def finished(path: Path) -> bool:
    """Whether a run's result is there and not one that was cut."""
    return path.is_file() and not json.loads(path.read_text())["cut"]


def results(work: Path) -> list[dict[str, Any]]:
    """All results in a folder of runs, by name."""
    inner = ("config.json", "metrics.json", "assets.json", "ranks-test.json")
    paths = [p for p in sorted(work.rglob("*.json")) if p.name not in inner and p.with_suffix(".npz").is_file()]
    return [json.loads(path.read_text()) for path in paths]


def best_of(rows: list[dict[str, Any]], pattern: str) -> dict[str, Any] | None:
    """Of the groups that fit a pattern, the run with the best validation figure among those that share a first seed."""
    fit = [row for row in rows if fnmatch(row["name"].rpartition("/")[0], pattern)]
    return max(fit, key=picked, default=None)


def picked(row: dict[str, Any]) -> float:
    """The validation figure that picked a run's epoch."""
    task = row["config"]["task"]
    k = task["k"] if isinstance(task["k"], int) else task["k"][0]
    return float(row["valid"][f"{task['select_metric']}@{k}" + ("-unseen" if task["select_by"] == "unseen" else "")])


def pack(work: Path, out: Path) -> None:
    """runs.json, ranks.npz and logs.tar.gz from a folder of runs."""
    import numpy as np

    rows: list[dict[str, Any]] = []
    columns: dict[str, Any] = {}
    for row in results(work):
        try:
            with np.load(work / f"{row['name']}.npz") as ranks:
                columns |= {f"{row['name']}/{which}": ranks[which] for which in ranks}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            print(f"{row['name']}: its ranks cannot be read, left out: {error}", flush=True)
            continue
        rows.append(row)
    (out / "runs.json").write_text(json.dumps(rows, indent=0) + "\n")
    np.savez_compressed(out / "ranks.npz", **columns)
    with tarfile.open(out / "logs.tar.gz", "w:gz") as tar:
        for path in sorted(work.rglob("*")):
            inside = path.relative_to(work)
            if path.is_file() and "last" not in inside.parts and (path.name == "log.csv" or path.suffix == ".log"):
                tar.add(path, inside)


def show(rows: list[dict[str, Any]]) -> None:
    """One line a run."""
    columns = ("HR@10", "NDCG@10", "HR@10-unseen", "NDCG@10-unseen")
    print(f"{'run':38}{'epochs':>10}{'s/ep':>7}{'MiB':>7}" + "".join(f"{c:>15}" for c in ("valid", *columns)))
    for row in rows:
        epochs = f"{row['best_epoch']}/{row['epochs']}" + "*" * row["cut"]
        figures = "".join(f"{value:15.4f}" for value in (picked(row), *(row["test"][c] for c in columns)))
        print(f"{row['name']:38}{epochs:>10}{row['epoch_seconds']:7.2f}{row['peak_mib']:7}{figures}")
