"""Smaller benchmarks of whole graphs: ZINC-12k, TUDataset, and any file of PyG graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from seqgraph.errors import DataError
from seqgraph_graph_mamba.cache import Arrays, cached, content_key, progress
from seqgraph_graph_mamba.data import Device, GraphDataset, Kind, describe_targets, integer_features
from seqgraph_graph_mamba.graph import Graph, Level, from_pyg
from seqgraph_graph_mamba.pickles import read_pickle, read_torch
from seqgraph_graph_mamba.reading import existing_file, find_folder, read_numbers
from seqgraph_graph_mamba.splits import random_split, stratified_folds
from seqgraph_graph_mamba.table import GraphTable, borders

ZINC_ATOMS, ZINC_BONDS = 28, 4
_ZINC_SIZES = {"train": 10_000, "valid": 1_000, "test": 1_000}
_ZINC_NAMES = {"train": "train", "valid": "val", "test": "test"}


class Zinc12k(GraphDataset):
    """ZINC-12k: 12,000 molecules, penalised logP, MAE (Dwivedi et al., 2020). Atoms of 28 kinds, bonds of 3.

    Args:
        root: a folder with ``zinc12k.npz`` (flat arrays), or with the benchmark's ``{train,val,test}.pickle`` and
            ``.index`` files, there or in ``raw/`` (PyG's layout).
        cache: keep what was read of the pickles.
        device: where batches are cut.
    """

    def __init__(self, root: str | None = None, *, cache: bool = True, device: Device = "auto") -> None:
        hint = (
            "give --data-root a folder with zinc12k.npz, or with train.pickle, val.pickle, test.pickle and the .index "
            "files of benchmarking-gnns, as PyG's ZINC keeps them in raw/"
        )
        if root is not None and (Path(root) / "zinc12k.npz").is_file():
            files = [Path(root) / "zinc12k.npz"]
            arrays = _read_zinc_arrays(files[0], hint)
        else:
            wanted = [f"{name}.{kind}" for name in _ZINC_NAMES.values() for kind in ("pickle", "index")]
            folder = find_folder(root, wanted, ("raw", "ZINC/raw", "data_from_benchmark"), "zinc-12k", hint)
            files = [folder / name for name in wanted]
            arrays = cached(
                content_key(*files, "zinc v1"), lambda: _read_zinc_pickles(folder, hint), use=cache, small=True
            )
        table = GraphTable.from_arrays(arrays).validate(str(files[0]))
        ends = np.cumsum(list(_ZINC_SIZES.values()))
        if len(table) != ends[-1]:
            raise DataError(f"{files[0]} holds {len(table)} graphs instead of {ends[-1]}", hint)
        if int(table.x.max()) >= ZINC_ATOMS or (
            table.edge_attr is not None and int(table.edge_attr.max()) >= ZINC_BONDS
        ):
            raise DataError(f"{files[0]} has an atom or bond of a kind that ZINC-12k does not have", hint)
        super().__init__(
            table,
            dict(zip(_ZINC_SIZES, np.split(np.arange(ends[-1]), ends[:-1]))),
            targets=["penalised logP"],
            kind="regression",
            key=content_key(*files),
            cache=cache,
            node_sizes=[ZINC_ATOMS],
            edge_sizes=[ZINC_BONDS],
            device=device,
        )


def _read_zinc_arrays(path: Path, hint: str) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {
                "x": held["atom_type"].astype(np.uint8)[:, None],
                "edge_index": held["edge_index"].astype(np.int32),
                "edge_attr": held["bond_type"].astype(np.uint8)[:, None],
                "y": held["y"].astype(np.float32)[:, None],
                "node_ptr": held["node_ptr"].astype(np.int64),
                "edge_ptr": held["edge_ptr"].astype(np.int64),
            }
    except Exception as error:  # a damaged archive raises many kinds
        raise DataError(f"{path} is not an archive of ZINC-12k's arrays: {error}", hint) from error


def _read_zinc_pickles(folder: Path, hint: str) -> Arrays:
    graphs = []
    for split, name in _ZINC_NAMES.items():
        path = folder / f"{name}.pickle"
        molecules = read_pickle(path, hint)
        chosen = read_numbers(folder / f"{name}.index", hint).reshape(-1)
        # some copies hold the chosen molecules alone, in the order of the index
        chosen = np.arange(len(chosen)) if len(molecules) == len(chosen) else chosen
        if len(chosen) != _ZINC_SIZES[split] or chosen.min() < 0 or chosen.max() >= len(molecules):
            raise DataError(f"{folder / name}.index does not choose {_ZINC_SIZES[split]} of {path}", hint)
        for i in progress(chosen.tolist(), len(chosen), f"zinc {name}"):
            try:
                held = molecules[i]
                bonds = held["bond_type"].long()
                ends = bonds.nonzero().T
                graphs.append(
                    Graph(
                        held["atom_type"].reshape(-1, 1).byte(),
                        ends,
                        bonds[ends[0], ends[1]][:, None].byte(),
                        held["logP_SA_cycle_normalized"].reshape(-1).float(),
                    )
                )
            except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
                raise DataError(f"{path}, molecule {i} is not one of benchmarking-gnns: {error}", hint) from error
    return GraphTable.from_graphs(graphs).to_arrays()


class TUDataset(GraphDataset):
    """One of the TUDatasets (Morris et al., 2020): ``<which>_A.txt`` and its companions.

    Node labels and edge labels become one-hot columns behind the attributes, which are standardised by the training
    split; graphs without either get their nodes' degrees. Ten folds that are alike in classes: ``fold`` is for testing,
    the next one for validation.

    Args:
        root: the folder with the files, or the one above it.
        which: the name, "MUTAG".
        fold: 0 to 9.
        split_seed: of the folds.
        device: where batches are cut.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        which: str = "MUTAG",
        fold: int = 0,
        split_seed: int = 0,
        device: Device = "auto",
    ) -> None:
        hint = f"give --data-root the folder of {which}_A.txt (www.chrsmrrs.com/graphkerneldatasets/{which}.zip)"
        folder = find_folder(
            root, [f"{which}_A.txt", f"{which}_graph_indicator.txt"], (which, f"{which}/raw", "raw"), which, hint
        )
        table, y, names, files, self._attributes = _read_tu(folder, which, hint)
        table = table.validate(str(folder / f"{which}_A.txt"))
        if names is None:
            place = stratified_folds(np.zeros(len(table), dtype=np.int64), 10, split_seed)
        else:
            place = stratified_folds(y[:, 0].astype(np.int64), 10, split_seed)
        held_out = {"test": fold, "valid": (fold + 1) % 10}
        splits = {name: np.flatnonzero(place == number) for name, number in held_out.items()}
        splits["train"] = np.flatnonzero(~np.isin(place, list(held_out.values())))
        super().__init__(
            table,
            splits,
            targets=names or [f"target {k}" for k in range(y.shape[1])],
            kind="regression" if names is None else "classes",
            key=content_key(*files, f"{which} {fold} {split_seed} standardised"),
            standardize=True,
            device=device,
        )

    def standardize(self) -> None:
        """Attributes get zero mean and unit deviation over the training split; columns of labels stay 0 and 1."""
        before = self.table
        super().standardize()
        for name, field, numbers in zip(("x", "edge"), ("x", "edge_attr"), self._attributes, strict=True):
            features = getattr(self.table, field)
            if features is not None:
                features[:, numbers:] = getattr(before, field)[:, numbers:]
                labels = features.shape[1] - numbers
                self.features[f"{name}_mean"][numbers:] = [0.0] * labels
                self.features[f"{name}_std"][numbers:] = [1.0] * labels


