"""Losses of next items within a memory budget: softmax over all items, over sampled ones, and gBCE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ChunkLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def softmax_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, *, budget: int = 256 << 20, count: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of ``softmax(hidden @ weight.T)`` without ever holding all the logits.

    The predictions are cut into chunks whose (chunk, V) logits fit the budget. A chunk's gradients are made while
    its probabilities are at hand, so that nothing of size (P, V) is kept and nothing is computed twice. Logits are
    fp32 under autocast too.

    Args:
        hidden: read-outs, (P, D).
        weight: item vectors, (V, D).
        target: the right items, (P,) int64.
        budget: bytes of fp32 logits and of their logarithms of probabilities held at once.
        count: how many of the predictions count, from the first, () int64; None for all.

    Returns:
        Scalar, fp32 or wider; zero (with a gradient path) when P is 0. It can be differentiated once.
    """
    rows = max(1, budget // (8 * weight.shape[0]))
    with torch.autocast(hidden.device.type, enabled=False):
        return _SoftmaxLoss.apply(_wide(hidden), _wide(weight), target, rows, count)


def sampled_softmax_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, *, negatives: int, budget: int = 256 << 20
) -> Tensor:
    """Mean cross-entropy of the right item among itself and ``negatives`` items drawn uniformly for each prediction.

    A draw that hits the right item is left out. Arguments and result as those of :func:`softmax_loss`.
    """

    def loss(h: Tensor, w: Tensor, right: Tensor) -> Tensor:
        own, others, hit = _against(h, w, right, negatives)
        logits = torch.cat([own, others.masked_fill(hit, -torch.inf)], 1)  # (chunk, 1 + n)
        return (logits.logsumexp(1) - own[:, 0]).sum()

    return _chunked(loss, hidden, weight, target, negatives, budget)


def gbce_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, *, negatives: int, t: float = 0.75, budget: int = 256 << 20
) -> Tensor:
    """Generalised binary cross-entropy of gSASRec (Petrov and Macdonald 2023, arXiv 2308.07192).

    - (beta log sigmoid(s+) + sum over negatives of log(1 - sigmoid(s-))) / (n + 1), with beta = a (t (1 - 1/a) + 1/a)
    and the sampling rate a = n / (V - 1). t = 0 is plain binary cross-entropy, t = 1 calibrates fully. As a power of
    the probability comes out of its logarithm as a factor, no logit has to be transformed.

    Args:
        hidden: read-outs, (P, D).
        weight: item vectors, (V, D).
        target: the right items, (P,) int64.
        negatives: n, items drawn uniformly for each prediction; draws of the right item count for nothing.
        t: calibration.
        budget: bytes held at once for the drawn items' vectors.

    Returns:
        As :func:`softmax_loss`.
    """
    rate = min(1.0, negatives / max(1, len(weight) - 1))
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)

    def loss(h: Tensor, w: Tensor, right: Tensor) -> Tensor:
        own, others, hit = _against(h, w, right, negatives)
        wrong = F.logsigmoid(-others).masked_fill(hit, 0.0)
        return -(beta * F.logsigmoid(own).sum() + wrong.sum()) / (negatives + 1)

    return _chunked(loss, hidden, weight, target, negatives, budget)


def _against(h: Tensor, w: Tensor, right: Tensor, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the right items (P, 1) and of drawn ones (P, n), and which of those are the right item, (P, n)."""
    drawn = torch.randint(len(w), (len(h), negatives), device=h.device)
    chosen = F.embedding(torch.cat([right[:, None], drawn], 1), w)  # (P, 1 + n, D)
    logits = (chosen @ h[:, :, None])[..., 0]
    return logits[:, :1], logits[:, 1:], drawn == right[:, None]


def _chunked(loss: ChunkLoss, hidden: Tensor, weight: Tensor, target: Tensor, negatives: int, budget: int) -> Tensor:
    rows = max(1, budget // (4 * weight.shape[1] * (negatives + 1)))
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedLoss.apply(loss, _wide(hidden), _wide(weight), target, rows)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, rows: int, count: Tensor | None) -> Tensor:
        total = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        counts = None if count is None else torch.arange(len(hidden), device=hidden.device)[:, None] < count
        grads = any(ctx.needs_input_grad)
        grad_h, grad_w = torch.zeros_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), rows):
            h, t = hidden[start : start + rows], target[start : start + rows, None]
            log_p = torch.log_softmax(h @ weight.T, 1)  # (chunk, V)
            lost = -log_p.gather(1, t)
            if counts is not None:  # products with rows of zeros are cheaper than another pass over (chunk, V)
                h, lost = h * counts[start : start + rows], lost * counts[start : start + rows]
            total += lost.sum()
            if grads:
                p = log_p.exp_()
                p = p.scatter_add_(1, t, -torch.ones_like(lost))
                grad_h[start : start + rows] = p @ weight
                grad_w += p.T @ h
        if counts is not None:
            grad_h *= counts
        number: Any = max(1, len(hidden)) if count is None else count.clamp_min(1)
        ctx.save_for_backward(grad_h.div_(number), grad_w.div_(number))
        return total / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_h, grad_w = ctx.saved_tensors
        return grad * grad_h, grad * grad_w, None, None, None


class _ChunkedLoss(torch.autograd.Function):
    """The mean of a loss that is a sum over chunks of predictions; each chunk's graph is gone before the next's."""

    @staticmethod
    def forward(ctx: Any, loss: ChunkLoss, hidden: Tensor, weight: Tensor, target: Tensor, rows: int) -> Tensor:
        total = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        grad_h, grad_w = torch.zeros_like(hidden), torch.zeros_like(weight)
        grads = any(ctx.needs_input_grad)
        w = weight.detach().requires_grad_(grads)
        for start in range(0, len(hidden), rows):
            h = hidden[start : start + rows].detach().requires_grad_(grads)
            with torch.set_grad_enabled(grads):
                part = loss(h, w, target[start : start + rows])
            total += part.detach()
            if grads:
                of_h, of_w = torch.autograd.grad(part, [h, w])
                grad_h[start : start + rows] = of_h
                grad_w += of_w
        count = max(1, len(hidden))
        ctx.save_for_backward(grad_h.div_(count), grad_w.div_(count))
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        grad_h, grad_w = ctx.saved_tensors
        return None, grad * grad_h, grad * grad_w, None, None
