"""Metrics over graphs with several targets, some of them unknown (NaN)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision


class TargetError(Metric):
    """RMSE or MAE of each target over its known values, then the mean over targets (OGB's convention).

    Args:
        kind: "rmse" or "mae".
        num_targets: K.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, kind: Literal["rmse", "mae"], num_targets: int) -> None:
        super().__init__()
        self.kind = kind
        self.add_state("total", torch.zeros(num_targets, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_targets, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """predicted and target (S, K), in the unit that the error is wanted in."""
        known = ~torch.isnan(target)
        error = torch.where(known, predicted - target, torch.zeros_like(target)).double()
        self.total += (error.square() if self.kind == "rmse" else error.abs()).sum(0)
        self.count += known.sum(0)

    def compute(self) -> Tensor:
        """A scalar; NaN when nothing is known."""
        mean = (self.total / self.count)[self.count > 0]
        return (mean.sqrt() if self.kind == "rmse" else mean).mean()


class MacroRanking(Metric):
    """Average precision or ROC-AUC of each label over its known values, then the unweighted mean over labels.

    Labels without a positive are left out, as LRGB and OGB do; for ROC-AUC also those without a negative.

    Args:
        kind: "ap" or "rocauc".
    """

    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, kind: Literal["ap", "rocauc"]) -> None:
        super().__init__()
        self.kind = kind
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """scores (S, K), any rising function of the probability; labels (S, K) of 0, 1 and NaN."""
        self.scores.append(scores.detach().float())
        self.labels.append(labels.detach().float())

    def compute(self) -> Tensor:
        """A scalar; NaN when no label can be ranked."""
        scores, labels = _joined(self.scores), _joined(self.labels)
        found = []
        for k in range(labels.shape[1]):
            known = ~torch.isnan(labels[:, k])
            # ranks keep the order of logits, which a sigmoid in fp32 would round to ties
            ranks = scores[known, k].unique(return_inverse=True)[1].double()
            score, truth = ranks / max(len(ranks), 1), labels[known, k].long()
            positives = int(truth.sum())
            if not positives or (self.kind == "rocauc" and positives == len(truth)):
                continue
            found.append((binary_average_precision if self.kind == "ap" else binary_auroc)(score, truth))
        return torch.stack(found).mean().float() if found else scores.new_tensor(float("nan"))


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)
