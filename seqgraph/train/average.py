"""The exponential moving average of a task's weights, kept beside them while they are trained (``train.ema``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqgraph.errors import CheckpointError


@dataclass
class _Group:
    """Tensors of one kind, which one launch can move.

    Attributes:
        mean: whether they are averaged, or copied.
        places: where the task has them: a module's parameters or buffers, and the name there.
        own: the averages; with a sharded task this process's parts of them.
    """

    mean: bool
    places: list[tuple[dict[str, Tensor], str]] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)

    def live(self) -> list[Tensor]:
        """What the task has now: a buffer may have been replaced."""
        return [_local(place[key]) for place, key in self.places]


class Average:
    """The moving average of a task's parameters and buffers (those that are saved).

    After a step it is ``avg += (1 - d) (w - avg)`` with ``d = min(decay, (1 + n) / (10 + n))`` after n earlier steps,
    so that the first weights are soon forgotten. Buffers that are no numbers with a fraction (counts) are copied, and
    so are those that hold infinity (masks), whose differences are NaN. All is done in place: recorded steps hold the
    addresses of the parameters. With a sharded task each process has the averages of its shards.

    Args:
        task: on its device, with its first weights.
        decay: above 0, below 1.
    """

    @torch.no_grad()
    def __init__(self, task: nn.Module, decay: float) -> None:
        self.decay = decay
        places: dict[int, tuple[dict[str, Tensor], str]] = {}
        for module in task.modules():
            for place in (module._parameters, module._buffers):
                places.update({id(value): (place, key) for key, value in place.items() if value is not None})  # type: ignore[misc]
        self._own: dict[str, Tensor] = {}
        self._names: dict[str, str] = {}  # a tensor may have several
        first: dict[int, str] = {}
        groups: dict[tuple, _Group] = {}
        for name, value in task.state_dict(keep_vars=True).items():
            if id(value) not in places:  # made for the state alone
                continue
            self._names[name] = first.setdefault(id(value), name)
            if first[id(value)] != name:
                continue
            own = self._own[name] = value.detach().clone()
            fraction = own.is_floating_point() or own.is_complex()
            mean = fraction and (isinstance(value, nn.Parameter) or bool(own.isfinite().all()))
            group = groups.setdefault((mean, own.device, own.dtype), _Group(mean))
            group.places.append(places[id(value)])
            group.own.append(_local(own))
        self._groups = list(groups.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the task's weights.

        Args:
            step: steps done before the one that gave these.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for group in self._groups:
            if group.mean:
                torch._foreach_lerp_(group.own, group.live(), 1 - decay)
            else:
                torch._foreach_copy_(group.own, group.live())

    @contextmanager
    def used(self) -> Iterator[None]:
        """The task has the averages for as long, and then its own weights again, bit by bit, whatever was raised."""
        # what is there now: a sharded module that is left in mid evaluation has whole weights in these places
        live = [group.live() for group in self._groups]
        with torch.no_grad():
            held = [[tensor.clone() for tensor in tensors] for tensors in live]
        try:
            _copy(live, [group.own for group in self._groups])
            yield
        finally:
            _copy(live, held)

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of the task's ``state_dict``. They are not copied.

        With a sharded task all processes ask, and the first one alone gets them, whole and on the CPU.
        """
        found = {}
        for name, own in self._own.items():
            if not hasattr(own, "full_tensor"):
                found[name] = own
                continue
            whole = own.full_tensor()
            if dist.get_rank() == 0:
                found[name] = whole.cpu()
        return {name: found[first] for name, first in self._names.items() if first in found}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            CheckpointError: when it is of another task.
        """
        if state.keys() != self._names.keys():
            differ = ", ".join(sorted(state.keys() ^ self._names.keys())[:8])
            raise CheckpointError(f"the saved average does not fit the task; tensors: {differ}", "use a new folder")
        for name, own in self._own.items():
            given = state[name].to(own.device)
            if hasattr(own, "full_tensor"):
                from torch.distributed.tensor import distribute_tensor

                given = distribute_tensor(given, own.device_mesh, own.placements)  # type: ignore[attr-defined]
            own.copy_(given)


@torch.no_grad()
def _copy(to: list[list[Tensor]], source: list[list[Tensor]]) -> None:
    for target, values in zip(to, source, strict=True):
        torch._foreach_copy_(target, values)


@torch.no_grad()
def _local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor, which shares its memory; another tensor itself."""
    return value.to_local() if hasattr(value, "to_local") else value
