"""``seqgraph recommend``: lists for the users of a CSV file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from seqgraph_mamba4rec.lists import Recommendation
    from seqgraph_mamba4rec.reading import Request

_Lists = dict[str, list["Recommendation"]]


def recommend(
    run: Annotated[Path, typer.Argument(help="A run of 'seqgraph train', or a checkpoint folder.")],
    users: Annotated[Path, typer.Argument(help="CSV with the columns user,item[,timestamp]; gzip too.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Items to recommend to each user.")] = 10,
    filter_seen: Annotated[
        bool, typer.Option("--filter-seen/--no-filter-seen", help="Leave out what a user has had already.")
    ] = True,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out items that the model has never met.")
    ] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write here instead: .csv or .json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Recommend items to users, from their histories; they need not have been in the training data."""
    from seqgraph.errors import ConfigError, PluginError
    from seqgraph_mamba4rec.reading import read_requests

    if output is not None and output.suffix not in (".csv", ".json"):
        raise ConfigError(f"{output}: the name must end in .csv or .json")
    histories = read_requests(users)
    import seqgraph

    model: Any = seqgraph.load(run, device=device)
    if not hasattr(model, "recommend"):
        raise PluginError(f"{run}: a {type(model).__name__} cannot recommend", "give a run of the model mamba4rec")
    lists = recommend_users(model, histories, users, k=k, filter_seen=filter_seen, skip_unknown=skip_unknown)
    if output is not None:
        _write(output, lists)
    elif as_json:
        typer.echo(_as_json(lists))
    else:
        _show(lists, histories, model.assets.get("titles") or {})


def recommend_users(
    model: Any, histories: dict[str, list[Request]], path: Path, *, k: int, filter_seen: bool, skip_unknown: bool
) -> _Lists:
    """Lists by user; errors name the file and the line.

    Raises:
        DataError: for an item that the model does not know by id or name, unless it is to be skipped, for a name of
            several items, and for a user whose items are all unknown.
    """
    from seqgraph.errors import DataError

    catalogue = model.catalogue()
    for user, history in histories.items():
        strange = [event for event in history if catalogue.find(event.item) is None]
        if strange and not skip_unknown:
            raise DataError(
                f"{path}, line {strange[0].line}: item {strange[0].item!r} was not in the training data",
                "pass --skip-unknown to leave such items out",
            )
        if len(strange) == len(history):
            raise DataError(f"{path}: user {user!r} has no item that the model knows", "take this user out of the file")
    on_unknown = "skip" if skip_unknown else "error"
    items = [[event.item for event in row] for row in histories.values()]
    rows = model.recommend(items, k=k, filter_seen=filter_seen, on_unknown=on_unknown)
    return dict(zip(histories, rows, strict=True))


def _as_json(lists: _Lists) -> str:
    rows = [
        {"user": user, "items": [{"rank": n, **r._asdict()} for n, r in enumerate(row, start=1)]}
        for user, row in lists.items()
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _as_csv(lists: _Lists) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["user", "rank", "item", "score", "title"])
    for user, row in lists.items():
        for rank, (item, score, title) in enumerate(row, start=1):
            writer.writerow([user, rank, item, f"{score:.6g}", title or ""])
    return text.getvalue()


def _write(path: Path, lists: _Lists) -> None:
    from seqgraph.train.checkpoint import write_file

    write_file(path, _as_csv(lists) if path.suffix == ".csv" else _as_json(lists) + "\n")
    typer.echo(f"{path}: {len(lists)} users")


def _show(lists: _Lists, histories: dict[str, list[Request]], titles: dict[str, str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for user, row in lists.items():
        last = ", ".join(titles.get(event.item, event.item) for event in histories[user][-3:])
        table = Table(title=escape(f"user {user} (last: {last})"), title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column("item")
        if titles:
            table.add_column("title")
        table.add_column("score", justify="right")
        for rank, (item, score, title) in enumerate(row, start=1):
            named = [escape(title or "")] if titles else []
            table.add_row(str(rank), escape(item), *named, f"{score:.3f}")
        console.print(table)
