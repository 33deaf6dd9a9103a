"""Launches of Triton kernels that cost the host little.

Triton's own launch binds some forty arguments by name and asks of each what to specialise on, which takes longer than
a small kernel runs. A :class:`Launcher` asks only for what can change between its launches, and hands the kernel that
Triton compiled for an earlier one, ``compiled[grid](...)``, its arguments in order, tensors as addresses. Where nobody
keeps a Launcher, :func:`launch` finds it by what all its launches share.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# A tensor, one entry of a tensor along its first dimension, or nothing.
Pointer = Tensor | tuple[Tensor, int] | None
# Numbers beyond it are 64 bits wide, which is another kernel.
LARGEST = 2**31 - 1


class Launcher:
    """A kernel with its constants; as ``kernel[grid](*pointers, *numbers, **constants)``, with the same results.

    All launches have pointers of the same types, the same ones missing, on one device. What else Triton would choose
    another kernel for chooses another one here: numbers that are one or divisible by 16. Pointers that are not
    divisible by 16, numbers of 64 bits, and all launches in Triton's interpreter take Triton's own way.

    Args:
        kernel: a function under ``triton.jit``, whose arguments are pointers, then numbers, then constants.
        constants: of every launch, with options such as ``num_warps``.
    """

    def __init__(self, kernel: Any, **constants: Any) -> None:
        self.kernel, self.constants = kernel, constants
        self.compiled: dict[tuple, Any] = {}
        self.special: list[int] = []
        self.tail: list[Any] = []

    def __call__(self, grid: tuple[int, int, int], pointers: Sequence[Pointer], numbers: Sequence[int | float]) -> None:
        if self.compiled:
            addresses = _addresses(pointers)
            bits = 0
            for address in addresses:
                bits |= address
            compiled = self.compiled.get(self._key(numbers))
            if compiled is not None and not bits & 15 and max(numbers) <= LARGEST:
                compiled[grid](*addresses, *numbers, *self.tail)
                return
        tensors = [p[0][p[1]] if type(p) is tuple else p for p in pointers]
        compiled = self.kernel[grid](*tensors, *numbers, **self.constants)
        # It is None where Triton interprets, and where a test only compiles.
        if compiled is not None and all(a % 16 == 0 for a in _addresses(pointers)) and max(numbers) <= LARGEST:
            first = len(pointers)
            self.tail = [self.constants[name] for name in self.kernel.arg_names[first + len(numbers) :]]
            given = self.kernel.params[first : first + len(numbers)]
            self.special = [i for i, p in enumerate(given) if not p.do_not_specialize]
            self.compiled[self._key(numbers)] = compiled

    def _key(self, numbers: Sequence[int | float]) -> tuple[int, ...]:
        """What of the numbers chooses a kernel."""
        return tuple([1 if numbers[i] == 1 else numbers[i] % 16 == 0 and 16 for i in self.special])


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; asking the driver takes longer than a launch."""
    return torch.cuda.get_device_properties(device).multi_processor_count


_launchers: dict[tuple, Launcher] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    pointers: Sequence[Pointer],
    numbers: Sequence[int | float],
    constants: dict[str, Any],
) -> None:
    """Launch by a :class:`Launcher` that is kept for these constants, types of pointers and device."""
    types = [None if p is None else p[0].dtype if type(p) is tuple else p.dtype for p in pointers]  # type: ignore
    device = next(p[0].device if type(p) is tuple else p.device for p in pointers if p is not None)  # type: ignore
    # Triton's functions take a while to hash.
    key = (id(kernel), device, *types, *constants.values())
    found = _launchers.get(key)
    if found is None:
        found = _launchers[key] = Launcher(kernel, **constants)
    found(grid, pointers, numbers)


def _addresses(pointers: Sequence[Pointer]) -> list[int]:
    return [0 if p is None else _of_entry(*p) if type(p) is tuple else p.data_ptr() for p in pointers]  # type: ignore


def _of_entry(tensor: Tensor, entry: int) -> int:
    # Most are the first.
    return tensor.data_ptr() + (entry * tensor.stride(0) * tensor.element_size() if entry else 0)
