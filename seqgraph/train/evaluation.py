"""Metrics of a task over one split: every example once, and the same answer each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from seqgraph.train.batching import TokenBatches
from seqgraph.train.task import Task


@torch.no_grad()
def evaluate_task(
    task: Task, loader: DataLoader, *, device: torch.device | str, precision: str = "32"
) -> dict[str, float]:
    """Run a split through a task, which is in ``eval`` mode for as long.

    With several processes each takes its share, and all get the result over all of it.

    Args:
        task: on the device already.
        loader: of :func:`seqgraph.train.batching.token_batches`.
        device: where the batches go.
        precision: "bf16" evaluates under autocast.

    Returns:
        ``task.metrics()`` by name, and "loss", the mean over all items, where the task gives one.
    """
    device = torch.device(device)
    metrics = task.metrics()
    for metric in metrics.values():
        metric.to(device).reset()
    sampler: TokenBatches = loader.sampler  # type: ignore[assignment]
    sampler.seek(0)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    training = task.training
    task.eval()
    try:
        with repeatable(device), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for batch in loader:
                output = task.evaluation_step(batch.to(device)) or {}
                if "loss" in output:
                    total += sums_of(output["loss"], output.get("size", 1))
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(total)
            results = {"loss": float(total[0] / total[1])} if total[1] > 0 else {}
            for name, metric in metrics.items():
                results.update(_numbers(name, metric.compute()))
                metric.reset()
    finally:
        task.train(training)
    return results


def sums_of(value: Any, size: Any) -> torch.Tensor:
    """A mean over ``size`` items, as (2,) float64: the sum and the size."""
    value = torch.as_tensor(value).detach().double().reshape(())
    size = torch.as_tensor(size, device=value.device).double().reshape(())
    return torch.stack([value * size, size])


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Seed torch's generators for a while, and put them back afterwards: training does not notice."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        yield


def _numbers(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, dict):
        return {key: float(v) for key, v in value.items()}
    return {name: float(value)}
