"""Operators that torch knows, without what that costs where nobody needs it.

As an operator of ``torch.library`` a function is one node of a compiled graph, has shapes without being run, and works
under fake tensors, ``torch.func`` and modes of dispatch. Each call with gradients costs the host 0.16 ms, more
than many a kernel. In plain eager code nothing of that is needed, and the function's body is called directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operator:
    """A function registered as an operator; calling it gives the same results either way.

    Args:
        name: "namespace::name".
        body: the function, with the annotations that ``torch.library.custom_op`` asks for; it mutates nothing.
        direct: called instead of it in plain eager code, where results may be missing or share memory.
    """

    def __init__(self, name: str, body: Callable[..., Any], direct: Callable[..., Any] | None = None) -> None:
        self.body, self.direct = body, direct or body
        self.op = torch.library.custom_op(name, body, mutates_args=())
        self.register_fake = self.op.register_fake
        self.__doc__ = body.__doc__
        self._function: type[torch.autograd.Function] | None = None

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As ``torch.library.register_autograd``."""
        self.op.register_autograd(backward, setup_context=setup_context)
        body = self.body

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                output = body(*inputs)
                setup_context(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx, *grads):
                return backward(ctx, *grads)

        Function.__name__ = Function.__qualname__ = body.__name__
        self._function = Function

    def __call__(self, *inputs: Any) -> Any:
        recording = torch.is_grad_enabled()
        # What has no gradient is asked for one in second derivatives only, and torch then says so.
        if torch.compiler.is_compiling() or (recording and self._function is None) or not _plain(inputs):
            self._refuse_tangents(inputs)
            return self.op(*inputs)
        return self._function.apply(*inputs) if recording and self._function is not None else self.direct(*inputs)

    def _refuse_tangents(self, inputs: tuple[Any, ...]) -> None:
        """torch takes the derivative of an operator without a forward-mode formula for zero, and says nothing."""
        if torch.autograd.forward_ad._current_level < 0:
            return
        for value in inputs:
            if isinstance(value, Tensor) and torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
                raise RuntimeError(
                    f"{self.body.__name__} has no forward-mode derivative (torch.func.jvp); its reference has one: "
                    "backend='reference'"
                )


def operator(name: str, direct: Callable[..., Any] | None = None) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that makes a function an :class:`Operator`."""
    return lambda body: Operator(name, body, direct)


def _plain(inputs: tuple[Any, ...]) -> bool:
    """Whether nothing but autograd watches: ordinary tensors, no mode of dispatch, no transform of functions."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    for t in inputs:
        if isinstance(t, Tensor) and (type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta):
            return False
    return True
