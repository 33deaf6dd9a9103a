"""Molecules: OGB's ogbg-mol sets, MoleculeNet's tables, and any CSV of SMILES."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from seqgraph.errors import DataError
from seqgraph_graph_mamba.cache import Arrays, cached, content_key, progress, say
from seqgraph_graph_mamba.codes import VERSION
from seqgraph_graph_mamba.data import Device, GraphDataset
from seqgraph_graph_mamba.graph import Graph
from seqgraph_graph_mamba.reading import existing_file, find_column, read_csv, read_number, read_numbers, read_rows
from seqgraph_graph_mamba.table import GraphTable, borders

SHIPPED = Path(__file__).parent / "datasets" / "ogbg_molesol"
# Rows from which parsing takes long enough to be kept.
_CACHE_ABOVE = 2000
_RAW = ("num-node-list", "num-edge-list", "edge", "node-feat", "edge-feat", "graph-label")
OGB_UNITS = {"esol": "log10(mol/l)", "freesolv": "kcal/mol", "lipo": "log10"}


class OgbMolecules(GraphDataset):
    """One of OGB's sets of molecules in OGB's scaffold split (Hu et al., 2020).

    OGB's own ``raw/*.csv.gz`` are read where they are, else the SMILES of ``mapping/mol.csv.gz``: the same graphs.

    Args:
        root: a folder in OGB's layout, the folder above it, or None for ESOL, which ships.
        which: "esol", "freesolv", "lipo", "bace", "bbbp", "hiv", "clintox", "sider", "tox21", "toxcast", "muv", "pcba".
        device: where batches are cut.
    """

    def __init__(self, root: str | None = None, *, which: str = "esol", device: Device = "auto") -> None:
        name = f"ogbg_mol{which}"
        hint = (
            f"data.root must hold OGB's {name} with mapping/mol.csv.gz and split/scaffold/ "
            f"(snap.stanford.edu/ogb/data/graphproppred/csv_mol_download)"
        )
        if root is None and which != "esol":
            raise DataError(f"ogbg-mol{which} needs data.root", hint)
        folder = SHIPPED if root is None else Path(root)
        if not (folder / "mapping").is_dir() and (folder / name).is_dir():
            folder = folder / name
        mapping = existing_file(folder / "mapping" / "mol.csv.gz", hint)
        header, rows = read_csv(mapping)
        smiles = find_column(header, "smiles", mapping)
        targets = [column for column in header if column not in (smiles, "mol_id")]
        files = [mapping]
        splits = {}
        for split in ("train", "valid", "test"):
            files.append(folder / "split" / "scaffold" / f"{split}.csv.gz")
            splits[split] = read_rows(files[-1], len(rows), hint)
        raw: list[Path] = []
        if (folder / "raw").is_dir():
            raw = [existing_file(folder / "raw" / f"{part}.csv.gz", hint) for part in _RAW]

        def read() -> Arrays:
            if raw:
                return _read_raw(raw, len(rows), len(targets), hint).to_arrays()
            return GraphTable.from_graphs(molecule_graphs(rows, smiles, targets, mapping)[0]).to_arrays()

        large = len(rows) >= _CACHE_ABOVE
        content = content_key(*files, *raw, f"ogb {name} v{VERSION}") if large else ""
        table = GraphTable.from_arrays(cached(content, read, use=large, small=True))
        known = table.y[~torch.isnan(table.y)]
        super().__init__(
            table,
            splits,
            targets=targets,
            kind="classification" if bool(((known == 0) | (known == 1)).all()) else "regression",
            unit=OGB_UNITS.get(which, ""),
            key=content_key(*files),
            codes="ogb",
            smiles=[row[smiles] for row in rows],
            device=device,
        )


def _read_raw(paths: Sequence[Path], size: int, targets: int, hint: str) -> GraphTable:
    """OGB's six files, each edge once, as a table with both directions side by side."""
    nodes, edges = (read_numbers(path, hint, columns=1)[:, 0] for path in paths[:2])
    ends = read_numbers(paths[2], hint, columns=2)
    x, edge_attr = (read_numbers(path, hint, columns=c) for path, c in zip(paths[3:5], (9, 3)))
    y = read_numbers(paths[5], hint, columns=targets, dtype=np.float32)
    for path, found, wanted in (
        (paths[0], len(nodes), size),
        (paths[1], len(edges), size),
        (paths[5], len(y), size),
        (paths[3], len(x), int(nodes.sum())),
        (paths[2], len(ends), int(edges.sum())),
        (paths[4], len(edge_attr), int(edges.sum())),
    ):
        if found != wanted:
            raise DataError(f"{path} has {found} rows instead of {wanted}", hint)
    both = np.stack([ends, ends[:, ::-1]], axis=1).reshape(-1, 2)  # each edge, then its reverse
    table = GraphTable(
        x=torch.from_numpy(x).byte(),
        edge_index=torch.from_numpy(np.ascontiguousarray(both.T)).int(),
        edge_attr=torch.from_numpy(np.repeat(edge_attr, 2, axis=0)).byte(),
        y=torch.from_numpy(y),
        node_ptr=borders(nodes),
        edge_ptr=borders(2 * edges),
    )
    return table.validate(str(paths[0].parent))


