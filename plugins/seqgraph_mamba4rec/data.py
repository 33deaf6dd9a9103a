"""The data sets: MovieLens, RecBole's atomic files, tables of events, text files of histories. Readers only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqgraph.errors import DataError
from seqgraph_mamba4rec.histories import Example, ExampleList, HistoryBatch, HistoryDataset
from seqgraph_mamba4rec.reading import find_inter, read_inter, read_text, read_titles
from seqgraph_mamba4rec.tables import read_csv, read_movielens, read_parquet

__all__ = [
    "EventTable",
    "Example",
    "ExampleList",
    "HistoryBatch",
    "HistoryDataset",
    "MovieLens",
    "MovieLens100K",
    "RecBoleInter",
    "Sequences",
]


class MovieLens100K(HistoryDataset):
    """MovieLens-100k (Harper and Konstan 2015): 943 users, 1,682 films, 100,000 ratings, never shipped here.

    Args:
        root: a folder with ``ml-100k.inter`` (and ``ml-100k.item`` for titles), gzip too. None takes the copy in
            the installed RecBole, which is not imported for that.
        order: "timestamp", or "recbole" for the histories that RecBole's rounding of the timestamps gives.
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: when there is no such file, or RecBole is not installed.
    """

    def __init__(
        self, root: str | None = None, order: Literal["timestamp", "recbole"] = "timestamp", **options: Any
    ) -> None:
        path = find_inter(Path(root) if root else _installed_ml_100k())
        retime = _as_recbole(scaled=True) if order == "recbole" else None  # its configuration of this set scales
        super().__init__(read_inter(path), titles=_titles_beside(path, "movie_title"), retime=retime, **options)


class RecBoleInter(HistoryDataset):
    """Any RecBole atomic file.

    Args:
        root: the .inter file (gzip too), or the folder that holds it.
        order: "timestamp"; "recbole" for the histories that RecBole's rounding of timestamps to fp32 gives (seconds
            of this century are 64 apart there), "recbole-scaled" under its ``normalize_all``; or "file" when each
            user's lines are in time order.
        user_field: name of the user column.
        item_field: name of the item column.
        time_field: name of the time column.
        title_field: the column of the .item file beside it that names an item.
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: naming file and line.
    """

    def __init__(
        self,
        root: str | None = None,
        order: Literal["timestamp", "recbole", "recbole-scaled", "file"] = "timestamp",
        user_field: str = "user_id",
        item_field: str = "item_id",
        time_field: str = "timestamp",
        title_field: str | None = None,
        **options: Any,
    ) -> None:
        path = find_inter(_given(root, "recbole-inter"))
        fields = {"user_field": user_field, "item_field": item_field, "time_field": time_field}
        events = read_inter(path, order="file" if order == "file" else "timestamp", **fields)
        titles = _titles_beside(path, title_field) if title_field else None
        retime = _as_recbole(order == "recbole-scaled") if order.startswith("recbole") else None
        super().__init__(events, titles=titles, retime=retime, **options)


class Sequences(HistoryDataset):
    """Histories in a text file: SASRec's, S3-Rec's and LRURec's formats.

    Args:
        root: the file; ``.gz`` too. Or a folder that holds it.
        file: where the file is in the folder; it may also lie in the folder itself.
        layout: "histories" (``user item item ...``) or "pairs" (``user item``).
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: naming file and line.
    """

    def __init__(
        self,
        root: str | None = None,
        file: str | None = None,
        layout: Literal["histories", "pairs"] = "histories",
        **options: Any,
    ) -> None:
        path = _given(root, "sequences")
        if file is not None and path.is_dir():
            path = path / (file if (path / file).is_file() else Path(file).name)
        super().__init__(read_text(path, layout=layout), **options)


class EventTable(HistoryDataset):
    """A table of events, one a row: CSV (gzip too) or Parquet.

    Args:
        root: the file; its name ends in .csv, .tsv, .csv.gz, .tsv.gz or .parquet.
        order: "timestamp", or "file" when each user's rows are in time order.
        user_field: name of the user column.
        item_field: name of the item column.
        time_field: name of the time column: numbers, or dates.
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: naming file and line.
        PluginError: for Parquet without pyarrow.
    """

    def __init__(
        self,
        root: str | None = None,
        order: Literal["timestamp", "file"] = "timestamp",
        user_field: str = "user",
        item_field: str = "item",
        time_field: str = "timestamp",
        **options: Any,
    ) -> None:
        path = _given(root, "events")
        fields: dict[str, Any] = {"user_field": user_field, "item_field": item_field, "time_field": time_field}
        kind = path.name.removesuffix(".gz").rpartition(".")[2]
        if kind == "parquet":
            events = read_parquet(path, order=order, **fields)
        elif kind in ("csv", "tsv"):
            events = read_csv(path, order=order, delimiter="," if kind == "csv" else "\t", **fields)
        else:
            raise DataError(f"{path}: neither .csv nor .tsv nor .parquet", "name the file by what it holds")
        super().__init__(events, **options)


class MovieLens(HistoryDataset):
    """MovieLens in GroupLens' own files (Harper and Konstan 2015), which are never shipped here.

    Args:
        root: the unpacked archive: a folder with u.data, ratings.dat or ratings.csv.
        min_rating: leave out ratings below it; by default every rating is an event.
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: naming file and line.
    """

    def __init__(self, root: str | None = None, min_rating: float | None = None, **options: Any) -> None:
        events, titles = read_movielens(_given(root, "movielens"), min_rating)
        super().__init__(events, titles=titles, **options)


def _as_recbole(scaled: bool) -> Callable[[np.ndarray], np.ndarray]:
    from seqgraph_mamba4rec.recbole_adapter import rounded_times

    return partial(rounded_times, scaled=scaled)


def _given(root: str | None, name: str) -> Path:
    if not root:
        raise DataError(f"the data set {name} needs a file", "pass --data-root FILE, or set data.root")
    return Path(root)


def _installed_ml_100k() -> Path:
    from seqgraph_mamba4rec.recbole_adapter import ml_100k_folder

    return ml_100k_folder()


def _titles_beside(inter: Path, title_field: str) -> dict[str, str]:
    stem = inter.name.removesuffix(".gz").removesuffix(".inter")
    found = [p for suffix in (".item", ".item.gz") if (p := inter.parent / f"{stem}{suffix}").is_file()]
    return read_titles(found[0], title_field) if found else {}
