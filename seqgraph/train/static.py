"""A batch whose tensors stay where they are while other batches of the same shapes are copied into them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
# Deeper than any batch: what goes on holds more than a batch.
_DEPTH = 12


def signature(batch: Any) -> tuple[Hashable, list[Tensor]]:
    """All that a recorded step holds of a batch, and the tensors that are copied into another of the same signature.

    A batch is a tree of dicts, lists, tuples and objects with attributes. Of its tensors on a GPU (or of all, where
    none is) the signature has the shapes, dtypes and devices, and which are the same one; everything else enters with
    its value: numbers, names, and tensors on the host beside others on a GPU.

    Raises:
        TypeError: for anything else, naming it.
    """
    tensors: list[Tensor] = []
    tree = _described(batch, {}, tensors, "batch", 0)
    if not any(t.is_cuda for t in tensors):
        return tree, tensors
    values = tuple(t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors if not t.is_cuda)
    return (tree, values), [t for t in tensors if t.is_cuda]


class StaticBatch:
    """Copies of a batch's tensors in the places that a recorded step reads.

    Args:
        batch: of which the first copies are made.

    Raises:
        TypeError: as :func:`signature` does.
    """

    def __init__(self, batch: Any) -> None:
        own: dict[int, Tensor] = {}

        def copied(tensor: Tensor) -> Tensor:
            # each its own: views of one tensor may not overlap in the same way in the next batch
            return own.setdefault(id(tensor), tensor.detach().clone())

        self._tree = _rebuilt(batch, copied)
        self.tensors = signature(self._tree)[1]

    def fresh(self) -> Any:
        """The batch in new objects with the same tensors: what a step keeps in them, worked out of this batch (a cached
        property, say), does not stay."""
        return _rebuilt(self._tree, lambda tensor: tensor)

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Copy the tensors of a batch with the same signature."""
        by_kind: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
        for own, new in zip(self.tensors, tensors, strict=True):
            mine, its = by_kind.setdefault((own.dtype, own.device), ([], []))
            mine.append(own)
            its.append(new)
        for mine, its in by_kind.values():  # one launch each
            torch._foreach_copy_(mine, its)


def _described(node: Any, seen: dict[int, int], tensors: list[Tensor], where: str, depth: int) -> Hashable:
    if isinstance(node, Tensor):
        if type(node) is not Tensor or node.layout != torch.strided:
            raise TypeError(f"{where} is a {type(node).__name__} of layout {node.layout}")
        if id(node) in seen:
            return "again", seen[id(node)]
        seen[id(node)] = len(tensors)
        tensors.append(node)
        return "tensor", tuple(node.shape), node.dtype, node.device
    if isinstance(node, _PLAIN):
        return type(node), node
    if depth > _DEPTH or not (isinstance(node, dict | list | tuple) or hasattr(node, "__dict__")):
        raise TypeError(f"{where} is a {type(node).__name__}")
    parts = list(enumerate(node)) if isinstance(node, list | tuple) else list(_items(node))
    return type(node), tuple((k, _described(v, seen, tensors, f"{where}.{k}", depth + 1)) for k, v in parts)


def _items(node: Any) -> Any:
    return (node if isinstance(node, dict) else vars(node)).items()


def _rebuilt(node: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(node, Tensor):
        return change(node)
    if isinstance(node, _PLAIN):
        return node
    if isinstance(node, list | tuple):
        parts = [_rebuilt(value, change) for value in node]
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    parts_of = {key: _rebuilt(value, change) for key, value in _items(node)}
    if isinstance(node, dict):
        return parts_of
    new = object.__new__(type(node))
    new.__dict__.update(parts_of)
    return new
