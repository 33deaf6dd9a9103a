"""``seqgraph rec``: evaluate by user, compare with intervals, baselines, RecBole's configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seqgraph.cli import output as out

app = typer.Typer(no_args_is_help=True)

Split = Annotated[str, typer.Option("--split", help="valid or test.")]
Device = Annotated[str, typer.Option("--accelerator", help="auto, cpu or gpu.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of one seed, or a checkpoint folder.")],
    k: Annotated[str, typer.Option("-k", metavar="K,...", help="Lengths of the lists.")] = "10",
    split: Split = "test",
    accelerator: Device = "auto",
    json: Json = False,
) -> None:
    """HR, NDCG, MRR, coverage and novelty at any lengths; each user's rank is kept in ranks-SPLIT.json."""
    lengths = _lengths(k)
    from seqgraph_mamba4rec.judged import evaluate_users

    ranks, path = evaluate_users(run, split, k=lengths, accelerator=accelerator)
    if json:
        out.print_json(
            {"run": str(run), "split": split, "data": ranks.data, "metrics": ranks.metrics, "ranks": str(path)}
        )
        return
    out.print_table(["metric", split], [[name, f"{value:.6g}"] for name, value in ranks.metrics.items()])
    typer.echo(f"data {ranks.data}; each user's rank is in {path}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN", help="A run, of several seeds too, or a folder of baselines'.")],
    b: Annotated[Path, typer.Argument(metavar="RUN", help="What it is compared with.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the lists.")] = 10,
    split: Split = "test",
    samples: Annotated[int, typer.Option(min=100, help="How often users are drawn.")] = 10_000,
    accelerator: Device = "auto",
    json: Json = False,
) -> None:
    """The difference of two recommenders on the same users, with a 95 % paired bootstrap interval over users."""
    from dataclasses import asdict

    from seqgraph_mamba4rec import judged
    from seqgraph_mamba4rec.judged import stored_ranks
    from seqgraph_mamba4rec.metrics import SUFFIXES
    from seqgraph_mamba4rec.ranking import KINDS

    ours, theirs = (stored_ranks(run, split, accelerator=accelerator) for run in (a, b))
    names = [f"{kind}@{k}{suffix}" for suffix in SUFFIXES for kind in KINDS]
    found = {name: judged.compare(ours, theirs, name, samples=samples) for name in names}
    if json:
        out.print_json({"a": str(a), "b": str(b), "split": split, **{n: asdict(i) for n, i in found.items()}})
        return
    rows = [
        [name, f"{i.a:.4f}", f"{i.b:.4f}", f"{i.difference:+.4f}", f"[{i.low:+.4f}, {i.high:+.4f}]", f"{i.p:.3f}"]
        for name, i in found.items()
    ]
    out.print_table([split, a.name, b.name, "difference", "95 % interval", "p"], rows)
    seeds = f"{len(ours)} and {len(theirs)}"
    typer.echo(f"{found[names[0]].users} users, {samples} draws; seeds: {seeds}; data {ours[0].data}")


@app.command()
def baselines(
    source: Annotated[str, typer.Argument(metavar="PRESET|FILE|RUN", help="Whose data section is used.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="data.max_history=200")
    ] = None,
    data_root: Annotated[Path | None, typer.Option("--data-root", metavar="DIR", help="Where the data are.")] = None,
    k: Annotated[str, typer.Option("-k", metavar="K,...", help="Lengths of the lists.")] = "10",
    split: Split = "test",
    neighbours: Annotated[int, typer.Option(min=1, help="Of an item, for item-knn.")] = 100,
    shrink: Annotated[float, typer.Option(min=0, help="Against rare items' luck, for item-knn.")] = 10.0,
    decay: Annotated[
        float, typer.Option(min=0, max=1, help="An item's weight against the next's, for item-knn.")
    ] = 0.9,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Keep each user's rank here.")
    ] = None,
    json: Json = False,
) -> None:
    """Popularity and item neighbours on a preset's data: what a model has to beat."""
    lengths = _lengths(k)
    from seqgraph.config import load_config
    from seqgraph.errors import ConfigError

    config = load_config(source, overrides or (), data_root=data_root)
    if split not in ("valid", "test"):
        raise ConfigError(f"there is nobody to judge in the split {split!r}", "the splits are valid and test")
    import torch

    from seqgraph.train.run import build_data
    from seqgraph_mamba4rec.baselines import ItemKNN, judge, popularity
    from seqgraph_mamba4rec.histories import HistoryDataset
    from seqgraph_mamba4rec.judged import ranks_of

    data = build_data(config)
    if not isinstance(data, HistoryDataset):
        raise ConfigError(f"{source} is no recommender", "its data set holds no histories")
    found: dict[str, Any] = {}
    for name, scorer in (("popularity", popularity(data)), ("item-knn", ItemKNN(data, neighbours, shrink, decay))):
        found[name], ranks = judge(scorer, data, split, k=lengths)  # type: ignore[arg-type]
        if output is not None:
            user = torch.from_numpy(data.split(split).user)  # type: ignore[arg-type]
            ranks_of(data, split, (user, *ranks), name, found[name]).save(output / name)
    if json:
        out.print_json({"data": data.fingerprint(), "split": split, **found})
        return
    rows = [[name, *(f"{metrics[name]:.6g}" for metrics in found.values())] for name in found["popularity"]]
    out.print_table(["metric", *found], rows)
    typer.echo(f"data {data.fingerprint()}, {split}")


@app.command("from-recbole")
def from_recbole(
    files: Annotated[list[Path], typer.Argument(metavar="YAML...", help="RecBole's files; later ones win.")],
    model: Annotated[str | None, typer.Option(help="Mamba4Rec, SASRec, GRU4Rec or LRURec.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The data set's name in RecBole.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write here instead.")] = None,
) -> None:
    """Turn a RecBole configuration into one of ours that does the same; needs no RecBole."""
    import yaml

    from seqgraph.config import load_config
    from seqgraph_mamba4rec.recbole_config import read, translate

    theirs = read(files) | {key: value for key, value in (("model", model), ("dataset", dataset)) if value}
    ours = translate(theirs)
    load_config(ours)
    text = yaml.safe_dump(ours, sort_keys=False)
    if output is None:
        typer.echo(text, nl=False)
        return
    from seqgraph.train.checkpoint import write_file

    write_file(output, text)
    typer.echo(f"{output}: seqgraph train {output}")


def _lengths(text: str) -> list[int]:
    from seqgraph.errors import ConfigError

    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise ConfigError(f"-k {text}: not a list of lengths", "numbers from 1: -k 5,10,20")
    return [int(part) for part in parts]
