"""Nested dicts and lists with tensors in them, as JSON and safetensors: what other libraries pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqgraph.errors import CheckpointError

_MARK = "__kind__"


def pack_tree(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Take a tree apart.

    Args:
        tree: dicts, lists, tuples, tensors, text, numbers, truth values and None.

    Returns:
        A tree that JSON can hold, and the tensors that it refers to by name.

    Raises:
        CheckpointError: for anything else, naming its place.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(tree, "", tensors), tensors


def _pack(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = path or "tensor"
        tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_MARK: "tensor", "name": name}
    if isinstance(node, dict):
        if all(isinstance(key, str) for key in node) and _MARK not in node:
            return {key: _pack(value, f"{path}/{key}", tensors) for key, value in node.items()}
        items = [[_pack(k, path, tensors), _pack(v, f"{path}/{k}", tensors)] for k, v in node.items()]
        return {_MARK: "dict", "items": items}
    if isinstance(node, list | tuple):
        items = [_pack(value, f"{path}/{i}", tensors) for i, value in enumerate(node)]
        return {_MARK: "tuple", "items": items} if isinstance(node, tuple) else items
    if node is None or type(node) in (str, int, float, bool):
        return node
    raise CheckpointError(f"{path or 'the state'} holds a {type(node).__name__}, which cannot be saved without pickle")


def unpack_tree(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Put together what :func:`pack_tree` took apart.

    Raises:
        CheckpointError: when a tensor is not there.
    """
    if isinstance(packed, list):
        return [unpack_tree(value, tensors) for value in packed]
    if not isinstance(packed, dict):
        return packed
    kind = packed.get(_MARK)
    if kind is None:
        return {key: unpack_tree(value, tensors) for key, value in packed.items()}
    if kind == "tensor":
        if packed["name"] not in tensors:
            raise CheckpointError(f"the tensor {packed['name']} is missing")
        return tensors[packed["name"]]
    items = [unpack_tree(value, tensors) for value in packed["items"]]
    return tuple(items) if kind == "tuple" else dict(items)
