"""The data sets: ogbg-molesol, Peptides-func, and any CSV of SMILES."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph.train.task import Dataset, Split
from seqgraph_graph_mamba.cache import Arrays, cached, content_key
from seqgraph_graph_mamba.graph import Graph, GraphBatch, collate
from seqgraph_graph_mamba.positional import Encoding, encode_positions
from seqgraph_graph_mamba.reading import existing_file, find_column, read_csv, read_index_pickle, read_number
from seqgraph_graph_mamba.table import GraphSubset, GraphTable

SHIPPED = Path(__file__).parent / "datasets" / "ogbg_molesol"
# Below this many nodes a positional encoding is made faster than it is read.
_CACHE_ABOVE = 100_000

PEPTIDES_FUNC_LABELS = (
    "antifungal", "cell_cell_communication", "anticancer", "drug_delivery_vehicle", "antimicrobial",
    "antiviral", "antihypertensive", "antibacterial", "antiparasitic", "toxic",
)  # fmt: skip


class GraphDataset(Dataset):
    """Graphs with targets and splits; the data sets below fill it, and so may others.

    Args:
        table: every graph.
        splits: row numbers of "train", "valid" and "test".
        targets: names of the K targets.
        kind: what the targets are.
        unit: of the targets, for people.
        key: hash of the content and of the settings that shape it.
        cache: whether long preprocessing is kept on disk.

    Raises:
        DataError: when a split is empty, or a training target is never known.
    """

    # BatchNorm's statistics want every batch to be a sample of all sizes.
    length_buckets = False

    def __init__(
        self,
        table: GraphTable,
        splits: dict[str, np.ndarray],
        *,
        targets: Sequence[str],
        kind: Literal["regression", "classification"],
        unit: str = "",
        key: str = "",
        cache: bool = True,
    ) -> None:
        self.table, self.splits = table, splits
        self.targets, self.kind, self.unit, self.key, self.cache = list(targets), kind, unit, key, cache
        for name in ("train", "valid", "test"):
            if not len(splits.get(name, ())):
                raise DataError(f"the {name} split is empty", "use more data or other fractions")
        unknown = torch.isnan(self.split("train").y).all(0).nonzero()[:, 0].tolist()
        if unknown:
            raise DataError(f"target {self.targets[unknown[0]]!r} is unknown in every training record")

    def split(self, name: Split) -> GraphSubset:
        """The graphs of one split."""
        return GraphSubset(self.table, self.splits[name])

    def lengths(self, name: Split) -> np.ndarray:  # type: ignore[override]  # indexable all the same
        """Nodes of each graph of a split."""
        return self.split(name).lengths

    def collate(self, examples: list[Graph]) -> GraphBatch:
        """Pack some graphs."""
        return collate(examples)

    def model_defaults(self) -> dict[str, Any]:
        """One output a target, and what the features are."""
        defaults: dict[str, Any] = {"d_out": len(self.targets)}
        if self.table.x.is_floating_point():
            defaults |= {"node_features": "linear", "d_node": self.table.x.shape[1]}
        if self.table.edge_attr is None:
            defaults |= {"edge_features": "none"} if self.table.x.is_floating_point() else {}
        elif self.table.edge_attr.is_floating_point():
            defaults |= {"edge_features": "linear", "d_edge": self.table.edge_attr.shape[1]}
        return defaults

    def assets(self) -> dict[str, Any]:
        """Names, kind and unit of the targets; for a regression, their mean and deviation in the training split."""
        described: dict[str, Any] = {"names": self.targets, "kind": self.kind, "unit": self.unit}
        if self.kind == "regression":
            mean, deviation = target_statistics(self.split("train").y)
            described |= {"mean": mean.tolist(), "std": deviation.tolist()}
        return {"targets": described}

    def fingerprint(self) -> str:
        """Hash of the content and of the settings that shape it."""
        return self.key

    def encode_positions(self, kind: Encoding, size: int) -> None:
        """Compute the positional encoding of every graph once, on disk for large data sets, instead of per batch."""
        if kind == "none":
            self.table = self.table.with_pe(None)
            return

        def compute() -> Arrays:
            graphs = (self.table[i] for i in range(len(self.table)))
            encoded = [encode_positions(g, kind, size) for g in progress(graphs, len(self.table), f"{kind} encoding")]
            return {"pe": torch.cat(encoded).numpy()}

        key = content_key(*(array.tobytes() for array in self.table.to_arrays().values()), f"{kind} {size} v1")
        large = self.cache and len(self.table.x) > _CACHE_ABOVE
        self.table = self.table.with_pe(torch.from_numpy(cached(key, compute, use=large)["pe"]))


def target_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of y (S, K) over its known values; 1 where it does not vary."""
    y = y.double()
    mean = y.nanmean(0)
    deviation = (y - mean).square().nanmean(0).sqrt()
    return mean, torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))


