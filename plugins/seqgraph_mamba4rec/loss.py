"""Softmax cross-entropy over all items within a memory budget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def softmax_loss(hidden: Tensor, weight: Tensor, target: Tensor, *, budget: int = 256 << 20) -> Tensor:
    """Mean cross-entropy of ``softmax(hidden @ weight.T)`` without ever holding all the logits.

    The predictions are cut into chunks whose (chunk, V) logits fit the budget. A chunk's gradients are made while
    its probabilities are at hand, so that nothing of size (P, V) is kept and nothing is computed twice.

    Args:
        hidden: read-outs, (P, D).
        weight: item vectors, (V, D).
        target: the right items, (P,) int64.
        budget: bytes of fp32 logits held at once.

    Returns:
        Scalar, fp32 or wider; zero (with a gradient path) when P is 0. It can be differentiated once.
    """
    rows = max(1, budget // (4 * weight.shape[0]))
    return _SoftmaxLoss.apply(hidden, weight, target, rows)


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, rows: int) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grads = any(ctx.needs_input_grad)
        grad_h, grad_w = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=wide)
        for start in range(0, len(hidden), rows):
            h, t = hidden[start : start + rows], target[start : start + rows, None]
            logits = (h @ weight.T).to(wide)  # (chunk, V)
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, t)).sum()
            if grads:
                p = logits.sub_(norm).exp_()
                p = p.scatter_add_(1, t, -torch.ones_like(norm)).to(h.dtype)
                grad_h[start : start + rows] = p @ weight.to(h.dtype)
                grad_w += p.T @ h
        count = max(1, len(hidden))
        ctx.save_for_backward(grad_h.div_(count), grad_w.div_(count).to(weight.dtype))
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_h, grad_w = ctx.saved_tensors
        return (grad * grad_h).to(grad_h.dtype), (grad * grad_w).to(grad_w.dtype), None, None
