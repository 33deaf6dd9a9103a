"""What every data set of graphs shares: splits, statistics, preprocessing, and batches cut where the model is."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqgraph import order
from seqgraph.errors import ConfigError, DataError
from seqgraph.train.task import Dataset, Split
from seqgraph_graph_mamba import ordering, positional, sampling
from seqgraph_graph_mamba.cache import Arrays, cached, content_key, progress
from seqgraph_graph_mamba.codes import PYG_ATOM_SIZES, PYG_BOND_SIZES, guess_codes
from seqgraph_graph_mamba.graph import Graph, GraphBatch, Level, collate, from_networkx, from_pyg
from seqgraph_graph_mamba.positional import Encoding, encode_batch
from seqgraph_graph_mamba.splits import random_split
from seqgraph_graph_mamba.table import GraphRow, GraphSubset, GraphTable

Kind = Literal["regression", "classification", "classes", "links"]
Codes = Literal["ogb", "pyg"]
Device = Literal["auto", "cpu", "cuda"]
LINK_WIDTH = 64

# Below this many nodes a positional encoding is made faster than it is read.
_CACHE_ABOVE = 100_000
# Unless a graph is so large that its nodes cost more than they do in small ones.
_LARGE_GRAPH = 2_000
# Nodes that are preprocessed at a time.
_CHUNK = 50_000
# Of a GPU's free memory, what the data may take; the rest is the training's.
_SHARE = 0.4


class GraphDataset(Dataset):
    """Graphs with targets and splits; the data sets of this plugin fill it, and so may others.

    Batches are cut by index from flat tensors. Those move to the GPU of the model that the data set follows, if
    ``device`` lets them and there is room, so that a step needs no work of the host and no copy.

    Args:
        table: every graph.
        splits: row numbers of "train", "valid" and "test".
        targets: names of the K targets, or of the K classes.
        kind: what the targets are: values ("regression"), K labels of 0 and 1 each ("classification"), one of K classes
            ("classes"), or pairs of nodes ("links").
        unit: of the targets, for people.
        key: hash of the content and of the settings that shape it.
        cache: whether long preprocessing is kept on disk.
        standardize: whether floating features get zero mean and unit deviation over the training split.
        node_sizes: how many values each integer column of x has; None for molecules in OGB's codes.
        edge_sizes: the same of edge_attr.
        codes: whose codes the molecules are in, if they are molecules.
        scale: mean and deviation that the targets are standardised by in the data themselves (each (K,)): the metrics
            are given in physical units as well.
        smiles: of each graph, where it is a molecule.
        device: where batches are cut: "cpu", "cuda", or "auto", on the model's GPU if the data fit.

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
        kind: Kind,
        unit: str = "",
        key: str = "",
        cache: bool = True,
        standardize: bool = False,
        node_sizes: Sequence[int] | None = None,
        edge_sizes: Sequence[int] | None = None,
        codes: Codes | None = None,
        scale: tuple[np.ndarray, np.ndarray] | None = None,
        smiles: Sequence[str] | None = None,
        device: Device = "auto",
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("data.device=cuda, but there is no GPU", "data.device=auto, or cpu")
        self.table, self.splits = table, splits
        self.targets, self.kind, self.unit, self.key, self.cache = list(targets), kind, unit, key, cache
        self.node_sizes, self.edge_sizes, self.codes = node_sizes, edge_sizes, codes
        self.scale, self.smiles, self.device = scale, smiles, device
        self.features: dict[str, list[float]] = {}
        self._encoded: tuple[Encoding, int] = ("none", 0)
        self._model: weakref.ref[nn.Module] | None = None
        self._moved: tuple[GraphTable, torch.device, GraphTable] | None = None
        self.check_splits()
        if standardize:
            self.standardize()

    def check_splits(self) -> None:
        """See that there is something to learn.

        Raises:
            DataError: when a split is empty, or a training target is never known.
        """
        for name in ("train", "valid", "test"):
            if not len(self.splits.get(name, ())):
                raise DataError(f"the {name} split is empty", "use more data or other fractions")
        if self.kind == "links":
            return
        y = self.split("train").y
        unknown = torch.isnan(y).all(0).nonzero()[:, 0].tolist() if y.is_floating_point() else []
        if unknown:
            name = self.targets[unknown[0]] if self.kind != "classes" else "class"
            raise DataError(f"target {name!r} is unknown in every training record")
        if not y.is_floating_point() and not bool((y >= 0).any()):
            raise DataError("no node of the training split has a class")

    @property
    def level(self) -> Level:
        """Whether a prediction belongs to a graph or to a node; links are scored between nodes."""
        return "node" if self.table.node_level or self.kind == "links" else "graph"

    @classmethod
    def from_list(
        cls,
        graphs: Sequence[Any],
        *,
        kind: Kind | None = None,
        level: Level = "graph",
        splits: Mapping[str, Sequence[int]] | None = None,
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        node: str = "x",
        edge: str | None = None,
        target: str = "y",
        **more: Any,
    ) -> GraphDataset:
        """Make a data set of PyG's ``Data``, networkx graphs, or :class:`Graph`.

        Args:
            graphs: the objects; PyG's ``y`` is (K,) or (1, K) for graphs and (V,) for nodes.
            kind: what the targets are; by default labels where all are 0 or 1, else values; classes for nodes, links
                where there are pairs.
            level: whether ``y`` belongs to graphs or nodes.
            splits: row numbers of "train", "valid" and "test"; by default at random.
            fractions: of train, valid and test.
            seed: of the random split.
            node: attribute of a networkx graph's node features.
            edge: attribute of its edge features, or None.
            target: attribute of its targets, of the graph or of the nodes.
            **more: further arguments of the class: ``targets`` (names), ``unit``, ``standardize`` (by default, floating
                features are) and so on.

        Raises:
            DataError: naming the first graph that cannot be used.
        """
        made = []
        for i, item in enumerate(graphs):
            where = f"graph {i}"
            if isinstance(item, Graph):
                made.append(item.validate(where))
            elif hasattr(item, "nodes") and hasattr(item, "edges"):
                made.append(from_networkx(item, node=node, edge=edge, target=target, level=level, where=where))
            else:
                made.append(from_pyg(item, where, level=level, codes="any"))
        if not made:
            raise DataError("there are no graphs in the list")
        table = GraphTable.from_graphs(made)
        kind, names = describe_targets(table, kind)
        if splits is None:
            parts = random_split(len(made), fractions, seed)
        else:
            parts = {name: np.asarray(rows, dtype=np.int64) for name, rows in splits.items()}
        return cls(
            table,
            parts,
            **{"targets": names, "kind": kind, "standardize": True, **integer_features(table), **more},
        )

    # ------------------------------------------------------------------ what the trainer asks
    def split(self, name: Split) -> Any:
        """The graphs of one split."""
        return GraphSubset(self.table, self.splits[name])

    def lengths(self, name: Split) -> np.ndarray:  # type: ignore[override]  # indexable all the same
        """Nodes of each graph of a split."""
        return self.split(name).lengths

    def sizes(self, name: Split) -> np.ndarray | None:
        """Edges, and pairs where there are any, of each graph of a split, (n, 1 or 2)."""
        examples = self.split(name)
        return examples.sizes if isinstance(examples, GraphSubset) else None

    def leveled(self, batch: GraphBatch) -> GraphBatch:
        """The batch with the largest training graph as ``longest``, which is all that the host knows beside the
        shapes: the scan plans with it how segments are cut, and attention on a CPU pads to it; a bound for both."""
        return batch.with_longest(self._longest)

    @cached_property
    def _longest(self) -> int:
        return int(self.lengths("train").max(initial=0))

    def collate(self, examples: list[Any]) -> GraphBatch:
        """Pack some graphs; those of this data set are cut where :meth:`home` is."""
        rows = [e.__dict__["row"] for e in examples if isinstance(e, GraphRow) and e.__dict__["table"] is self.table]
        if len(rows) < len(examples):
            return collate(examples)
        return self.placed().batch(rows)

    def model_defaults(self) -> dict[str, Any]:
        """One output a target, whose they are, and what the features are."""
        defaults: dict[str, Any] = {"d_out": LINK_WIDTH if self.kind == "links" else len(self.targets)}
        if self.level == "node":
            defaults["level"] = "node"
        for side, features, sizes in (
            ("node", self.table.x, self.node_sizes),
            ("edge", self.table.edge_attr, self.edge_sizes),
        ):
            if features is None:
                defaults |= {"edge_features": "none"} if self.node_sizes or self.table.x.is_floating_point() else {}
            elif features.is_floating_point():
                defaults |= {f"{side}_features": "linear", f"d_{side}": features.shape[1]}
            elif sizes is not None:
                defaults |= {f"{side}_features": "codes", f"{side}_sizes": list(sizes)}
        return defaults

    def assets(self) -> dict[str, Any]:
        """Names, kind and unit of the targets; for a regression, their mean and deviation in the training split; how
        features were standardised."""
        described: dict[str, Any] = {"names": self.targets, "kind": self.kind, "unit": self.unit}
        if self.kind == "regression":
            described |= self.statistics()
        features: dict[str, Any] = dict(self.features)
        if self.codes is not None:
            features["codes"] = self.codes
        return {"targets": described} | ({"features": features} if features else {})

    def statistics(self) -> dict[str, list[float]]:
        """What turns standardised targets into their own unit, "mean" and "std": the data's own, or the training
        split's."""
        if self.scale is not None:
            return {"mean": self.scale[0].tolist(), "std": self.scale[1].tolist()}
        mean, deviation = target_statistics(self.split("train").y)
        return {"mean": mean.tolist(), "std": deviation.tolist()}

    def fingerprint(self) -> str:
        """Hash of the content and of the settings that shape it."""
        return self.key

    # ------------------------------------------------------------------ where batches are cut
    def follow(self, model: nn.Module) -> None:
        """Cut batches where this model's parameters are, from now on (``device`` permitting)."""
        self._model = weakref.ref(model)

    def home(self) -> torch.device:
        """Where batches are cut at present."""
        model = None if self._model is None else self._model()
        worker = torch.utils.data.get_worker_info() is not None  # a forked process must leave the GPU alone
        if self.device == "cpu" or worker or (model is None and self.device == "auto"):
            return torch.device("cpu")
        device = next(model.parameters()).device if model is not None else torch.device("cuda")
        return device if device.type == "cuda" else torch.device("cuda" if self.device == "cuda" else "cpu")

    def placed(self) -> GraphTable:
        """The table at :meth:`home`, moved there once."""
        home = self.home()
        if home.type == "cpu":
            return self.table
        if self._moved is None or self._moved[0] is not self.table or self._moved[1] != home:
            free, _ = torch.cuda.mem_get_info(home)
            fits = self.table.nbytes <= _SHARE * free
            if not fits and self.device == "cuda":
                raise ConfigError(
                    f"the data take {self.table.nbytes / 2**30:.1f} GiB, the GPU has {free / 2**30:.1f} free",
                    "data.device=cpu",
                )
            self._moved = (self.table, home, self.table.to(home) if fits else self.table)
        return self._moved[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_moved": None}

    # ------------------------------------------------------------------ preprocessing
    def training_rows(self) -> tuple[Tensor, Tensor]:
        """Which nodes (V,) and edges (M,) are in the training split, bool."""
        train = torch.zeros(len(self.table), dtype=torch.bool)
        train[torch.from_numpy(self.splits["train"])] = True
        return train.repeat_interleave(self.table.node_ptr.diff()), train.repeat_interleave(self.table.edge_ptr.diff())

    def standardize(self) -> None:
        """Standardise floating features, which must be as they came, by the training split's statistics."""
        changed: dict[str, Any] = {}
        for name, field, chosen in zip(("x", "edge"), ("x", "edge_attr"), self.training_rows()):
            features = getattr(self.table, field)
            if features is not None and features.is_floating_point():
                mean, deviation = column_statistics(features, chosen)
                changed[field] = (features - mean) / deviation
                self.features |= {f"{name}_mean": mean.tolist(), f"{name}_std": deviation.tolist()}
        self.table = replace(self.table, **changed)

    def encode_positions(self, kind: Encoding, size: int) -> None:
        """Compute the positional encoding of every graph once, on disk for large data sets, instead of per batch."""
        if self._encoded == (kind, size):
            return
        if kind == "none":
            self.table, self._encoded = self.table.with_pe(None), (kind, size)
            return

        def compute() -> Arrays:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                parts = pool.map(lambda rows: encode_batch(self.table.batch(rows), kind, size), self._chunks())
                shown = progress(parts, len(self._chunks()), f"{kind} encoding", worth=8)
                return {"pe": torch.cat([part for part in shown if part is not None]).numpy()}

        large, key = self._worth_keeping(), ""
        if large:
            # the code that makes it is a part of what it is made from
            shape = [self.table.edge_index.numpy(), self.table.node_ptr.numpy(), self.table.edge_ptr.numpy()]
            key = content_key(*shape, f"{kind} {size}", Path(positional.__file__))
        self.table = self.table.with_pe(torch.from_numpy(cached(key, compute, use=large)["pe"]))
        self._encoded = (kind, size)

    def add_columns(self, model: Any) -> None:
        """Keep what a model needs of each graph and training never changes (``model.node_columns``); on disk for large
        data sets, where the model says what that hangs on beside the graphs (``model.columns_key``)."""
        compute = getattr(model, "node_columns", None)
        self.table = replace(self.table, columns={})
        if compute is None:
            return

        def all_columns() -> Arrays:
            parts: list[dict[str, Tensor]] = []
            with torch.no_grad():
                for rows in progress(self._chunks(), len(self._chunks()), "orders", worth=8):
                    parts.append(compute(self.table.batch(rows)))
                    if not parts[-1]:
                        return {}
            return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

        made_of, key = getattr(model, "columns_key", None), ""
        keep = made_of is not None and self._worth_keeping()
        if keep:
            features = [self.table.x] if self.table.edge_attr is None else [self.table.x, self.table.edge_attr]
            held = [self.table.edge_index, self.table.node_ptr, self.table.edge_ptr, *features]
            code = [*sorted(Path(order.__file__).parent.glob("*.py")), Path(ordering.__file__), Path(sampling.__file__)]
            key = content_key(*[part.numpy() for part in held], f"columns {made_of}", *code)
        found = cached(key, all_columns, use=keep)
        self.table = replace(self.table, columns={name: torch.from_numpy(value) for name, value in found.items()})

    def _worth_keeping(self) -> bool:
        """Whether what takes time a node is to be kept on disk."""
        return self.cache and (len(self.table.x) > _CACHE_ABOVE or self.table.num_nodes.max() > _LARGE_GRAPH)

    def _chunks(self) -> list[np.ndarray]:
        """Numbers of all graphs in order, some at a time."""
        ends, cuts = self.table.node_ptr.numpy(), [0]
        while cuts[-1] < len(self.table):
            cuts.append(max(int(np.searchsorted(ends, ends[cuts[-1]] + _CHUNK, side="right")) - 1, cuts[-1] + 1))
        return [np.arange(a, b) for a, b in pairwise(cuts)]


def integer_features(table: GraphTable) -> dict[str, Any]:
    """``codes``, ``node_sizes`` and ``edge_sizes`` of a data set: whose codes integer features are, or how many."""
    codes = guess_codes(table.x, table.edge_attr)
    if codes == "pyg":
        return {"codes": codes, "node_sizes": PYG_ATOM_SIZES, "edge_sizes": PYG_BOND_SIZES}
    found: dict[str, Any] = {"codes": codes}
    for name, features in (("node_sizes", table.x), ("edge_sizes", table.edge_attr)):
        if codes == "ogb" or features is None or features.is_floating_point() or not len(features):
            continue
        if int(features.min()) < 0:
            raise DataError(
                f"an integer feature is {int(features.min())}", "codes are 0 or more; make other numbers floating"
            )
        found[name] = [highest + 1 for highest in features.long().amax(0).tolist()]
    return found


def describe_targets(table: GraphTable, kind: Kind | None) -> tuple[Kind, list[str]]:
    """What the targets of some graphs are, by looking where it is not said, and plain names for them."""
    y = table.y[~torch.isnan(table.y)] if table.y.is_floating_point() else table.y
    if kind is None:
        binary = bool(((y == 0) | (y == 1)).all())
        kind = "classification" if binary else "regression"
        kind = "links" if table.pairs is not None else "classes" if table.node_level else kind
    if kind == "links":
        return kind, ["link"]
    if kind == "classes":
        return kind, [f"class {k}" for k in range(int(y.max()) + 1)]
    return kind, [f"target {k}" for k in range(table.y.shape[1])]


def target_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of y (S, K) over its known values; 1 where it does not vary."""
    y = y.double()
    mean = y.nanmean(0)
    deviation = (y - mean).square().nanmean(0).sqrt()
    return mean, torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))


def column_statistics(features: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (F,) float32 of the chosen rows (R,) bool; 1 where a column does not vary."""
    rows = chosen.nonzero()[:, 0]
    total, squares = (torch.zeros(features.shape[1], dtype=torch.float64) for _ in range(2))
    # in pieces: a large data set in double precision may not fit beside itself
    for piece in rows.split(1 << 20):
        total += features[piece].double().sum(0)
    mean = total / max(len(rows), 1)
    for piece in rows.split(1 << 20):
        squares += (features[piece].double() - mean).square().sum(0)
    deviation = (squares / max(len(rows), 1)).sqrt()
    return mean.float(), torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)).float()
