"""Linear probes on many rows: logistic regression by L-BFGS on any device, the same on every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = {"cpu": 1 << 16, "cuda": 1 << 18}
"""Rows that are worked on at once: a GPU waits for its launches, a CPU for its memory."""
PENALTIES = (1e-5, 1e-3, 1e-1)
"""Strengths of the L2 penalty to choose from: of |W|² / 2, beside the mean loss."""

Kind = Literal["classes", "labels"]


@dataclass
class Linear:
    """Logistic regression on standardised columns.

    Attributes:
        weight: (D, C) float32, of the standardised columns.
        bias: (C,) float32.
        mean: (D,) of the training rows.
        scale: (D,) of the training rows.
        kind: "classes": one of C; "labels": any of C.
        penalty: strength of the L2 penalty that it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    kind: Kind
    penalty: float

    def logits(self, rows: np.ndarray) -> Tensor:
        """(N, D) -> (N, C) float32 on the CPU."""
        device = self.weight.device
        parts = [
            (self._standard(_on(rows[some], device)) @ self.weight + self.bias).cpu()
            for some in _chunks(len(rows), device)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.weight.shape[1])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Classes (N,) int64, or labels (N, C) bool: those of a probability above one half."""
        found = self.logits(rows)
        return (found.argmax(1) if self.kind == "classes" else found > 0).numpy()

    def _standard(self, rows: Tensor) -> Tensor:
        return (rows.float() - self.mean) / self.scale


def fit(
    rows: np.ndarray,
    targets: np.ndarray,
    *,
    kind: Kind = "classes",
    count: int | None = None,
    penalty: float = 1e-3,
    device: torch.device | str = "cpu",
    steps: int = 200,
    start: Linear | None = None,
) -> Linear:
    """Minimise mean loss + penalty / 2 * |W|². It is scikit-learn's with C = 1 / (penalty * N), bias not penalised.

    Args:
        rows: (N, D), float16 or float32; copied to the device as they are.
        targets: (N,) int64 of classes, or (N, C) of 0 and 1.
        kind: whether a row has one class or any number of labels; the loss of labels is the sum over them.
        count: C; by default the largest class and one.
        penalty: of the weights on standardised columns.
        device: where the work is done.
        steps: of L-BFGS at most.
        start: where to begin, a probe of the same columns and classes.
    """
    device = torch.device(device)
    count = count or (int(targets.max()) + 1 if kind == "classes" else targets.shape[1])
    x = _on(rows, device)
    y = torch.from_numpy(np.ascontiguousarray(targets)).to(device)
    mean, scale = _moments(x)
    probe = Linear(
        torch.zeros(x.shape[1], count, device=device) if start is None else start.weight.clone(),
        torch.zeros(count, device=device) if start is None else start.bias.clone(),
        mean, scale, kind, penalty,
    )  # fmt: skip
    weight, bias = probe.weight.requires_grad_(False), probe.bias
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, history_size=10, tolerance_grad=1e-6, tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        assert weight.grad is not None and bias.grad is not None
        loss = torch.zeros((), dtype=torch.float64, device=device)
        into, above = torch.zeros_like(weight), torch.zeros_like(bias)
        for some in _chunks(len(x), device):
            part, want = probe._standard(x[some]), y[some]
            value, slope = _loss(part @ weight + bias, want, kind)
            loss += value
            into.addmm_(part.T, slope)
            above += slope.sum(0)
        weight.grad.copy_(into / len(x) + penalty * weight)
        bias.grad.copy_(above / len(x))
        return (loss / len(x) + penalty / 2 * weight.double().square().sum()).float()

    with torch.no_grad():
        optimiser.step(closure)
    weight.grad = bias.grad = None
    return probe


def fit_best(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    *,
    kind: Kind = "classes",
    count: int | None = None,
    penalties: Sequence[float] = PENALTIES,
    device: torch.device | str = "cpu",
    steps: int = 200,
) -> Linear:
    """The probe whose penalty has the lowest loss on the validation rows; from the strongest to the weakest."""
    best, least, last = None, float("inf"), None
    for penalty in sorted(penalties, reverse=True):
        last = fit(*train, kind=kind, count=count, penalty=penalty, device=device, steps=steps, start=last)
        wanted = torch.from_numpy(np.ascontiguousarray(valid[1]))
        loss = float(_loss(last.logits(valid[0]), wanted, kind)[0]) / max(len(wanted), 1)
        if loss < least:
            best, least = last, loss
    assert best is not None
    return best


def _loss(logits: Tensor, want: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Sum of the losses (float64), and its slope in the logits."""
    if kind == "classes":
        logs = logits.log_softmax(1)
        slope = logs.exp()
        slope[torch.arange(len(want), device=want.device), want] -= 1
        return -logs.gather(1, want[:, None]).double().sum(), slope
    goal = want.float()
    return F.binary_cross_entropy_with_logits(logits, goal, reduction="none").double().sum(), logits.sigmoid() - goal


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the columns; 1 where a column is constant."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    square = torch.zeros_like(total)
    for some in _chunks(len(x), x.device):
        total += x[some].double().sum(0)
    mean = total / len(x)
    for some in _chunks(len(x), x.device):
        square += (x[some].double() - mean).square().sum(0)
    scale = (square / len(x)).sqrt()
    return mean.float(), torch.where(scale > 1e-6, scale, 1.0).float()


def _chunks(rows: int, device: torch.device) -> list[slice]:
    size = _ROWS.get(device.type, _ROWS["cpu"])
    return [slice(begin, begin + size) for begin in range(0, rows, size)]


def _on(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows) if not rows.flags.writeable else np.ascontiguousarray(rows)).to(device)


def nearest(queries: np.ndarray, known: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """The row of ``known`` with the largest cosine for each query, (N,); columns are centred on those of ``known``."""
    mean = torch.from_numpy(np.array(known, np.float32)).mean(0)
    there = F.normalize(torch.from_numpy(np.array(known, np.float32)) - mean, dim=1).to(device)
    asked = F.normalize(torch.from_numpy(np.array(queries, np.float32)) - mean, dim=1).to(device)
    parts = [(part @ there.T).argmax(1).cpu() for part in asked.split(2048)]
    return torch.cat(parts).numpy() if parts else np.empty(0, np.int64)
