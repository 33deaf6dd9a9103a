"""What is done where a device's memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")


def attempt(call: Callable[[], _T], device: torch.device) -> _T | None:
    """What a call gives, or None when memory does not suffice; then what it held is free again.

    Raises:
        RuntimeError: for any other failure of the call.
    """
    try:
        return call()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
    # Out here the traceback, which holds on to the tensors, is gone.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def halved(tokens: int) -> str:
    """What the user is told of a smaller budget."""
    return f"out of memory: going on with {tokens} tokens a batch"
