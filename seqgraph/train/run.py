"""From a run configuration to results: one run a seed, a summary over them, and evaluation afterwards."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from seqgraph.config import RunConfig, arguments, build_part, load_config
from seqgraph.errors import CheckpointError, ConfigError
from seqgraph.train import checkpoint
from seqgraph.train.batching import token_batches
from seqgraph.train.console import Console
from seqgraph.train.evaluation import evaluate_task
from seqgraph.train.state import Interrupted, seed_everything
from seqgraph.train.store import RunFolder
from seqgraph.train.task import Dataset, Task
from seqgraph.train.weights import start_from

SUMMARY = "summary.json"


@dataclass(frozen=True)
class RunResult:
    """What a training gave.

    Attributes:
        folder: the run's folder; one seed: with ``best`` and ``last``; several: with ``seed-0`` and so on.
        seeds: the seeds.
        metrics: test metrics at the best epoch, one dict a seed.
        mean: their mean over the seeds.
        std: their standard deviation (n - 1); empty for one seed.
        baseline: test metrics of the trivial predictor.
    """

    folder: Path
    seeds: tuple[int, ...]
    metrics: tuple[dict[str, float], ...]
    mean: dict[str, float]
    std: dict[str, float]
    baseline: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "folder": str(self.folder),
            "seeds": list(self.seeds),
            "metrics": list(self.metrics),
            "mean": self.mean,
            "std": self.std,
            "baseline": self.baseline,
        }


def train(
    config: RunConfig | str | Path | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    stop_after: int | None = None,
) -> RunResult:
    """Train what a configuration describes, once a seed, and test each at its best epoch.

    Args:
        config: a configuration, or what :func:`seqgraph.config.load_config` reads.
        output: the run's folder; None for ``runs/`` and the name of the preset, file or model.
        resume: go on with the run that is in the folder, exactly where it stopped.
        quiet: print nothing.
        stop_after: stop after so many steps of the optimiser in this call, as Ctrl-C does.

    Returns:
        The results.

    Raises:
        ConfigError: for a wrong configuration, or a folder that is in use.
        UserError: for bad data, a full disk, a loss that is not finite.
        Interrupted: after Ctrl-C, SIGTERM or ``stop_after``; the state is saved and can be resumed.
    """
    whole = load_config(config)
    folder = Path(output) if output is not None else default_output(config)
    if _first():  # the others may come when the first has begun to write
        check_folder(folder, resume)
    console = Console(quiet or not _first())
    seeds = whole.seed
    seed_everything(seeds[0])
    data = build_data(whole)
    results = []
    for seed in seeds:
        one = whole.model_copy(update={"seed": [seed]})
        inner = folder if len(seeds) == 1 else folder / f"seed-{seed}"
        try:
            results.append(_train_one(one, data, seed, inner, resume, console, stop_after))
        except Interrupted as stop:
            raise Interrupted(folder, stop.step) from None
        finally:
            _write_parent(folder, whole, inner)
    summary = _summary(folder, seeds, results)
    if len(seeds) > 1:
        if _first():
            checkpoint.write_file(folder / SUMMARY, json.dumps(summary.to_json(), indent=1) + "\n")
        console.table(f"\n{len(seeds)} seeds, test", *_summary_table(summary))
    return summary


def evaluate(run: str | Path, split: str = "test", *, accelerator: str = "auto") -> dict[str, float]:
    """Metrics of a run's best checkpoint on one split.

    Args:
        run: a run, or a checkpoint folder.
        split: "train", "valid" or "test".
        accelerator: "auto", "cpu" or "gpu".

    Returns:
        The metrics by name.

    Raises:
        CheckpointError: when there is no whole checkpoint of a run.
        ConfigError: for another split.
    """
    return evaluate_on(run, split, accelerator=accelerator)[0]


def evaluate_on(
    run: str | Path, split: str = "test", *, accelerator: str = "auto"
) -> tuple[dict[str, float], str, str]:
    """What :func:`evaluate` returns, the fingerprint of the data as they are read now, and of those trained on."""
    if split not in ("train", "valid", "test"):
        raise ConfigError(f"there is no split {split!r}", "the splits are train, valid and test")
    folder = checkpoint.find(run)
    saved = checkpoint.read_config(folder)
    if "run" not in saved:
        raise CheckpointError(f"{folder} was not written by a run", "it has no data set to be evaluated on")
    config = load_config(saved["run"], [f"train.accelerator={accelerator}", "train.strategy=auto", "train.devices=1"])
    seed_everything(config.seed[0])
    data = build_data(config)
    task, _ = build_task(config, data)
    trained_on = saved.get("facts", {}).get("data", "")
    return _evaluate(task, data, config, folder, split), data.fingerprint(), trained_on


# ---------------------------------------------------------------------- building
def build_data(config: RunConfig) -> Dataset:
    """The data set of a configuration."""
    from seqgraph.plugin import manager

    cls = manager.resolve(manager.get("datasets", config.data.name))
    return cls(**arguments(build_part(config, "data")))


def build_task(config: RunConfig, data: Dataset) -> tuple[Task, dict[str, Any]]:
    """The task on a new model, set up, and the model's resolved fields, as JSON holds them."""
    from seqgraph.plugin import manager

    fields = build_part(config, "model", data.model_defaults())
    model: nn.Module = manager.resolve(manager.get("models", config.model.name))(**arguments(fields))
    model.assets = data.assets()  # type: ignore[assignment]
    cls = manager.resolve(manager.get("tasks", config.task.name))
    task = cls(model, **arguments(build_part(config, "task")))
    task.setup(data)
    return task, fields.model_dump(mode="json")


