"""A small model with names, and services of it: in a thread of the test, or as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import torch

from seqgraph.train import checkpoint
from seqgraph_mamba4rec.model import Mamba4Rec

ITEMS = 50
FIELDS = {"num_items": ITEMS, "d_model": 16, "d_state": 4, "n_layers": 2, "dropout": 0.0}


def make_model(seed: int = 0) -> Mamba4Rec:
    torch.manual_seed(seed)
    model = Mamba4Rec(**FIELDS)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    titles = {str(i): f"Film {i}: <b>it's & more</b>" for i in range(ITEMS)}
    model.assets = {"item_ids": [str(i) for i in range(ITEMS)], "titles": titles, "max_history": 20}
    return model.eval()


def save_run(folder: Path, seed: int = 0) -> Path:
    return checkpoint.save(folder, make_model(seed), name="mamba4rec", fields=FIELDS)


class Client:
    """One connection that is kept."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.address = urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.address, timeout=30)
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, path, body=None, *, raw=None, method=None, headers=None):
        """Status and JSON of a request; POST where there is a body."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        own = self.headers | ({} if data is None else {"Content-Type": "application/json"}) | (headers or {})
        self.connection.request(method or ("GET" if data is None else "POST"), path, data, own)
        answer = self.connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text[:1] in b"{[" else text.decode()


@contextlib.contextmanager
def serving(app):
    """The URL of an application that runs in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


class Process:
    """``seqgraph serve`` as a process; the test ends what it has started."""

    def __init__(self, run: Path, state: Path, *options: str, limit: int | None = None) -> None:
        command = [sys.executable, "-m", "seqgraph", "serve", str(run), "--port", "0", "--state", str(state), *options]

        def restrict() -> None:
            import resource

            if limit is not None:  # no file may grow beyond it
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, preexec_fn=restrict
        )
        first = self.process.stdout.readline()
        assert first.startswith("http://127.0.0.1:"), first + self.process.stdout.read()
        self.url = first.split()[0]
        self.client = Client(self.url)
        deadline = time.monotonic() + 30
        while True:  # the socket is bound before it listens
            with contextlib.suppress(OSError):
                assert self.client("/health")[0] == 200
                break
            assert time.monotonic() < deadline
            self.client = Client(self.url)
            time.sleep(0.02)

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; the exit code and what was printed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        text = self.process.communicate(timeout=60)[0]
        return self.process.returncode, text

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_) -> None:
        self.end(signal.SIGKILL)