def molecule_graphs(
    rows: Sequence[dict[str, str]],
    smiles: str,
    targets: Sequence[str],
    path: Path,
    *,
    on_invalid: Literal["error", "skip"] = "error",
) -> tuple[list[Graph], np.ndarray, DataError | None]:
    """Graphs of a CSV's rows.

    Args:
        rows: its rows.
        smiles: column of the SMILES.
        targets: columns of the targets; an empty cell is an unknown value.
        path: the file, for errors.
        on_invalid: "skip" leaves out the rows that cannot be used.

    Returns:
        The graphs, the number of the row that each came from, (n,), and what was wrong with the first row left out.

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
    if not graphs:
        raise DataError(f"{path}: none of its {len(rows)} rows can be used")
    return graphs, np.array(kept, dtype=np.int64), refused[0] if refused else None


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
        device: where batches are cut.
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
        device: Device = "auto",
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
        large, content = len(rows) >= _CACHE_ABOVE, content_key(path, f"{smiles} {names} {on_invalid} v{VERSION}")

        def parse() -> Arrays:
            graphs, kept, refused = molecule_graphs(rows, smiles, names, path, on_invalid=on_invalid)
            arrays = GraphTable.from_graphs(graphs).to_arrays()
            return {**arrays, "kept": kept, "refused": np.array("" if refused is None else refused.message)}

        arrays = dict(cached(content, parse, use=large, small=True))
        kept, refused = arrays.pop("kept"), str(arrays.pop("refused"))
        if refused:
            say(f"left out {len(rows) - len(kept)} of {len(rows)} rows, the first: {refused}")
        table = GraphTable.from_arrays(arrays)
        known = table.y[~torch.isnan(table.y)]
        key = content_key(content, repr((split, tuple(fractions), split_seed)))
        splits = cached(
            content_key(key, "splits"),
            lambda: _make_splits(path, rows, kept, smiles, split, column, fractions, split_seed),
            use=large,
        )
        super().__init__(
            table,
            splits,
            targets=names,
            kind="classification" if bool(((known == 0) | (known == 1)).all()) else "regression",
            unit=unit,
            key=key,
            codes="ogb",
            smiles=[rows[i][smiles].strip() for i in kept],
            device=device,
        )


# File, targets (None: every column of numbers), the split that MoleculeNet recommends, unit.
MOLECULENET: dict[str, tuple[str, tuple[str, ...] | None, str, str]] = {
    "esol": (
        "ESOL_delaney-processed",
        ("measured log solubility in mols per litre",),
        "random",
        "log10(mol/l)",
    ),
    "freesolv": ("FreeSolv_SAMPL", ("expt",), "random", "kcal/mol"),
    "lipophilicity": ("Lipophilicity", ("exp",), "random", "log10"),
    "bace": ("bace", ("Class",), "scaffold", ""),
    "bbbp": ("BBBP", ("p_np",), "scaffold", ""),
    "hiv": ("HIV", ("HIV_active",), "scaffold", ""),
    "clintox": ("clintox", None, "random", ""),
    "sider": ("sider", None, "random", ""),
    "tox21": ("tox21", None, "random", ""),
}


class MoleculeNet(SmilesCsv):
    """One of MoleculeNet's tables (Wu et al., 2018) as it was published, with our split.

    Rows whose SMILES RDKit cannot read (11 of BBBP, a few of ClinTox) are left out, and counted aloud.

    Args:
        root: the folder with the tables, or the table itself.
        which: a key of :data:`MOLECULENET`.
        split: "scaffold" or "random"; None for the one that MoleculeNet recommends.
        fractions: of train, valid and test.
        split_seed: of "random".
        device: where batches are cut.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        which: str = "bbbp",
        split: Literal["scaffold", "random"] | None = None,
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        device: Device = "auto",
    ) -> None:
        stem, targets, usual, unit = MOLECULENET[which]
        hint = f"data.root must be MoleculeNet's {stem}.csv, plain or gzipped, or the folder that holds it"
        if root is None:
            raise DataError("moleculenet needs data.root", hint)
        path = Path(root)
        if path.is_dir():
            path = next((p for s in ("csv.gz", "csv") if (p := path / f"{stem}.{s}").is_file()), path / f"{stem}.csv")
        super().__init__(
            str(existing_file(path, hint)),
            targets=targets,
            split=split or usual,
            fractions=fractions,
            split_seed=split_seed,
            on_invalid="skip",
            unit=unit,
            device=device,
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