def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """A progress bar on a terminal's standard error, for work worth waiting for."""
    if total < 2000:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, total=total, console=Console(stderr=True))


class OgbMolesol(GraphDataset):
    """ESOL: water solubility of 1,128 molecules in log10(mol/l), OGB's scaffold split (Hu et al., 2020).

    Args:
        root: a folder in OGB's layout, the folder above it, or None for the copy that ships.
    """

    def __init__(self, root: str | None = None) -> None:
        folder = SHIPPED if root is None else Path(root)
        if not (folder / "mapping").is_dir() and (folder / "ogbg_molesol").is_dir():
            folder = folder / "ogbg_molesol"
        hint = "data.root must hold OGB's mapping/mol.csv.gz and split/scaffold/; null takes the copy that ships"
        mapping = existing_file(folder / "mapping" / "mol.csv.gz", hint)
        header, rows = read_csv(mapping)
        smiles = find_column(header, "smiles", mapping)
        targets = [name for name in header if name not in (smiles, "mol_id")]
        splits, files = {}, [mapping]
        for name in ("train", "valid", "test"):
            files.append(existing_file(folder / "split" / "scaffold" / f"{name}.csv.gz", hint))
            splits[name] = _read_rows(files[-1], len(rows))
        graphs, _ = molecule_graphs(rows, smiles, targets, mapping)
        super().__init__(
            GraphTable.from_graphs(graphs),
            splits,
            targets=targets,
            kind="regression",
            unit="log10(mol/l)",
            key=content_key(*files),
        )


