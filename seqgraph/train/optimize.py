"""AdamW's parameter groups and the learning rate of each step."""

from __future__ import annotations

import math

from torch import nn

from seqgraph.config import TrainConfig


def undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: biases, those of norms, those flagged ``_no_weight_decay``."""
    names = set()
    for prefix, child in module.named_modules():
        norm = "norm" in type(child).__name__.lower()
        for name, parameter in child.named_parameters(prefix, recurse=False):
            last = name.rpartition(".")[2]
            if norm or last == "bias" or last.endswith("_bias") or getattr(parameter, "_no_weight_decay", False):
                names.add(name)
    return names


def parameter_groups(module: nn.Module, weight_decay: float, without: set[str]) -> list[dict]:
    """Two groups for AdamW: with weight decay and without.

    Args:
        module: whose trainable parameters are taken, each once.
        weight_decay: of the first group.
        without: names for the second group.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name not in without], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in without], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate of a step.

    Args:
        config: peak, end, shape and warm-up.
        step: steps done before this one.
        total: steps of the whole training; later steps keep the end's rate.
    """
    warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.min_lr + (config.lr - config.min_lr) * left


def timed_learning_rate(config: TrainConfig, share: float) -> float:
    """The learning rate when this share, from 0, of the training's time has passed; ``warmup`` is a share too."""
    parts = 1_000_000
    return learning_rate(config, int(share * parts), parts)
