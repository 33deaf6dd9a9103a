"""Losses of next items within a memory budget: softmax over all items, over sampled ones, and gBCE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqgraph_mamba4rec.seen import Had

ChunkLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None, slice], Tensor]
"""Each prediction's loss, (chunk,), of a chunk's read-outs, the item vectors, the right items, the weights of what was
had, and which chunk it is."""

_ITEMS_A_DRAW = 64
"""So many items' logits move as many bytes, through a product and a softmax, as one item's vector of 64 fetched; for
wider vectors it would be more. Reckoned, not measured."""


def softmax_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    budget: int = 256 << 20,
    count: Tensor | None = None,
    had: Had | None = None,
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
        had: what each prediction's user has had, where the model has a weight for it.

    Returns:
        Scalar, fp32 or wider; zero (with a gradient path) when P is 0. It can be differentiated once.
    """
    # A prediction's distances take a token, an item, two flags, a weight and a logit each.
    rows = max(1, budget // (8 * weight.shape[0] + (0 if had is None else 32 * had.longest)))
    with torch.autocast(hidden.device.type, enabled=False):
        given = (None, None) if had is None else (had, had.weights)
        return _SoftmaxLoss.apply(_wide(hidden), _wide(weight), target, rows, count, *given)


def sampled_softmax_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    negatives: int,
    budget: int = 256 << 20,
    count: Tensor | None = None,
    had: Had | None = None,
) -> Tensor:
    """Mean cross-entropy of the right item among itself and ``negatives`` items drawn uniformly for each prediction.

    A draw that hits the right item is left out. Arguments and result as those of :func:`softmax_loss`.
    """

    against = _Against(negatives, len(weight), had)

    def loss(h: Tensor, w: Tensor, right: Tensor, weights: Tensor | None, rows: slice) -> Tensor:
        own, others, hit = against(h, w, right, weights, rows)
        logits = torch.cat([own, others.masked_fill(hit, -torch.inf)], 1)  # (chunk, 1 + n)
        return logits.logsumexp(1) - own[:, 0]

    return _chunked(loss, hidden, weight, target, negatives, budget, count, had)


def gbce_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    negatives: int,
    t: float = 0.75,
    budget: int = 256 << 20,
    count: Tensor | None = None,
    had: Had | None = None,
) -> Tensor:
    """Generalised binary cross-entropy of gSASRec (Petrov and Macdonald 2023, arXiv 2308.07192).

    - (beta log sigmoid(s+) + sum over negatives of log(1 - sigmoid(s-))) / (n + 1), with beta = a (t (1 - 1/a) + 1/a)
    and the sampling rate a = n / (V - 1). t = 0 is plain binary cross-entropy, t = 1 calibrates fully. As a power of
    the probability comes out of its logarithm as a factor, no logit has to be transformed.

    Here s is a logit less log V, which no ranking notices: every item then starts at about 1 / V and not at a half.
    Without it the first steps teach the read-outs to push all items down alike, and training stays there for long.

    Args:
        hidden: read-outs, (P, D).
        weight: item vectors, (V, D).
        target: the right items, (P,) int64.
        negatives: n, items drawn uniformly for each prediction; draws of the right item count for nothing.
        t: calibration.
        budget: bytes held at once for the drawn items' vectors, or all items' logits.
        count: as for :func:`softmax_loss`.
        had: as for :func:`softmax_loss`.

    Returns:
        As :func:`softmax_loss`.
    """
    rate = min(1.0, negatives / max(1, len(weight) - 1))
    beta, start = rate * (t * (1 - 1 / rate) + 1 / rate), math.log(len(weight))
    against = _Against(negatives, len(weight), had)

    def loss(h: Tensor, w: Tensor, right: Tensor, weights: Tensor | None, rows: slice) -> Tensor:
        own, others, hit = against(h, w, right, weights, rows)
        wrong = F.logsigmoid(start - others).masked_fill(hit, 0.0)
        return -(beta * F.logsigmoid(own[:, 0] - start) + wrong.sum(1)) / (negatives + 1)

    return _chunked(loss, hidden, weight, target, negatives, budget, count, had)


def _all_at_once(hidden: Tensor, num_items: int, negatives: int) -> bool:
    """Whether a GPU is sooner done with the logits of all items than with fetching the vectors of the drawn ones."""
    return hidden.device.type == "cuda" and num_items <= _ITEMS_A_DRAW * (negatives + 1)


