"""Forecasting as a task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric

from seqgraph.stream import TokenStream
from seqgraph.train.task import Dataset, Task

DAY = 24


class Forecasting(Task):
    """Mean squared error of the forecast in the scaled series, as the field reports it.

    Args:
        model: maps windows, values (T, lookback), to forecasts (T, horizon).
    """

    monitor = "mse"
    mode = "min"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.mse = MeanSquaredError()
        self.mae = MeanAbsoluteError()
        self.horizon = 0

    def setup(self, data: Dataset) -> None:
        """Take the number of steps to forecast from the data."""
        self.horizon = data.model_defaults()["horizon"]

    def _forecast(self, batch: TokenStream) -> tuple[Tensor, Tensor]:
        past, future = batch.values[:, : -self.horizon], batch.values[:, -self.horizon :]
        return self.model(batch.with_values(past)), future

    def training_step(self, batch: TokenStream) -> dict[str, Tensor]:
        """The loss over all variates and steps of the batch."""
        forecast, future = self._forecast(batch)
        return {"loss": F.mse_loss(forecast, future), "size": torch.tensor(len(future))}

    def evaluation_step(self, batch: TokenStream) -> dict[str, Tensor]:
        """The same, and the metrics."""
        forecast, future = self._forecast(batch)
        self.mse.update(forecast.contiguous(), future.contiguous())
        self.mae.update(forecast.contiguous(), future.contiguous())
        return {"loss": F.mse_loss(forecast, future), "size": torch.tensor(len(future))}

    def metrics(self) -> dict[str, Metric]:
        """Squared and absolute error in units of each series' standard deviation."""
        return {"mse": self.mse, "mae": self.mae}

    def baseline(self, data: Dataset) -> dict[str, float]:
        """The best, by squared error, of :func:`trivial_forecasts` on the test windows."""
        windows = torch.stack(list(data.split("test")))  # (n, V, lookback + horizon)
        horizon = data.model_defaults()["horizon"]
        past, future = windows[..., :-horizon], windows[..., -horizon:]
        scores = [
            {"mse": float(F.mse_loss(guess, future)), "mae": float(F.l1_loss(guess, future))}
            for guess in trivial_forecasts(past, horizon).values()
        ]
        return min(scores, key=lambda score: score["mse"])


def trivial_forecasts(past: Tensor, horizon: int) -> dict[str, Tensor]:
    """Forecasts that need no learning.

    Args:
        past: scaled windows, (..., lookback).
        horizon: steps to forecast.

    Returns:
        By name, (..., horizon): the training mean, the window's mean, its last value, and the same hour a day ago.
    """
    shape = (*past.shape[:-1], horizon)
    guesses = {
        "training mean": past.new_zeros(shape),
        "window mean": past.mean(-1, keepdim=True).expand(shape),
        "last value": past[..., -1:].expand(shape),
    }
    if past.shape[-1] >= DAY:
        hours = torch.arange(horizon, device=past.device) % DAY
        guesses["same hour a day ago"] = past[..., -DAY:][..., hours]
    return guesses
