"""BatchNorm over true nodes and edges."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RowNorm(nn.BatchNorm1d):
    """BatchNorm over the rows that exist: true nodes, or true edges.

    Fewer than two rows have no variance: they are normalised by the running statistics, which they leave alone,
    where torch raises for one row and spoils the statistics with NaN for none.

    Several processes that train together share the statistics, so that they do what one process does with all their
    rows. (``SyncBatchNorm`` does not run on the CPU.) Every process must come by equally often.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(R, D) -> (R, D)."""
        if self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return self._shared(input)
        if self.training and input.shape[0] < 2:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)

    def _shared(self, input: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        sums = _Sum.apply(torch.cat([x.sum(0), x.new_full((1,), len(x))]))
        count = sums[-1].detach()
        mean = sums[:-1] / count.clamp_min(1)
        # a second pass, as a difference of sums of squares would cancel
        var = _Sum.apply((x - mean).square().sum(0)) / count.clamp_min(1)
        known = count > 1
        momentum = known * (self.momentum or 0.0)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)  # type: ignore[union-attr, arg-type]
            unbiased = var * count / (count - 1).clamp_min(1)
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked += known  # type: ignore[operator]
        mean = torch.where(known, mean, self.running_mean)  # type: ignore[arg-type]
        var = torch.where(known, var, self.running_var)  # type: ignore[arg-type]
        return ((x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.forward(ctx, grads[0])