class _Against:
    """Logits of the right items (P, 1) and of drawn ones (P, n), and which of those are the right item, (P, n)."""

    def __init__(self, negatives: int, num_items: int, had: Had | None) -> None:
        self.negatives = negatives
        self.find = None if had is None else had.finder(num_items)

    def __call__(
        self, h: Tensor, w: Tensor, right: Tensor, weights: Tensor | None, rows: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        drawn = torch.randint(len(w), (len(h), self.negatives), device=h.device)
        items = torch.cat([right[:, None], drawn], 1)
        if _all_at_once(h, len(w), self.negatives):
            logits = (h @ w.T).gather(1, items)
        else:
            logits = (F.embedding(items, w) @ h[:, :, None])[..., 0]  # of vectors (P, 1 + n, D)
        if weights is not None and self.find is not None:
            logits = logits + torch.cat([weights, weights.new_zeros(1)])[self.find(rows, items)]
        return logits[:, :1], logits[:, 1:], drawn == right[:, None]


def _chunked(
    loss: ChunkLoss,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    negatives: int,
    budget: int,
    count: Tensor | None,
    had: Had | None,
) -> Tensor:
    many, wide = weight.shape
    # Of all logits two copies; of a draw its vector, or else its place twice, whether it is right, and three logits.
    drawn = (negatives + 1) * (32 if _all_at_once(hidden, many, negatives) else 4 * wide)
    rows = max(1, budget // (drawn + (8 * many if _all_at_once(hidden, many, negatives) else 0)))
    with torch.autocast(hidden.device.type, enabled=False):
        weights = None if had is None else had.weights
        return _ChunkedLoss.apply(loss, _wide(hidden), _wide(weight), target, rows, count, weights)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        rows: int,
        count: Tensor | None,
        had: Had | None,
        weights: Tensor | None,
    ) -> Tensor:
        total = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        counts = None if count is None else torch.arange(len(hidden), device=hidden.device)[:, None] < count
        grads = any(ctx.needs_input_grad)
        grad_h, grad_w = torch.zeros_like(hidden), torch.zeros_like(weight)
        buckets = None if had is None else had.buckets()
        worth = None if buckets is None or weights is None else weights.to(hidden.dtype)[buckets]  # (longest,)
        grad_worth = None if worth is None else torch.zeros_like(worth)
        for start in range(0, len(hidden), rows):
            block = slice(start, start + rows)
            h, t = hidden[block], target[block, None]
            logits = h @ weight.T  # (chunk, V)
            if had is not None and worth is not None:
                items, fresh = had.pairs(block)  # (chunk, longest); who stands there again writes the same again
                more = torch.where(fresh, worth, worth[:1])
                logits.scatter_(1, items, logits.gather(1, items).add_(more))
            log_p = torch.log_softmax(logits, 1)
            lost = -log_p.gather(1, t)
            if counts is not None:  # products with rows of zeros are cheaper than another pass over (chunk, V)
                h, lost = h * counts[block], lost * counts[block]
            total += lost.sum()
            if grads:
                p = log_p.exp_()
                p = p.scatter_add_(1, t, -torch.ones_like(lost))
                grad_h[block] = p @ weight
                grad_w += p.T @ h
                if grad_worth is not None:
                    of = p.gather(1, items) * (fresh if counts is None else fresh & counts[block])
                    grad_worth += of.sum(0)
        if counts is not None:
            grad_h *= counts
        number: Any = max(1, len(hidden)) if count is None else count.clamp_min(1)
        kept = [grad_h.div_(number), grad_w.div_(number)]
        if grad_worth is not None and buckets is not None and weights is not None:
            each = buckets == torch.arange(len(weights), device=buckets.device)[:, None]  # (K, longest)
            kept.append(((grad_worth * each).sum(1) / number).to(weights.dtype))
        ctx.save_for_backward(*kept)
        return total / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w, *of_weights = ctx.saved_tensors
        of_weights = [grad * each for each in of_weights] or [None]
        return grad * grad_h, grad * grad_w, None, None, None, None, *of_weights


class _ChunkedLoss(torch.autograd.Function):
    """The mean of the predictions' losses, by chunks; each chunk's graph is gone before the next's."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: ChunkLoss,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        rows: int,
        count: Tensor | None,
        weights: Tensor | None,
    ) -> Tensor:
        total = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        counts = None if count is None else torch.arange(len(hidden), device=hidden.device) < count
        grad_h, shared = torch.zeros_like(hidden), [weight, *([] if weights is None else [weights])]
        grads = any(ctx.needs_input_grad)
        added = [torch.zeros_like(one) for one in shared]
        own = [one.detach().requires_grad_(grads) for one in shared]
        for start in range(0, len(hidden), rows):
            block = slice(start, start + rows)
            h = hidden[block].detach().requires_grad_(grads)
            with torch.set_grad_enabled(grads):
                lost = loss(h, own[0], target[block], None if weights is None else own[1], block)
                part = (lost if counts is None else lost * counts[block]).sum()
            total += part.detach()
            if grads:
                of_h, *of_shared = torch.autograd.grad(part, [h, *own])
                grad_h[block] = of_h
                torch._foreach_add_(added, of_shared)
        number: Any = max(1, len(hidden)) if count is None else count.clamp_min(1)
        ctx.save_for_backward(*(g.div_(number) for g in (grad_h, *added)))
        return total / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w, *of_weights = ctx.saved_tensors
        of_weights = [grad * each for each in of_weights] or [None]
        return None, grad * grad_h, grad * grad_w, None, None, None, *of_weights
