"""What is learnt on graphs: values (regression) or labels (classification), one row a graph."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqgraph.errors import ConfigError, DataError
from seqgraph.train.task import Dataset, Task
from seqgraph_graph_mamba.data import GraphDataset, target_statistics
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.metrics import MacroRanking, TargetError


def graph_dataset(data: Dataset) -> GraphDataset:
    """The data set itself, if it is one of graphs.

    Raises:
        ConfigError: for any other.
    """
    if not isinstance(data, GraphDataset):
        raise ConfigError(f"a {type(data).__name__} holds no graphs with targets", "choose one of `seqgraph datasets`")
    return data


def known_targets(batch: GraphBatch) -> Tensor:
    """The batch's targets, (S, K).

    Raises:
        DataError: when it has none.
    """
    if batch.y is None:
        raise DataError("the graphs of a batch have no targets", "set Graph.y")
    return batch.y


class GraphTask(Task):
    """Common to both: the data are prepared for the model once, unknown targets (NaN) do not count."""

    model: Any

    def setup(self, data: Dataset) -> None:
        """Have the data set compute the model's positional encoding once, instead of the model for each batch."""
        data = graph_dataset(data)
        data.encode_positions(self.model.pe, self.model.pe_size)
        if self.model.d_out != len(data.targets):
            raise ConfigError(
                f"model.d_out is {self.model.d_out}, the data have {len(data.targets)} targets", "leave d_out out"
            )

    def _remember(self, data: Dataset, kind: str, **more: Any) -> None:
        """Tell the model what its outputs mean; what it already knows (from its checkpoint) stays."""
        described = {**data.assets()["targets"], **more, **self.model.assets.get("targets", {}), "kind": kind}
        self.model.assets = {**self.model.assets, "targets": described}

    def training_step(self, batch: GraphBatch) -> dict[str, Tensor]:
        """The loss of one batch, a mean over its known targets."""
        return self._loss(self.model(batch), known_targets(batch))

    def _loss(self, output: Tensor, y: Tensor) -> dict[str, Tensor]:
        known = ~torch.isnan(y)
        size = known.sum()
        # where, not a product: NaN times zero is NaN
        each = torch.where(known, self._each(output, torch.where(known, y, torch.zeros_like(y))), output.new_zeros(()))
        return {"loss": each.sum() / size.clamp_min(1), "size": size}

    def _each(self, output: Tensor, y: Tensor) -> Tensor:
        """The loss of each known target, (S, K)."""
        raise TypeError(f"{type(self).__name__} has no loss")


class GraphRegression(GraphTask):
    """Real targets, learnt standardised by the training split, measured in their own unit.

    Args:
        model: returns (S, K) for a GraphBatch.
        loss: "l1" or "mse", on standardised targets.
        monitor: "rmse" or "mae".
    """

    mode = "min"
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, model: nn.Module, *, loss: Literal["l1", "mse"] = "l1", monitor: Literal["rmse", "mae"] = "rmse"
    ) -> None:
        super().__init__(model)
        self.loss, self.monitor = loss, monitor
        targets = int(self.model.d_out)
        self.rmse, self.mae = TargetError("rmse", targets), TargetError("mae", targets)
        self.register_buffer("mean", torch.zeros(targets), persistent=False)
        self.register_buffer("deviation", torch.ones(targets), persistent=False)

    def setup(self, data: Dataset) -> None:
        """Standardise targets by the statistics in ``model.assets``, or by the training split's."""
        super().setup(data)
        mean, deviation = target_statistics(graph_dataset(data).split("train").y)
        self._remember(data, "regression", mean=mean.tolist(), std=deviation.tolist())
        known = self.model.assets["targets"]
        self.mean.copy_(torch.tensor(known["mean"]))
        self.deviation.copy_(torch.tensor(known["std"]))

    def _each(self, output: Tensor, y: Tensor) -> Tensor:
        error = output - (y - self.mean) / self.deviation
        return error.abs() if self.loss == "l1" else error.square()

    def evaluation_step(self, batch: GraphBatch) -> dict[str, Tensor]:
        """Update the metrics with one batch."""
        output, y = self.model(batch), known_targets(batch)
        predicted = output * self.deviation + self.mean
        self.rmse.update(predicted, y)
        self.mae.update(predicted, y)
        return self._loss(output, y)

    def metrics(self) -> dict[str, Any]:
        """RMSE and MAE in the targets' unit."""
        return {"rmse": self.rmse, "mae": self.mae}

    def baseline(self, data: Dataset) -> dict[str, float]:
        """The training split's mean (for MAE its median) predicted for every test graph."""
        train, test = graph_dataset(data).split("train").y, graph_dataset(data).split("test").y
        rmse, mae = TargetError("rmse", test.shape[1]), TargetError("mae", test.shape[1])
        rmse.update(train.nanmean(0).expand_as(test), test)
        mae.update(train.nanmedian(0).values.expand_as(test), test)
        return {"rmse": float(rmse.compute()), "mae": float(mae.compute())}


class GraphClassification(GraphTask):
    """Labels of 0 and 1, several a graph, by logistic loss.

    Args:
        model: returns logits (S, K) for a GraphBatch.
        monitor: "ap" (macro average precision, LRGB's) or "rocauc" (macro, OGB's).
    """

    mode = "max"

    def __init__(self, model: nn.Module, *, monitor: Literal["ap", "rocauc"] = "ap") -> None:
        super().__init__(model)
        self.monitor = monitor
        self.ap, self.rocauc = MacroRanking("ap"), MacroRanking("rocauc")

    def setup(self, data: Dataset) -> None:
        """Check that the targets are labels.

        Raises:
            DataError: for a target other than 0, 1 and NaN.
        """
        super().setup(data)
        y = graph_dataset(data).table.y
        wrong = y[~((y == 0) | (y == 1) | torch.isnan(y))]
        if len(wrong):
            raise DataError(f"a target is {float(wrong[0]):g}, labels are 0 or 1", "use task.name=graph-regression")
        self._remember(data, "classification")

    def _each(self, output: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(output, y, reduction="none")

    def evaluation_step(self, batch: GraphBatch) -> dict[str, Tensor]:
        """Update the metrics with one batch."""
        output, y = self.model(batch), known_targets(batch)
        self.ap.update(output, y)
        self.rocauc.update(output, y)
        return self._loss(output, y)

    def metrics(self) -> dict[str, Any]:
        """Macro average precision and ROC-AUC."""
        return {"ap": self.ap, "rocauc": self.rocauc}

    def baseline(self, data: Dataset) -> dict[str, float]:
        """The same score for every test graph: average precision is then the share of positives, ROC-AUC a half."""
        test = graph_dataset(data).split("test").y
        ap, rocauc = MacroRanking("ap"), MacroRanking("rocauc")
        for metric in (ap, rocauc):
            metric.update(torch.zeros_like(test), test)
        return {"ap": float(ap.compute()), "rocauc": float(rocauc.compute())}