def _read_tu(
    folder: Path, which: str, hint: str
) -> tuple[GraphTable, np.ndarray, list[str] | None, list[Path], tuple[int, int]]:
    """The table, the targets (S, K), the names of the classes (None for values), the files, and how many of the nodes'
    and of the edges' columns are attributes."""
    files = []

    def read(name: str, dtype: type, rows: int) -> np.ndarray | None:
        path = folder / f"{which}_{name}.txt"
        if not path.is_file():
            return None
        files.append(path)
        found = read_numbers(path, hint, dtype=dtype)
        if len(found) != rows:
            raise DataError(f"{path} has {len(found)} rows instead of {rows}", hint)
        return found

    graph = read_numbers(folder / f"{which}_graph_indicator.txt", hint, columns=1)[:, 0] - 1
    ends = read_numbers(folder / f"{which}_A.txt", hint, columns=2) - 1
    files += [folder / f"{which}_A.txt", folder / f"{which}_graph_indicator.txt"]
    if (np.diff(graph) < 0).any() or (len(graph) and graph[0] != 0):
        raise DataError(f"{files[1]}: nodes are not sorted by graph, from 1", hint)
    if len(ends) and (ends.min() < 0 or ends.max() >= len(graph)):
        raise DataError(f"{files[0]}: an edge names node {int(ends.max()) + 1} of {len(graph)}", hint)
    nodes = np.bincount(graph)
    first = np.concatenate([[0], nodes.cumsum()[:-1]])
    owner = graph[ends[:, 0]]
    if (owner != graph[ends[:, 1]]).any():
        line = int((owner != graph[ends[:, 1]]).argmax()) + 1
        raise DataError(f"{files[0]}, row {line}: the edge joins two graphs", hint)
    order = np.argsort(owner, kind="stable")
    x, of_nodes = _columns(read("node_attributes", np.float32, len(graph)), read("node_labels", np.int64, len(graph)))
    if x is None:
        x, of_nodes = np.log1p(np.bincount(ends[:, 0], minlength=len(graph))).astype(np.float32)[:, None], 1
    edge_labels = read("edge_labels", np.int64, len(ends))
    edge_attr, of_edges = _columns(read("edge_attributes", np.float32, len(ends)), edge_labels)
    values = read("graph_attributes", np.float32, len(nodes))
    labels = read("graph_labels", np.int64, len(nodes))
    names = None
    if values is None:
        if labels is None:
            raise DataError(f"{folder} has neither {which}_graph_labels.txt nor {which}_graph_attributes.txt", hint)
        known, y = np.unique(labels[:, 0], return_inverse=True)
        names, values = [f"class {label}" for label in known], y.astype(np.float32)[:, None]
    table = GraphTable(
        x=torch.from_numpy(x),
        edge_index=torch.from_numpy((ends - first[owner][:, None])[order].T.astype(np.int32)),
        edge_attr=None if edge_attr is None else torch.from_numpy(edge_attr[order]),
        y=torch.from_numpy(values),
        node_ptr=borders(nodes),
        edge_ptr=borders(np.bincount(owner, minlength=len(nodes))),
    )
    return table, values, names, files, (of_nodes, of_edges)


