"""Processes that share one GPU: their variables, NVIDIA's multi-process service, and ending them in time."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
# A context on the GPU without torch, whose import takes ten seconds on some hosts
_PROBE = """
import ctypes
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
bad = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
raise SystemExit(bool(bad or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)))
"""


def environment(threads: int = 1) -> dict[str, str]:
    """Of a process: where the packages are, its threads, and memory that follows ragged batches."""
    paths = [str(REPOSITORY / part) for part in ("", "kernels", "plugins")] + [os.environ.get("PYTHONPATH", "")]
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    fixed = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    return {**os.environ, **fixed, **dict.fromkeys(names, str(threads))}


@contextlib.contextmanager
def sharing(wanted: bool, folder: Path) -> Iterator[dict[str, str]]:
    """Variables with which processes share the GPU through the multi-process service, if it is wanted and works.

    A service that ``CUDA_MPS_PIPE_DIRECTORY`` names already is used and left running; otherwise one is started in
    ``folder`` for the GPUs that are visible here.
    """
    if not wanted:
        yield {}
        return
    if "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        print(f"mps: that of {os.environ['CUDA_MPS_PIPE_DIRECTORY']}", flush=True)
        yield {}
        return
    binary = shutil.which("nvidia-cuda-mps-control", path=f"{os.environ.get('PATH', '')}:/usr/local/nvidia/bin")
    if binary is None:
        print("mps: nvidia-cuda-mps-control is not there; the processes take turns", flush=True)
        yield {}
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    given = {**os.environ, **own}
    control = subprocess.Popen([binary, "-f"], env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # the service makes the visible GPUs its own and numbers them from 0
            found = own | ({"CUDA_VISIBLE_DEVICES": "0"} if "CUDA_VISIBLE_DEVICES" in os.environ else {})
            done = subprocess.run([sys.executable, "-c", _PROBE], env={**environment(), **found}, timeout=20,
                                  capture_output=True)  # fmt: skip
            if done.returncode == 0:
                print("mps: on", flush=True)
                yield found
                return
        print("mps: does not work here; the processes take turns", flush=True)
        yield {}
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([binary], input=b"quit\n", env=given, timeout=10, capture_output=True)
        control.terminate()


def _die_with_parent() -> None:
    """SIGTERM when the process that started this one ends, however it does (Linux)."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6", use_errno=True).prctl(1, signal.SIGTERM)


def start(command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own (Ctrl-C reaches the caller alone), its output appended to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=REPOSITORY, start_new_session=True,
                                preexec_fn=_die_with_parent)  # fmt: skip


def end(processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask those that still run to save their state and stop, as Ctrl-C does; kill what has not after so long."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    until = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a file, "" where there is none."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else ""


def wait(path: Path) -> dict[str, Any]:
    """What a file says, once it is there."""
    while not path.is_file():
        time.sleep(0.02)
    return json.loads(path.read_text())


def say(path: Path, what: Any) -> None:
    """Write a file, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(what) + "\n")
    new.replace(path)
