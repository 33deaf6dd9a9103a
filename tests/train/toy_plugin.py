"""A tiny domain for the trainer's tests: sequences of vectors whose mean has a linear target."""

from __future__ import annotations

import os
import signal

import numpy as np
import torch
import torchmetrics
from pydantic import BaseModel, ConfigDict
from torch import nn

from seqgraph.plugin import Dataset as DatasetDescriptor
from seqgraph.plugin import Model, hookimpl
from seqgraph.plugin import Task as TaskDescriptor
from seqgraph.stream import TokenStream
from seqgraph.train.task import Dataset, Task

WIDTH = 4


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToyModelConfig(Config):
    d_in: int
    d_model: int = 8
    dropout: float = 0.0
    noise: float = 0.0


class ToyModel(nn.Module):
    def __init__(self, d_in: int, d_model: int = 8, dropout: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Linear(d_in, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, 1)
        self.scale = nn.Parameter(torch.ones(d_model))
        self.scale._no_weight_decay = True
        self.noise = noise
        self.assets: dict = {}

    def forward(self, stream: TokenStream) -> torch.Tensor:
        hidden = torch.tanh(self.inner(stream.values)) * self.scale
        if self.training and self.noise:  # all three generators, so that each must be restored
            hidden = hidden + self.noise * (np.random.rand() + torch.rand(()))
        pooled = stream.with_values(self.dropout(self.norm(hidden))).pool("mean")
        return self.head(pooled)[:, 0]


class Examples:
    def __init__(self, stream: TokenStream, targets: torch.Tensor) -> None:
        self.stream, self.targets = stream, targets
        self.lengths = stream.lengths.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[TokenStream, torch.Tensor]:
        return self.stream[i], self.targets[i]


class Batch:
    def __init__(self, stream: TokenStream, targets: torch.Tensor) -> None:
        self.stream, self.targets = stream, targets

    def to(self, device) -> Batch:
        return Batch(self.stream.to(device), self.targets.to(device))


class ToyDataConfig(Config):
    root: str | None = None
    n: int = 48
    jitter: float = 0.0
    seed: int = 0


class ToyData(Dataset):
    def __init__(self, root: str | None = None, n: int = 48, jitter: float = 0.0, seed: int = 0) -> None:
        self.n, self.jitter, self.seed = n, jitter, seed
        self.splits = {name: self._make(i, n if name == "train" else n // 3) for i, name in enumerate(self._names())}

    @staticmethod
    def _names() -> tuple[str, ...]:
        return "train", "valid", "test"

    def _make(self, which: int, n: int) -> Examples:
        g = torch.Generator().manual_seed(self.seed * 10 + which)
        parts = [torch.randn(int(torch.randint(1, 9, (), generator=g)), WIDTH, generator=g) for _ in range(n)]
        stream = TokenStream.from_ragged(parts)
        weight = torch.linspace(-1, 1, WIDTH)
        return Examples(stream, stream.pool("mean") @ weight if n else torch.zeros(0))

    def split(self, name):
        return self.splits[name]

    def lengths(self, name):
        return self.splits[name].lengths

    def collate(self, examples):
        stream = TokenStream.concat([s for s, _ in examples])
        if self.jitter:
            stream = stream.with_values(stream.values + self.jitter * torch.randn_like(stream.values))
        return Batch(stream, torch.stack([t for _, t in examples]))

    def model_defaults(self):
        return {"d_in": WIDTH}

    def assets(self):
        return {"words": ["α", "b"]}

    def fingerprint(self):
        return f"toy-{self.n}-{self.seed}"


class ToyTaskConfig(Config):
    fail_at: int | None = None
    worsen: bool = False


class ToyTask(Task):
    monitor = "mse"
    mode = "min"

    def __init__(self, model, fail_at=None, worsen=False) -> None:
        super().__init__(model)
        self.mse = torchmetrics.MeanSquaredError()
        self.register_buffer("mean", torch.zeros(()))
        self.fail_at, self.worsen = fail_at, worsen
        self.steps = self.evaluations = 0

    def setup(self, data) -> None:
        self.mean = data.split("train").targets.mean()

    def training_step(self, batch):
        self.steps += 1
        # As if someone pressed Ctrl-C during this batch.
        if self.steps == int(os.environ.get("TOY_INTERRUPT_AT", 0)):
            for _ in range(int(os.environ.get("TOY_INTERRUPT_TIMES", 1))):
                os.kill(os.getpid(), signal.SIGINT)
        error = self.model(batch.stream) + self.mean - batch.targets
        loss = error.square().mean()
        if self.steps == self.fail_at:
            loss = loss * float("nan")
        return {"loss": loss, "size": len(batch.targets), "bias": error.detach().mean()}

    def evaluation_step(self, batch):
        output = self.model(batch.stream) + self.mean
        self.mse.update(output, batch.targets)
        return {"loss": (output - batch.targets).square().mean(), "size": len(batch.targets)}

    def metrics(self):
        return {"mse": _Worse(self) if self.worsen else self.mse}

    def baseline(self, data):
        return {"mse": float((data.split("test").targets - self.mean.cpu()).square().mean())}


class _Worse(torchmetrics.MeanSquaredError):
    """Says 1, 2, 3, ... at each evaluation."""

    def __init__(self, task) -> None:
        super().__init__()
        self.counter = [task]

    def compute(self):
        self.counter[0].evaluations += 1
        return torch.tensor(float(self.counter[0].evaluations))


@hookimpl
def seqgraph_models():
    yield Model(
        name="toy-model",
        domain="toy",
        summary="A linear layer or two.",
        target="toy_plugin:ToyModel",
        config="toy_plugin:ToyModelConfig",
    )


@hookimpl
def seqgraph_datasets():
    yield DatasetDescriptor(
        name="toy-data", domain="toy", summary="Noise.", target="toy_plugin:ToyData", config="toy_plugin:ToyDataConfig"
    )


@hookimpl
def seqgraph_tasks():
    yield TaskDescriptor(
        name="toy-task",
        domain="toy",
        summary="Regression.",
        target="toy_plugin:ToyTask",
        config="toy_plugin:ToyTaskConfig",
    )