def _columns(values: np.ndarray | None, labels: np.ndarray | None) -> tuple[np.ndarray | None, int]:
    """Attributes, and one column a value of each label, (rows, columns) float32; and how many are attributes."""
    parts = [] if values is None else [values]
    for column in [] if labels is None else labels.T:
        known, place = np.unique(column, return_inverse=True)
        parts.append(np.eye(len(known), dtype=np.float32)[place])
    numbers = 0 if values is None else values.shape[1]
    return np.concatenate(parts, axis=1) if parts else None, numbers


class PygFile(GraphDataset):
    """A list of PyG ``Data`` that ``torch.save`` wrote, read by torch's restricted reader.

    Args:
        root: the file.
        kind: what the targets are; None tells labels from values by looking.
        level: whether ``y`` belongs to graphs or to nodes.
        fractions: of train, valid and test, at random.
        split_seed: of the split.
        standardize: whether floating features are standardised by the training split.
        device: where batches are cut.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        kind: Kind | None = None,
        level: Level = "graph",
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        standardize: bool = True,
        device: Device = "auto",
    ) -> None:
        hint = "data.root must be a file of torch.save([Data(x=..., edge_index=..., y=...), ...])"
        if root is None:
            raise DataError("pyg-file needs data.root", hint)
        path = existing_file(Path(root), hint)
        held = read_torch(path, hint)
        if not isinstance(held, list | tuple) or not held or not all(hasattr(one, "edge_index") for one in held):
            raise DataError(f"{path} holds no list of PyG's Data", hint)
        graphs = [from_pyg(one, f"{path}, graph {i}", level=level, codes="any") for i, one in enumerate(held)]
        table = GraphTable.from_graphs(graphs, f"{path}, ")
        kind, names = describe_targets(table, kind)
        super().__init__(
            table,
            random_split(len(table), fractions, split_seed),
            targets=names,
            kind=kind,
            key=content_key(path, repr((kind, level, tuple(fractions), split_seed, standardize))),
            standardize=standardize,
            device=device,
            **integer_features(table),
        )
