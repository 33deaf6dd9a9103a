"""Softmax cross-entropy over all items within a memory budget."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def softmax_loss(hidden: Tensor, weight: Tensor, target: Tensor, *, budget: int = 256 << 20) -> Tensor:
    """Mean cross-entropy of ``softmax(hidden @ weight.T)`` without ever holding all the logits.

    The predictions are cut into chunks whose (chunk, V) logits fit the budget. With more than one chunk the logits
    are computed again in the backward pass instead of being kept.

    Args:
        hidden: read-outs, (P, D).
        weight: item vectors, (V, D).
        target: the right items, (P,) int64.
        budget: bytes of fp32 logits held at once.

    Returns:
        Scalar, fp32 or wider; zero (with a gradient path) when P is 0.
    """
    rows = max(1, budget // (4 * weight.shape[0]))
    if len(hidden) <= rows:
        total = _summed(hidden, weight, target)
    else:
        total = torch.stack(
            [
                checkpoint(_summed, h, weight, t, use_reentrant=False, preserve_rng_state=False)
                for h, t in zip(hidden.split(rows), target.split(rows), strict=True)
            ]
        ).sum()
    return total / max(1, len(hidden))


def _summed(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logits = hidden @ weight.T  # (P, V)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target, reduction="sum")
