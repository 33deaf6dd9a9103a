"""``seqgraph probe``: downstream tasks of one model or several, beside simple features and random weights."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqgraph_lc_plm.commands import Budget, NoGpu, Precision

if TYPE_CHECKING:
    from seqgraph_lc_plm.probes.measures import Row

TASKS = ("secondary-structure", "remote-homology", "zero-shot", "gb1", "interactions", "links", "yeast", "function")


def probe(
    task: Annotated[str, typer.Argument(metavar="TASK", help=f"{', '.join(TASKS)}, or all; several by commas.")],
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Runs, checkpoints, or ESM-2 files.")],
    data_root: Annotated[Path, typer.Option("--data-root", metavar="DIR", help="Folder of the tasks' data.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file to write as well.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder that keeps embeddings between calls.")] = None,
    layer: Annotated[int, typer.Option(help="Which to probe: 0 to n, or from the end.")] = -1,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each set at most, to try it out.")] = None,
    splits: Annotated[str, typer.Option(help="Of the tasks interactions and links.")] = "random,bfs,dfs",
    seeds: Annotated[str, typer.Option(help="Of these splits.")] = "0,1,2",
    random: Annotated[bool, typer.Option("--random/--no-random", help="Also each model with random weights.")] = True,
    toks_per_batch: Budget = 16384,
    precision: Precision = "fp32",
    nogpu: NoGpu = False,
) -> None:
    """Measure what a model's embeddings are worth: linear probes, nearest neighbours and zero-shot scores.

    Beside each model stand the trivial answer, one-hot codes or words of letters in the same probe, and the model with
    random weights. Everything is deterministic. Embeddings are computed once with --cache.
    """
    from seqgraph.errors import ConfigError
    from seqgraph_lc_plm.probes.measures import table

    if wrong := [name for name in splits.split(",") if name not in ("random", "bfs", "dfs")]:
        raise ConfigError(f"no split {wrong[0]!r}", "random, bfs or dfs")
    if wrong := [text for text in seeds.split(",") if not text.isdigit()]:
        raise ConfigError(f"the seed {wrong[0]!r} is no number", "for example --seeds 0,1,2")
    chosen = list(TASKS) if task == "all" else task.split(",")
    if wrong := [name for name in chosen if name not in TASKS]:
        raise ConfigError(f"no task {wrong[0]!r}", f"one of {', '.join(TASKS)}, or all")
    rows = measure(
        chosen, models, data_root, cache=cache, layer=layer, limit=limit, random=random,
        max_tokens=toks_per_batch, bf16=precision == "bf16", nogpu=nogpu,
        splits=splits.split(","), seeds=[int(seed) for seed in seeds.split(",")],
    )  # fmt: skip
    print(table(rows))
    if output is not None:
        from seqgraph.train.checkpoint import write_file

        write_file(output, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def measure(
    tasks: list[str],
    models: list[str],
    root: Path,
    *,
    cache: Path | None = None,
    layer: int = -1,
    limit: int | None = None,
    random: bool = True,
    max_tokens: int = 16384,
    bf16: bool = False,
    nogpu: bool = False,
    splits: Sequence[str] = ("random", "bfs", "dfs"),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Row]:
    """The rows of some tasks for some models; see :func:`probe`.

    Raises:
        DataError: for a task whose data are not under ``root``.
        PluginError: without scikit-learn.
    """
    import torch

    from seqgraph.cli.output import print_note
    from seqgraph_lc_plm.models import open_model
    from seqgraph_lc_plm.probes import links, pairs
    from seqgraph_lc_plm.probes import tasks as how
    from seqgraph_lc_plm.probes.features import Embeddings, random_twin
    from seqgraph_lc_plm.probes.measures import need_sklearn

    need_sklearn()
    device = "cuda" if torch.cuda.is_available() and not nogpu else "cpu"
    named = []
    for name in models:
        network = open_model(name, device)
        named.append((name, network))
        if random:
            named.append((f"{name}, random weights", random_twin(network)))
    sources = [
        Embeddings(network, name, cache=cache, layer=layer, max_tokens=max_tokens, bf16=bf16) for name, network in named
    ]
    calls: dict[str, Any] = {
        "secondary-structure": lambda: how.secondary_structure(root, sources, limit=limit, device=device),
        "remote-homology": lambda: how.remote_homology(root, sources, limit=limit, device=device),
        "zero-shot": lambda: how.zero_shot(root, named, limit=limit, max_tokens=max_tokens, bf16=bf16),
        "gb1": lambda: how.gb1(root, sources, limit=limit),
        "interactions": lambda: pairs.interactions(
            root, sources, splits=splits, seeds=seeds, limit=limit, device=device
        ),
        "links": lambda: links.links(root, sources, splits=splits, seeds=seeds, limit=limit, device=device),
        "yeast": lambda: pairs.yeast(root, sources, limit=limit, device=device),
        "function": lambda: pairs.function(root, sources, limit=limit, device=device),
    }
    rows: list[Row] = []
    for task in tasks:
        began = time.perf_counter()
        rows += calls[task]()
        print_note("Done", f"{task} in {time.perf_counter() - began:.0f} s")
    return rows
