"""Compile here what Triton will need on a machine with a GPU, so that the time there goes into running.

    python tests/kernels/precompile.py FOLDER KEY calls [case ...]              the calls of launched.py
    python tests/kernels/precompile.py FOLDER KEY tests tests/kernels/test_gpu.py [pytest's options]

FOLDER becomes TRITON_CACHE_DIR on both machines: it needs the same path there. KEY is a file with what
`python -c "from triton.runtime.cache import triton_key; print(triton_key())"` prints on the other machine, whose
version of Triton must be the one imported here (`pip install --no-deps --target DIR triton==3.6.0`, DIR on
PYTHONPATH): the key names files of that installation, which change nothing in what is compiled.

Tests run on CPU tensors that stand for the GPU's, kernels are compiled and not launched, so that nearly all tests
fail: what counts is what is in the folder afterwards, machine code and its description. What Triton keeps beside it
to be read by people is emptied.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launched
import pytest
import torch
import torch.distributed.tensor  # its annotations want the Generator that is replaced below
from torch.utils._pytree import tree_map_only

FACTORIES = (
    "arange", "as_tensor", "empty", "full", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
)  # fmt: skip
READABLE = ("*.llir", "*.ptx", "*.source", "*.ttgir", "*.ttir")


def on_cuda(device: object) -> bool:
    return str(device).startswith("cuda")


class OnMeta(launched.OnMeta):
    """As there; a reference gives shapes only."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "seqgraph" or "reference" not in [a for a in args if isinstance(a, str)]:
            return super().__torch_dispatch__(func, types, args, kwargs)
        definition = torch._library.custom_ops.OPDEFS[f"seqgraph::{func._opname}"]
        made = definition._abstract_fn(*tree_map_only(torch.Tensor, lambda t: t.to("meta"), args), **(kwargs or {}))
        return tree_map_only(torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype), made)


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


class CompileOnly:
    """A pytest plugin: tensors stay on the CPU, and what is compared is taken for equal."""

    def __init__(self) -> None:
        def here(make: Callable) -> Callable:
            def made(*args: Any, **kwargs: Any) -> Any:
                return make(*args, **(kwargs | ({"device": "cpu"} if on_cuda(kwargs.get("device", "")) else {})))

            return made

        move = torch.Tensor.to
        torch.Tensor.to = lambda self, *args, **kwargs: move(  # type: ignore[method-assign, assignment]
            self, *("cpu" if on_cuda(a) else a for a in args), **{k: v for k, v in kwargs.items() if not on_cuda(v)}
        )
        torch.Tensor.cuda = lambda self, *args, **kwargs: self.clone()  # type: ignore[method-assign, assignment]
        for name in FACTORIES:
            setattr(torch, name, here(getattr(torch, name)))
        torch.Generator = Generator  # type: ignore[misc]
        torch.cuda.is_available = lambda: True
        torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode = lambda *_: None

    @pytest.fixture(autouse=True)
    def compile_only(self, request, monkeypatch):
        for module in (request.module, getattr(request.module, "cases", None)):
            for name in ("near", "same", "exact"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, lambda *_, **__: {})
        monkeypatch.setattr(torch, "equal", lambda *_: True)
        with launched.compiling(90), OnMeta():
            yield


def main() -> None:
    folder, key, what, *rest = sys.argv[1:]
    os.environ |= {"TRITON_CACHE_DIR": folder, "SEQGRAPH_BACKEND": "triton"}
    from triton.runtime import cache

    if not hasattr(cache, "triton_key"):
        sys.exit("precompile.py: this version of Triton makes its keys elsewhere; it was written for 3.6")
    theirs = Path(key).read_text().strip()
    cache.triton_key = lambda: theirs
    if what == "calls":
        for name in rest or launched.CASES:
            start = time.monotonic()
            kernels = launched.kernels_of(launched.CASES[name], 90)
            print(f"{name}: {', '.join(k.name for k in kernels)} in {time.monotonic() - start:.0f} s", flush=True)
    else:
        bare = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", "--import-mode=importlib"]
        pytest.main([*bare, "--confcutdir=tests/kernels", "--tb=no", *rest], plugins=[CompileOnly()])
    for pattern in READABLE:
        for path in Path(folder).rglob(pattern):
            os.truncate(path, 0)


if __name__ == "__main__":
    main()
