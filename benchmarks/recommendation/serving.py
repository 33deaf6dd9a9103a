"""What a user's next event costs: one step of a state, or reading the history again; the service; memory; top-k.

    python benchmarks/recommendation/serving.py [--part step service memory topk] [--device cuda] [--seconds 0.4]

Untrained models (time does not depend on the weights) of ML-1M's size: 3,416 items, D 64, Mamba4Rec with one layer
and 32 states, SASRec with two layers and two heads. One thread. Times are of the wall; on a busy machine the CPU's own
time, printed beside the median, is the fair one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from seqgraph.stream import TokenStream
from seqgraph.train import checkpoint
from seqgraph_mamba4rec.model import Mamba4Rec
from seqgraph_mamba4rec.sasrec import SASRec
from seqgraph_mamba4rec.serve.store import UserStore
from seqgraph_mamba4rec.topk import ItemIndex

ITEMS, HISTORIES, USERS = 3416, (50, 200, 2000), (1, 64, 1024)
FIELDS = {"num_items": ITEMS, "d_model": 64, "n_layers": 1, "d_state": 32}
# Tokens that are encoded at once, as recommend() does.
_TOKENS = 1 << 16


def mamba(**more) -> Mamba4Rec:
    torch.manual_seed(0)
    model = Mamba4Rec(**(FIELDS | more)).eval()
    model.assets = {"item_ids": [str(i) for i in range(model.num_items)], "titles": {}, "max_history": None}
    return model


SECONDS = 2.0
"""For each measurement."""


def measure(call: Callable[[], object], device: str, seconds: float | None = None) -> tuple[float, float, float]:
    """Median and 99th percentile of the wall time, and median of the CPU's, in ms; one call where that takes long."""
    seconds = SECONDS if seconds is None else seconds
    wall: list[float] = []
    cpu: list[float] = []
    begin = time.perf_counter()
    call()
    while not wall or (time.perf_counter() - begin < seconds and len(wall) < 2000):
        start, own = time.perf_counter(), time.process_time()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - own))
    wall.sort()
    cpu.sort()
    return wall[len(wall) // 2], wall[min(len(wall) - 1, int(0.99 * len(wall)))], cpu[len(cpu) // 2]


@torch.inference_mode()
def step(device: str) -> None:
    """One event each of 1, 64 and 1,024 users."""
    print("| users | what | median ms | p99 ms | CPU ms | events per second |\n|---|---|---|---|---|---|")

    def row(users: int, name: str, call: Callable[[], object]) -> None:
        median, p99, cpu = measure(call, device)
        print(
            f"| {users:,} | {name} | {median:.2f} | {p99:.2f} | {cpu:.2f} | {1e3 * users / median:,.0f} |", flush=True
        )

    g = torch.Generator().manual_seed(0)
    for mixer in ("s6", "ssd"):
        model = mamba(mixer=mixer).to(device)
        for users in USERS:
            state, items = model.initial_state(users), torch.randint(ITEMS, (users,), generator=g).to(device)
            row(users, f"Mamba4Rec {mixer}: step", lambda m=model, s=state, i=items: m.step(s, i, inplace=True))
    encoders = {
        "Mamba4Rec s6": mamba().to(device),
        "SASRec": SASRec(ITEMS, max_length=max(HISTORIES)).eval().to(device),
    }
    for length in HISTORIES:
        for users in USERS:
            rows = max(1, min(users, _TOKENS // length))
            stream = TokenStream.from_lengths(torch.randint(ITEMS, (rows * length,), generator=g), [length] * rows)
            stream = stream.to(device)
            for name, model in encoders.items():

                def read(m=model, s=stream, n=users // rows) -> None:
                    for _ in range(n):
                        m.encode_users(s)

                row(users, f"{name}: read {length:,} events again", read)


def topk(device: str) -> None:
    """The best ten of all items."""
    print("| items | users | torch ms | FAISS flat ms |\n|---|---|---|---|")
    for items in (12_101, 100_000, 1_000_000):
        vectors = torch.randn(items, 64, device=device)
        for users in (1, 64):
            ask = torch.randn(users, 64, device=device)
            cells = []
            for backend in ("torch", "faiss"):
                try:
                    index = ItemIndex(vectors, backend=backend)
                except (ModuleNotFoundError, ValueError):
                    cells.append("-")
                    continue
                cells.append(f"{measure(lambda i=index, a=ask: i.search(a, 10), device)[0]:.2f}")
            print(f"| {items:,} | {users} | {' | '.join(cells)} |", flush=True)


def memory(device: str, capacity: int, dtype: str, most: float) -> None:
    """The states of many users: bytes, and what 1,024 of them at random cost. Filled for so many seconds at most."""
    model = mamba().to(device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        store = UserStore(Path(folder), model, capacity=capacity, dtype=getattr(torch, dtype))
        begin, users = time.perf_counter(), 0
        while users < capacity and time.perf_counter() - begin < most:
            more = min(users + (1 << 15), capacity)
            store.add([(f"user-{i}", i % ITEMS) for i in range(users, more)])
            users = more
        took = time.perf_counter() - begin
        state = sum(t[:1].nbytes for t in store.model.initial_state(1).values()) * (4 if dtype == "float32" else 2) // 4
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        there = f"; {torch.cuda.max_memory_allocated() / 1e9:.2f} GB of the GPU's memory" if device == "cuda" else ""
        g = torch.Generator().manual_seed(0)

        def some() -> None:
            chosen = torch.randint(users, (1024,), generator=g).tolist()
            store.add([(f"user-{i}", i % ITEMS) for i in chosen])

        median, p99, _ = measure(some, device, 2.5 * SECONDS)
        print(
            f"{users:,} of {capacity:,} users, {dtype}: {state:,} bytes of state each, {state * capacity / 1e9:.2f} GB "
            f"for all; the process grew by {grown / 1e9:.2f} GB{there}; filled in {took:.0f} s; "
            f"1,024 events of users at random, logged and synced: median {median:.1f} ms, p99 {p99:.1f} ms",
            flush=True,
        )
        store.close()


# ---------------------------------------------------------------------------------------------- the service
async def _client(address: tuple[str, int], user: str, events: int, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    for n in range(events):
        body = json.dumps({"user": user, "item": n % ITEMS}).encode()
        head = (
            f"POST /event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        start = time.perf_counter()
        writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(int(x.split(b":")[1]) for x in answer.lower().split(b"\r\n") if x.startswith(b"content-length"))
        await reader.readexactly(length)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        times.append(1e3 * (time.perf_counter() - start))
    writer.close()


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _load(address: tuple[str, int], users: int, events: int, server: int) -> None:
    times: list[float] = []
    begin, own = time.perf_counter(), _cpu_seconds(server)
    await asyncio.gather(*(_client(address, f"user {i}", events, times) for i in range(users)))
    took, own = time.perf_counter() - begin, _cpu_seconds(server) - own
    times.sort()
    print(
        f"| {users:,} | {len(times):,} | {len(times) / took:,.0f} | {times[len(times) // 2]:.1f} | "
        f"{times[int(0.99 * len(times))]:.1f} | {1e3 * own / len(times):.2f} |",
        flush=True,
    )


def service() -> None:
    """Events over HTTP from a process of their own, each acknowledged when it is on the disk."""
    print("| users at once | events | events per second | median ms | p99 ms | server's CPU ms an event |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = mamba()
        run = checkpoint.save(Path(folder) / "run", model, name="mamba4rec", fields=FIELDS)
        command = [sys.executable, "-m", "seqgraph", "serve", str(run), "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            assert server.stdout is not None
            host, port = server.stdout.readline().split()[0].removeprefix("http://").split(":")
            time.sleep(1)
            for users, events in zip(USERS, (1500, 150, 20), strict=True):
                asyncio.run(_load((host, int(port)), users, events, server.pid))
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def main() -> None:
    global SECONDS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("step", "topk", "memory", "service")
    parser.add_argument("--part", nargs="*", default=parts, choices=parts)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--users", type=int, default=1_000_000, help="of --part memory")
    parser.add_argument("--fill", type=float, default=600.0, help="seconds for which --part memory adds users at most")
    parser.add_argument("--dtype", default="float16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each measurement")
    options = parser.parse_args()
    SECONDS = options.seconds
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "one CPU thread"
    print(f"torch {torch.__version__}, {where}, load average {os.getloadavg()[0]:.1f}\n")
    if "step" in options.part:
        step(options.device)
    if "topk" in options.part:
        topk(options.device)
    if "memory" in options.part:
        memory(options.device, options.users, options.dtype, options.fill)
    if "service" in options.part:
        service()


if __name__ == "__main__":
    main()
