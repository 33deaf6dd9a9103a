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
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
# The identity of the first GPU, once a context is on it; without torch, whose import takes ten seconds on some hosts
_PROBE = """
import ctypes
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
bad = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
bad = bad or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
identity = ctypes.create_string_buffer(16)
bad = bad or cuda.cuDeviceGetUuid(identity, device)
print("" if bad else identity.raw.hex())
"""


def environment(threads: int = 1, **more: str) -> dict[str, str]:
    """Of a process: this one's, where the packages are, its threads, memory that follows ragged batches, and more."""
    paths = [str(REPOSITORY / part) for part in ("", "kernels", "plugins")] + [os.environ.get("PYTHONPATH", "")]
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
    fixed = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return {**os.environ, **fixed, **dict.fromkeys(names, str(threads)), **more}


@contextlib.contextmanager
def sharing(wanted: bool) -> Iterator[dict[str, str]]:
    """Variables with which processes share the GPUs through the multi-process service, if it is wanted and works.

    A service that ``CUDA_MPS_PIPE_DIRECTORY`` names already is used and left running; otherwise one is started for the
    GPUs that are visible here, and ended at the end. Which it is, is printed.
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
    # In the folder for temporary files: the name of a socket may have a hundred letters.
    with tempfile.TemporaryDirectory(prefix="mps", ignore_cleanup_errors=True) as folder:
        own, meant = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}, _gpu({})
        given = {**os.environ, **own}
        control = subprocess.Popen([binary, "-f"], env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            # The service makes the visible GPUs its own and numbers them from 0.
            if seen is not None:
                own["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(seen.count(",") + 1)))
            works = bool(meant) and _gpu(own) == meant
            print("mps: on" if works else "mps: does not work here; the processes take turns", flush=True)
            yield own if works else {}
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([binary], input=b"quit\n", env=given, timeout=10, capture_output=True)
            control.terminate()


def _gpu(env: dict[str, str]) -> str:
    """The identity of the first GPU that a process with these variables gets a context on, "" if it gets none."""
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], env={**os.environ, **env}, timeout=20,
                              capture_output=True, text=True)  # fmt: skip
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _die_with_parent(number: int) -> None:
    """Get a signal when the process that started this one ends, however it does (Linux)."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6", use_errno=True).prctl(1, number)


def start(
    command: list[str], env: dict[str, str], log: Path | None = None, *, at_death: int = signal.SIGTERM, **options: Any
) -> subprocess.Popen[Any]:
    """A process in a session of its own: Ctrl-C reaches the caller alone.

    Args:
        command: and its arguments.
        env: all its variables.
        log: file to which its output is appended; None leaves the output to ``options``.
        at_death: the signal that it gets when the caller dies.
        options: further ones of ``subprocess.Popen``.
    """
    options = {"cwd": REPOSITORY, "start_new_session": True, **options}
    options["preexec_fn"] = partial(_die_with_parent, at_death)
    if log is None:
        return subprocess.Popen(command, env=env, **options)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=out, **options)


def end(processes: Iterable[subprocess.Popen[Any]], seconds: float) -> None:
    """Ask those that still run to save their state and stop, as Ctrl-C does; kill what has not after so long."""
    processes = list(processes)
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