def resolved(config: RunConfig, model_fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with every field said, as JSON."""
    parts = {
        section: {"name": getattr(config, section).name, **build_part(config, section).model_dump(mode="json")}
        for section in ("data", "task")
    }
    rest = {"train": config.train.model_dump(mode="json"), "seed": list(config.seed)}
    return {"model": {"name": config.model.name, **model_fields}, **parts, **rest}


def default_output(config: Any) -> Path:
    """``runs/`` and the name of the preset or file, or of the model; a run folder itself."""
    if isinstance(config, str | Path):
        path = Path(config)
        return path if path.is_dir() else Path("runs") / path.stem
    name = config.model.name if isinstance(config, RunConfig) else load_config(config).model.name
    return Path("runs") / name


def check_folder(folder: Path, resume: bool) -> None:
    """See that a run's folder is free, or that there is a run in it to go on with.

    Raises:
        ConfigError: saying which of the two is not so.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a run needs a folder", "name another one by -o")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not resume:
        raise ConfigError(f"{folder} is in use", "--resume goes on with it; -o takes another folder")
    if resume and not used:
        raise ConfigError(f"{folder}: there is no run to resume", "begin it without --resume")


# ---------------------------------------------------------------------- one seed
def _train_one(
    config: RunConfig, data: Dataset, seed: int, path: Path, resume: bool, console: Console, stop_after: int | None
) -> dict[str, Any]:
    # Lightning takes five seconds to import: not before everything else has been found to be right.
    from seqgraph.train.fit import device_type, fit, shares

    shares(config.train)
    seed_everything(seed)
    task, fields = build_task(config, data)
    facts: dict[str, Any] = {
        "data": data.fingerprint(),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "splits": {name: len(data.split(name)) for name in ("train", "valid", "test")},
    }
    folder = RunFolder(path, resolved(config, fields), facts, data.assets(), writes=_first())
    folder.check()
    state = folder.trainer_state() if resume else None
    behind = 0 if state is None else state["progress"][0]["epoch"]
    if behind > config.train.epochs:
        raise ConfigError(
            f"{path} has {behind} epochs behind it; train.epochs={config.train.epochs} is fewer",
            "leave train.epochs as it was, or raise it",
        )
    if state is not None:
        _load_weights(task, path / "last")
    elif config.train.weights is not None:
        start_from(task, config.train.weights, {"name": config.model.name, **fields})
    folder.begin()
    _introduce(console, config, facts, device_type(config.train), seed, path)
    progress = fit(
        task, data, config.train, seed=seed, folder=folder, console=console, state=state, stop_after=stop_after
    )
    done = folder.results()
    if done is not None and done.get("steps") == progress.step:
        console.line("finished already: nothing is left to train")
        _conclude(console, done, path)
        return done
    best = checkpoint.find(path)
    results: dict[str, Any] = {
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "data": facts["data"],
        "valid": checkpoint.read_json(best / checkpoint.METRICS).get("valid", {}),
        "test": {},
        "baseline": {},
    }
    if facts["splits"]["test"]:
        # A sharded task cannot take the whole weights back.
        tested = build_task(config, data)[0] if config.train.strategy == "fsdp" else task
        results["test"] = _evaluate(tested, data, config, best, "test")
        results["baseline"] = {name: float(value) for name, value in tested.baseline(data).items()}
    folder.finish(results)
    _conclude(console, results, path)
    return results


def _evaluate(task: Task, data: Dataset, config: RunConfig, folder: Path, split: str) -> dict[str, float]:
    from seqgraph.train.fit import device_type, shares

    rank, world = shares(config.train)
    _load_weights(task, folder)
    kind = device_type(config.train)
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    tokens = config.train.eval_tokens or config.train.max_tokens
    shared = dist.is_available() and dist.is_initialized()
    rank, world = (rank, world) if shared else (0, 1)
    loader = token_batches(data, split, tokens, max_items=config.train.max_items, rank=rank, world=world)
    return evaluate_task(task.to(device), loader, device=device, precision=config.train.precision)


def _load_weights(task: Task, folder: Path) -> None:
    checkpoint.load_state(task.model, folder / checkpoint.MODEL)
    own = {k: v for k, v in task.state_dict().items() if not k.startswith("model.")}
    if own:
        saved = checkpoint.read_tensors(folder / checkpoint.TASK)
        if own.keys() != saved.keys():
            raise CheckpointError(f"{folder / checkpoint.TASK} does not fit the task", "was the task another one?")
        task.load_state_dict(saved, strict=False)


# ---------------------------------------------------------------------- several seeds, and words
def _summary(folder: Path, seeds: list[int], results: list[dict[str, Any]]) -> RunResult:
    tests = [result["test"] for result in results]
    names = [name for name in tests[0] if all(name in test for test in tests)]
    columns = {name: [test[name] for test in tests] for name in names}
    mean = {name: math.fsum(values) / len(values) for name, values in columns.items()}
    std = {name: statistics.stdev(values) for name, values in columns.items()} if len(seeds) > 1 else {}
    return RunResult(folder, tuple(seeds), tuple(tests), mean, std, results[0]["baseline"])


def _write_parent(folder: Path, config: RunConfig, inner: Path) -> None:
    """Several seeds: the configuration of one of them, with all seeds, so that the whole can be resumed."""
    if inner == folder or not _first() or not (inner / checkpoint.CONFIG).is_file():
        return
    first = checkpoint.read_json(inner / checkpoint.CONFIG)
    whole = {**first, "run": {**first["run"], "seed": list(config.seed)}}
    checkpoint.write_file(folder / checkpoint.CONFIG, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def _summary_table(summary: RunResult) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, mean in summary.mean.items():
        baseline = f"{summary.baseline[name]:.4g}" if name in summary.baseline else ""
        rows.append([name, f"{mean:.4f} ± {summary.std[name]:.4f}", baseline])
    return ["metric", "mean ± std", "trivial"], rows


def _introduce(console: Console, config: RunConfig, facts: dict[str, Any], device: str, seed: int, path: Path) -> None:
    splits = "  ".join(f"{name} {size:,}" for name, size in facts["splits"].items())
    console.line(f"data   {config.data.name}  {splits}  fingerprint {facts['data'] or 'none'}")
    console.line(f"model  {config.model.name}  {facts['parameters']:,} parameters  on {device}  seed {seed}")
    console.line(f"run    {path}")


def _conclude(console: Console, results: dict[str, Any], path: Path) -> None:
    names = list(dict.fromkeys([*results["valid"], *results["test"]]))
    rows = [
        [name]
        + [f"{results[kind][name]:.4g}" if name in results[kind] else "" for kind in ("valid", "test", "baseline")]
        for name in names
    ]
    title = f"\nbest epoch {results['best_epoch']} of {results['epochs']}, {results['seconds']:.0f} s, in {path}"
    console.table(title, ["metric", "valid", "test", "trivial"], rows)


def _first() -> bool:
    return int(os.environ.get("RANK", 0)) == 0
