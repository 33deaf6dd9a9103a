"""Puts tables and curves into one HTML file that needs nothing else."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from seqgraph.errors import PluginError
from seqgraph.report.collect import Run, collect, differences
from seqgraph.train.checkpoint import write_file


def write_report(folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write a page that compares runs: results with mean ± std and the trivial predictor, curves, differences.

    Args:
        folders: runs, finished or not.
        output: the HTML file; replaced if it is there.

    Raises:
        PluginError: when the extra ``report`` is not installed.
        CheckpointError: when a folder is not a run, or the page cannot be written.
    """
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise PluginError(f"a report needs {' and '.join(missing)}", 'pip install "seqgraph[report]"')
    import jinja2

    runs = [collect(Path(folder)) for folder in folders]
    template = (resources.files("seqgraph.report") / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(template).render(
        groups=_groups(runs),
        runs=runs,
        differences=differences(runs) if len(runs) > 1 else {},
        configs=[json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs],
    )
    output = Path(output)
    write_file(output, page)
    return output


def _groups(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Runs on the same data and task belong in one table and one set of curves."""
    keys = list(dict.fromkeys(_key(run) for run in runs))
    return [_group(key, [run for run in runs if _key(run) == key]) for key in keys]


def _key(run: Run) -> tuple[str, str, str]:
    return run.config["data"]["name"], run.config["task"]["name"], run.facts.get("data", "")


def _group(key: tuple[str, str, str], runs: list[Run]) -> dict[str, Any]:
    from seqgraph.report.curves import curve

    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    logged = list(dict.fromkeys(name for run in runs for rows in run.logs for row in rows for name in row))
    curves = [curve(runs, ["train_loss", "valid_loss"], "loss")]
    curves += [
        curve(runs, [name], f"validation {name.removeprefix('valid_')}")
        for name in logged
        if name.startswith("valid_") and name != "valid_loss"
    ]
    return {
        "data": key[0],
        "task": key[1],
        "fingerprint": key[2],
        "metrics": metrics,
        "rows": [_row(run, metrics) for run in runs],
        "curves": [text for text in curves if text],
    }


def _row(run: Run, metrics: Sequence[str]) -> dict[str, Any]:
    epochs = [str(r["best_epoch"]) for r in run.results if r.get("best_epoch")]
    return {
        "name": run.name,
        "model": run.config["model"]["name"],
        "parameters": f"{run.facts['parameters']:,}" if "parameters" in run.facts else "",
        "seeds": ", ".join(str(seed) for seed in run.seeds),
        "epochs": ", ".join(epochs) if run.finished else "not finished",
        "test": [_number(run.mean_std("test", name)) for name in metrics],
        "baseline": [_number(run.mean_std("baseline", name)) for name in metrics],
    }


def _number(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    mean, std = value
    # A trivial predictor is the same for every seed.
    return f"{mean:.4g}" if not std else f"{mean:.4g} ± {std:.2g}"
