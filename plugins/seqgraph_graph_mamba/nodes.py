"""One graph whose nodes are classified: what such data sets share, whole or by sampled neighbourhoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.train.task import Split
from seqgraph_graph_mamba.cache import say
from seqgraph_graph_mamba.data import Device, GraphDataset
from seqgraph_graph_mamba.graph import Graph, GraphBatch, widen
from seqgraph_graph_mamba.neighbors import NeighborSampler
from seqgraph_graph_mamba.positional import Encoding
from seqgraph_graph_mamba.table import GraphTable

Normalize = Literal["none", "rows", "standard"]
_ENCODABLE = 20_000
NAMES: tuple[Split, ...] = ("train", "valid", "test")


class NodeExample(NamedTuple):
    """A node of a split, or (node -1) the whole graph with that split's classes."""

    split: Split
    node: int


class _Nodes(Sequence[NodeExample]):
    """The examples of one split: seed nodes, or the graph once; ``y`` has the split's classes, (V,) int64."""

    def __init__(self, split: Split, nodes: np.ndarray, y: Tensor) -> None:
        self.name, self.nodes, self.y = split, nodes, y

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Nodes(self.name, self.nodes[place], self.y)
        return NodeExample(self.name, int(self.nodes[place]))


class NodeDataset(GraphDataset):
    """Classes of the nodes of one graph, in one or several ways to split them.

    Args:
        graph: the graph; its ``y`` holds a class of each node, -1 where unknown.
        masks: which nodes are in "train", "valid" and "test", each (F, V) bool: F ways to split.
        fold: which way; None takes the run's seed modulo F, so that seeds 0 to 9 go through ten splits.
        normalize: node features as they are ("none"), each row divided by its sum ("rows"), or each column
            standardised by the training nodes ("standard").
        neighbors: edges that a node samples at most, in each hop from the seed nodes of a batch; None trains on the
            whole graph at once.
        joint: whether the seeds of a batch share one sampled graph.
        key: hash of the content.
        device: where batches are cut.

    Raises:
        DataError: when a split has no node with a class.
        ConfigError: for a fold that is not there.
    """

    def __init__(
        self,
        graph: Graph,
        masks: Mapping[Split, np.ndarray],
        *,
        fold: int | None = None,
        normalize: Normalize = "standard",
        neighbors: Sequence[int] | None = None,
        joint: bool = True,
        key: str = "",
        device: Device = "auto",
    ) -> None:
        folds = len(masks["train"])
        if fold is not None and not 0 <= fold < folds:
            raise ConfigError(f"data.fold={fold}, the data have folds 0 to {folds - 1}")
        y = graph.y
        if y is None or y.is_floating_point() or y.shape != (graph.num_nodes,):
            raise DataError("the graph has no class for each of its nodes", "set Graph.y, -1 where it is unknown")
        self.masks, self.folds, self._asked, self.fold = masks, folds, fold, fold or 0
        self.normalize: Normalize = normalize
        if normalize == "rows":
            x = graph.x.float()
            graph = replace(graph, x=x / x.sum(1, keepdim=True).clamp_min(1e-12))
        self._raw, classes = graph.x, int(y.max()) + 1
        self.sampler = None
        if neighbors is not None:
            self.sampler = NeighborSampler(graph.edge_index.numpy(), graph.num_nodes, neighbors, joint=joint)
        self._whole: dict[str, tuple[GraphTable, GraphBatch]] = {}
        super().__init__(
            GraphTable.from_graphs([graph.validate("the graph")]),
            {name: np.zeros(1, dtype=np.int64) for name in NAMES},
            targets=[f"class {k}" for k in range(classes)],
            kind="classes",
            key=key,
            standardize=normalize == "standard",
            device=device,
        )

    def check_splits(self) -> None:
        for name in NAMES:
            if not bool((self._classes(name) >= 0).any()):
                raise DataError(f"no node of the {name} split has a class (fold {self.fold})")

    def _classes(self, name: Split) -> Tensor:
        """Classes of the nodes of a split, -1 for the others, (V,) int64."""
        return torch.where(torch.from_numpy(self.masks[name][self.fold]), self.table.y, -1)

    def training_rows(self) -> tuple[Tensor, Tensor]:
        nodes = torch.from_numpy(self.masks["train"][self.fold])
        return nodes, nodes[self.table.edge_index[0].long()]

    def model_defaults(self) -> dict[str, Any]:
        """As of every data set. A run asks for this first: here a fold that follows the seed is chosen."""
        fold = torch.initial_seed() % self.folds if self._asked is None else self._asked
        if fold != self.fold:
            self.fold = fold
            self.check_splits()
            if self.normalize == "standard":
                self.table = replace(self.table, x=self._raw)
                self.standardize()
        return super().model_defaults()

    def fingerprint(self) -> str:
        return f"{self.key}-{self.fold}" if self.folds > 1 else self.key

    # ------------------------------------------------------------------ what the trainer asks
    def split(self, name: Split) -> _Nodes:
        """The whole graph, once; or the nodes of the split, around which neighbourhoods are sampled."""
        y = self._classes(name)
        nodes = np.array([-1]) if self.sampler is None else (y >= 0).nonzero()[:, 0].numpy()
        return _Nodes(name, nodes, y)

    def lengths(self, name: Split) -> np.ndarray:  # type: ignore[override]
        """Nodes of the graph, or the most that each node's sampled neighbourhood may have."""
        examples = self.split(name)
        return np.array([len(self.table.x)]) if self.sampler is None else self.sampler.bounds(examples.nodes)

    def collate(self, examples: list[Any]) -> GraphBatch:
        """The graph with a split's classes, or a sample around some nodes, drawn by torch's global generator."""
        name = examples[0].split
        if self.sampler is not None:
            return self._sampled(np.array([example.node for example in examples]))
        table = self.placed()
        if name not in self._whole or self._whole[name][0] is not table:
            batch = replace(table.batch([0]), y=self._classes(name).to(table.device))
            self._whole[name] = (table, batch)
        return self._whole[name][1]

    def _sampled(self, seeds: np.ndarray) -> GraphBatch:
        assert self.sampler is not None
        table = self.placed()
        found = self.sampler.sample(seeds, int(torch.randint(2**62, ())))
        y = torch.full((len(found.nodes),), -1, dtype=torch.int64)
        y[torch.from_numpy(found.seeds)] = self.table.y[torch.from_numpy(seeds)]
        borders = torch.from_numpy(np.concatenate([[0], np.cumsum(found.sizes)]).astype(np.int32))

        def put(value: Any) -> Tensor:
            tensor = torch.as_tensor(value)
            cuda = table.device.type == "cuda"
            return tensor.pin_memory().to(table.device, non_blocking=True) if cuda else tensor

        nodes, edges = put(found.nodes), put(found.edges)
        return GraphBatch(
            x=widen(table.x.index_select(0, nodes)),
            edge_index=put(found.edge_index),
            cu_seqlens=put(borders),
            edge_attr=None if table.edge_attr is None else widen(table.edge_attr.index_select(0, edges)),
            y=put(y),
            pe=None if table.pe is None else table.pe.index_select(0, nodes),
            longest=int(found.sizes.max()),
        )

    def encode_positions(self, kind: Encoding, size: int) -> None:
        """As of every data set, but for a graph that is sampled because it is large; of a whole one a warning is given.

        Raises:
            ConfigError: for an encoding whose time or memory grows faster than the graph.
        """
        if kind != "none" and self._encoded != (kind, size) and len(self.table.x) > _ENCODABLE:
            what = f"model.pe={kind} of a graph of {len(self.table.x):,} nodes"
            if self.sampler is not None:
                raise ConfigError(f"{what} would take hours", "model.pe=none")
            say(f"{what} may take hours, unless its nodes have few neighbours each; model.pe=none does without")
        super().encode_positions(kind, size)

    def add_columns(self, model: Any) -> None:
        """What a model knows of the whole graph; a sample is another graph, of which it is not true."""
        if self.sampler is None:
            super().add_columns(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_whole": {}}