def _read_rows(path: Path, size: int) -> np.ndarray:
    from seqgraph_graph_mamba.reading import read_text

    try:
        index = np.array([int(line) for line in read_text(path).split()], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{path}: {error}", "it must hold one row number a line") from None
    if not len(index) or index.min() < 0 or index.max() >= size:
        raise DataError(f"{path} names rows outside 0..{size - 1}")
    return index


def molecule_graphs(
    rows: Sequence[dict[str, str]],
    smiles: str,
    targets: Sequence[str],
    path: Path,
    *,
    on_invalid: Literal["error", "skip"] = "error",
) -> tuple[list[Graph], np.ndarray]:
    """Graphs of a CSV's rows.

    Args:
        rows: its rows.
        smiles: column of the SMILES.
        targets: columns of the targets; an empty cell is an unknown value.
        path: the file, for errors.
        on_invalid: "skip" leaves out the rows that cannot be used, and says how many.

    Returns:
        The graphs, and the number of the row that each came from, (n,).

    Raises:
        DataError: naming the file and the row (from 1, the header not counted).
    """
    from seqgraph_graph_mamba.features import smiles_graph

    graphs, kept = [], []
    refused: list[DataError] = []
    for i, row in enumerate(progress(rows, len(rows), "molecules")):
        where = f"{path}, row {i + 1}"
        try:
            y = torch.tensor([read_number(row[name], f"{where}, column {name!r}") for name in targets])
            if targets and bool(torch.isnan(y).all()):
                raise DataError(f"{where}: no target is known", "remove the row, or set on_invalid: skip")
            graphs.append(smiles_graph(row[smiles].strip(), where, y))
            kept.append(i)
        except DataError as error:
            if on_invalid == "error":
                raise
            refused.append(error)
    if refused:
        from rich.console import Console

        # no markup: a SMILES is full of square brackets
        message = f"left out {len(refused)} of {len(rows)} rows, the first: {refused[0].message}"
        Console(stderr=True).print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not graphs:
        raise DataError(f"{path}: none of its {len(rows)} rows can be used")
    return graphs, np.array(kept, dtype=np.int64)


class PeptidesFunc(GraphDataset):
    """Peptides-func: 15,535 peptides, ten functions each (Dwivedi et al., LRGB, 2022). CC BY-NC 4.0, not shipped.

    Args:
        root: the folder with ``peptide_multi_class_dataset.csv.gz`` and ``splits_random_stratified_peptide.pickle``,
            or with PyG's ``raw/train.pt``, ``val.pt``, ``test.pt`` (there, in ``raw/`` or in ``peptides-func/raw/``).
        cache: keep the graphs, which take about a minute to make, and their encodings in the cache folder.
    """

    CSV = "peptide_multi_class_dataset.csv.gz"
    SPLITS = "splits_random_stratified_peptide.pickle"

    def __init__(self, root: str | None = None, *, cache: bool = True) -> None:
        hint = (
            f"give --data-root a folder with {self.CSV} and {self.SPLITS} (LRGB), or PyG's peptides-func/raw/*.pt "
            "(zenodo.org/records/6975830); the licence, CC BY-NC 4.0, does not let seqgraph ship them"
        )
        if root is None:
            raise DataError("peptides-func needs data.root", hint)
        folder = Path(root)
        for raw in (folder, folder / "raw", folder / "peptides-func" / "raw"):
            if (raw / "train.pt").is_file():
                table, splits, key = self._from_pyg(raw, hint)
                break
        else:
            table, splits, key = self._from_csv(folder, hint, cache)
        super().__init__(table, splits, targets=PEPTIDES_FUNC_LABELS, kind="classification", key=key, cache=cache)

    def _from_csv(self, folder: Path, hint: str, cache: bool) -> tuple[GraphTable, dict[str, np.ndarray], str]:
        from seqgraph_graph_mamba.features import VERSION

        path, split_path = existing_file(folder / self.CSV, hint), existing_file(folder / self.SPLITS, hint)
        key = content_key(path, f"peptides-func v{VERSION}")
        table = GraphTable.from_arrays(cached(key, lambda: self._parse(path), use=cache))
        held = read_index_pickle(split_path, ("train", "val", "test"), len(table))
        splits = {"train": held["train"], "valid": held["val"], "test": held["test"]}
        return table, splits, content_key(key, split_path)

    @staticmethod
    def _parse(path: Path) -> Arrays:
        from seqgraph_graph_mamba.features import smiles_graph

        header, rows = read_csv(path)
        smiles, labels = find_column(header, "smiles", path), find_column(header, "labels", path)
        graphs = []
        for i, row in enumerate(progress(rows, len(rows), "peptides")):
            where = f"{path}, row {i + 1}"
            try:
                y = torch.tensor(json.loads(row[labels]), dtype=torch.float32)
            except (ValueError, TypeError) as error:
                raise DataError(f"{where}: labels {row[labels]!r} are not a list of numbers") from error
            if y.shape != (len(PEPTIDES_FUNC_LABELS),):
                raise DataError(f"{where}: {y.numel()} labels instead of {len(PEPTIDES_FUNC_LABELS)}")
            graphs.append(smiles_graph(row[smiles], where, y))
        return GraphTable.from_graphs(graphs).to_arrays()

    @staticmethod
    def _from_pyg(raw: Path, hint: str) -> tuple[GraphTable, dict[str, np.ndarray], str]:
        from seqgraph_graph_mamba.features import check_codes

        graphs: list[Graph] = []
        splits = {}
        paths = [existing_file(raw / f"{name}.pt", hint) for name in ("train", "val", "test")]
        for name, path in zip(("train", "valid", "test"), paths, strict=True):
            try:
                held = torch.load(path, weights_only=True)
                made = [Graph(x, edge_index, edge_attr, y.reshape(-1).float()) for x, edge_attr, edge_index, y in held]
            except Exception as error:  # torch.load and unpacking raise many kinds
                raise DataError(
                    f"{path} is not a list of (x, edge_attr, edge_index, y) tensors: {error}", hint
                ) from error
            splits[name] = np.arange(len(graphs), len(graphs) + len(made))
            for i, graph in enumerate(made):
                check_codes(graph.validate(f"{path}, graph {i}"), f"{path}, graph {i}")
                graphs.append(graph)
        return GraphTable.from_graphs(graphs), splits, content_key(*paths)


class SmilesCsv(GraphDataset):
    """Any CSV of SMILES and targets. All targets 0 or 1: a classification, else a regression.

    Args:
        root: the file: .csv or .tsv, plain or gzipped.
        smiles: column of the SMILES, in any letter case.
        targets: columns of the targets; None takes every other column that holds numbers only.
        split: "scaffold", "random", or a column with "train", "valid" (or "val") and "test".
        fractions: of train, valid and test, for "scaffold" and "random".
        split_seed: of "random".
        on_invalid: "error", or "skip" for rows that cannot be used.
        unit: of the targets, for people.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        smiles: str = "smiles",
        targets: Sequence[str] | None = None,
        split: str = "scaffold",
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        on_invalid: Literal["error", "skip"] = "error",
        unit: str = "",
    ) -> None:
        if root is None:
            raise DataError("smiles-csv needs data.root", "give --data-root the CSV file")
        path = existing_file(Path(root), "data.root must be a CSV file")
        header, rows = read_csv(path)
        smiles = find_column(header, smiles, path)
        column = None if split in ("scaffold", "random") else find_column(header, split, path)
        names = (
            [find_column(header, name, path) for name in targets]
            if targets is not None
            else _number_columns([n for n in header if n not in (smiles, column)], rows)
        )
        if not names:
            raise DataError(
                f"{path} has no column of numbers beside {smiles!r}",
                "name the targets in data.targets: a cell that is no number is then shown with its row",
            )
        graphs, kept = molecule_graphs(rows, smiles, names, path, on_invalid=on_invalid)
        table = GraphTable.from_graphs(graphs)
        known = table.y[~torch.isnan(table.y)]
        super().__init__(
            table,
            _make_splits(path, rows, kept, smiles, split, column, fractions, split_seed),
            targets=names,
            kind="classification" if bool(((known == 0) | (known == 1)).all()) else "regression",
            unit=unit,
            key=content_key(path, repr((smiles, names, split, tuple(fractions), split_seed, on_invalid))),
        )


def _number_columns(names: Sequence[str], rows: Sequence[dict[str, str]]) -> list[str]:
    def numbers(name: str) -> bool:
        try:
            return not np.isnan([read_number(row[name], "") for row in rows]).all()
        except DataError:
            return False

    return [name for name in names if numbers(name)]


def _make_splits(
    path: Path,
    rows: Sequence[dict[str, str]],
    kept: np.ndarray,
    smiles: str,
    split: str,
    column: str | None,
    fractions: Sequence[float],
    seed: int,
) -> dict[str, np.ndarray]:
    from seqgraph_graph_mamba.features import parse_smiles
    from seqgraph_graph_mamba.splits import random_split, scaffold_split

    if split == "random":
        return random_split(len(kept), fractions, seed)
    if column is None:
        molecules = [parse_smiles(rows[i][smiles].strip(), f"{path}, row {i + 1}") for i in kept]
        return scaffold_split(molecules, fractions)
    places: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for place, i in enumerate(kept):
        name = rows[i][column].strip().lower()
        name = "valid" if name in ("val", "validation") else name
        if name not in places:
            raise DataError(f"{path}, row {i + 1}: split {rows[i][column]!r}", "write train, valid or test")
        places[name].append(place)
    return {name: np.array(index, dtype=np.int64) for name, index in places.items()}
