"""Memory and time of a training step against the nodes of one graph: node tokens, walk tokens, dense attention.

    python benchmarks/graph/scale.py [--device cuda] [--seconds 20] [--output benchmarks/results]
    python benchmarks/graph/scale.py --redraw benchmarks/results/scale-cuda.json

One graph of mean degree 4, two layers of width 32 with the same GatedGCN, forward, backward and AdamW; new ties and
new walks in every step. Memory is what the step needs at its peak: of CUDA ``max_memory_allocated``, on the CPU the
growth of a child process's resident set; time there is that of one core, which other jobs on the machine do not touch.
A method ends where a step ran out of memory, or would take longer than ``--seconds``, by how its time grew last.
Writes scale-<device>.json, .md and, where matplotlib is there, .svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from torch import Tensor, nn

from seqgraph_graph_mamba.gps import GPS
from seqgraph_graph_mamba.graph import Graph, GraphBatch, collate
from seqgraph_graph_mamba.model import GraphMamba
from seqgraph_graph_mamba.walk_mamba import WalkMamba

SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
FEATURES = 16
WALK = {"length": 50, "rate": 0.1}
SHAPE: dict[str, Any] = {
    "d_model": 32,
    "n_layers": 2,
    "level": "node",
    "node_features": "linear",
    "d_node": FEATURES,
    "edge_features": "none",
    "pe": "none",
    "dropout": 0.0,
}


class WrittenAttention(nn.Module):
    """Attention whose matrix is written out, as in GraphGPS's code of 2022: V x V numbers a head."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, h: Tensor, graphs: GraphBatch) -> Tensor:
        """h (V, D) of one graph -> (V, D)."""
        fused: Any = self.fused
        q, k, v = fused.in_proj(h).view(len(h), 3, fused.heads, -1).permute(1, 2, 0, 3)  # (H, V, C) each
        weight = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
        return fused.out_proj((weight @ v).transpose(0, 1).flatten(1))


def written() -> nn.Module:
    model = GPS(**SHAPE, attention_dropout=0.0)
    for layer in model.layers:
        layer.mixer = WrittenAttention(layer.mixer)  # type: ignore[assignment]
    return model


METHODS: dict[str, Callable[[], nn.Module]] = {
    "node tokens, one way": lambda: GraphMamba(**SHAPE),
    "node tokens, both ways": lambda: GraphMamba(**SHAPE, direction="both"),
    "walk tokens, both ways": lambda: WalkMamba(**SHAPE, **WALK, expand=1, mpnn="gated-gcn"),
    "attention (GPS), fused": lambda: GPS(**SHAPE, attention_dropout=0.0),
    "attention (GPS), written out": written,
}


def one_graph(nodes: int) -> GraphBatch:
    """A ring and as many random edges, both ways of each."""
    generator = torch.Generator().manual_seed(0)
    start = torch.arange(nodes)
    random = torch.randint(0, nodes, (2, nodes), generator=generator)
    pairs = torch.cat([torch.stack([start, (start + 1) % nodes]), random], 1)
    x = torch.randn(nodes, FEATURES, generator=generator)
    return collate([Graph(x, torch.cat([pairs, pairs.flip(0)], 1))])


def make_step(method: str, nodes: int, device: str, precision: str) -> Callable[[], None]:
    """A training step; orders and names, which training does not change, are known as in a data set."""
    torch.manual_seed(0)
    model: Any = METHODS[method]().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    batch = one_graph(nodes).to(device)
    batch = replace(batch, columns={} if method.startswith("walk") else model.node_columns(batch), longest=nodes)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(batch).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# ---------------------------------------------------------------------- one cell
def measure_cuda(method: str, nodes: int, precision: str, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of a step, or what went wrong."""
    try:
        step = make_step(method, nodes, "cuda", precision)
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return {"seconds": statistics.median(times), "bytes": torch.cuda.max_memory_allocated()}
    except torch.cuda.OutOfMemoryError:
        return {"ended": "out of memory"}
    finally:
        torch.cuda.empty_cache()


def measure_cpu(method: str, nodes: int, precision: str, limit: float, memory: float) -> dict[str, Any]:
    """The same, in a child process of its own."""
    command = [sys.executable, __file__, "--cell", method, str(nodes), precision, str(memory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20 * limit + 60)
    except subprocess.TimeoutExpired:
        return {"ended": "over time"}
    if done.returncode == 0:
        return json.loads(done.stdout)
    if "alloc" in done.stderr or "MemoryError" in done.stderr or done.returncode < 0:
        return {"ended": "out of memory"}
    raise SystemExit(done.stderr)


def cell(method: str, nodes: int, precision: str, memory: float) -> None:
    """What the child does; prints JSON."""
    import resource

    torch.set_num_threads(1)
    make_step(method, 100, "cpu", precision)()  # compiles, and starts the threads
    step = make_step(method, nodes, "cpu", precision)
    status = Path("/proc/self/status").read_text().split()
    held = int(status[status.index("VmSize:") + 1]) * 1024
    bound = held + int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    status = Path("/proc/self/status").read_text().split()
    before = int(status[status.index("VmRSS:") + 1]) * 1024
    times: list[float] = []
    # the first step counts for memory; it is timed too where there is no patience for a second
    while len(times) < 4 and sum(times) < 5:
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    status = Path("/proc/self/status").read_text().split()
    peak = int(status[status.index("VmHWM:") + 1]) * 1024
    print(json.dumps({"seconds": statistics.median(times[1:] or times), "bytes": peak - before}))


# ---------------------------------------------------------------------- all of them
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All cells; a method ends with the first that does not finish."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        rows[method] = []
        for nodes in arguments.sizes:
            known = rows[method][-2:]
            expected = 0.0
            if known:
                growth = 1.0
                if len(known) == 2:
                    growth = known[1]["seconds"] / known[0]["seconds"]
                expected = known[-1]["seconds"] * max(growth, 1.0)
            if expected > arguments.seconds:
                found: dict[str, Any] = {"ended": f"over time (about {expected:.0f} s)"}
            elif arguments.device == "cuda":
                found = measure_cuda(method, nodes, arguments.precision, 3)
            else:
                found = measure_cpu(method, nodes, arguments.precision, arguments.seconds, arguments.memory)
            rows[method].append({"nodes": nodes, **found})
            print(method, rows[method][-1], file=sys.stderr, flush=True)
            if "ended" in found:
                break
    return {"where": where(arguments), "device": arguments.device, "rows": rows}


def where(arguments: argparse.Namespace) -> str:
    """Machine, settings and limits, in words."""
    precision = "bf16 (autocast)" if arguments.precision == "bf16" else "fp32"
    rest = f"torch {torch.__version__}, {precision}, {time.strftime('%Y-%m-%d')}"
    if arguments.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name()}, {total:.0f} GiB, {rest}; at most {arguments.seconds:g} s a step"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    limits = f"at most {arguments.seconds:g} s and {arguments.memory:g} GiB a step"
    return f"{name}, one core, {rest}; {limits}. Pages that the system took back during a step are not counted"


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    methods, sizes = found["rows"], sorted({row["nodes"] for rows in found["rows"].values() for row in rows})
    cells = {name: {row["nodes"]: row for row in rows} for name, rows in methods.items()}
    lines = [
        "# Memory and time of a training step against the nodes of one graph",
        "",
        f"{found['where']}.",
        "",
        f"`python benchmarks/graph/scale.py --device {found['device']}`: one graph of mean degree 4, two layers of",
        "width 32 with GatedGCN beside the mixer, forward, backward and AdamW. Walk tokens: "
        f"{WALK['rate'] * (WALK['length'] + 1):.0f} a node, drawn anew in each step.",
        "",
        "| nodes | " + " | ".join(methods) + " |",
        "|---:|" + "---:|" * len(methods),
    ]
    for nodes in sizes:
        shown = [_said(cells[name].get(nodes)) for name in methods]
        lines.append(f"| {nodes:,} | " + " | ".join(shown) + " |")
    lines += ["", "| a node, at its largest | " + " | ".join(methods) + " |", "|---|" + "---:|" * len(methods)]
    last = [next((row for row in reversed(rows) if "bytes" in row), None) for rows in methods.values()]
    lines.append("| KiB | " + " | ".join(f"{r['bytes'] / r['nodes'] / 1024:.1f}" if r else "" for r in last) + " |")
    lines.append("| µs | " + " | ".join(f"{r['seconds'] / r['nodes'] * 1e6:.2f}" if r else "" for r in last) + " |")
    return "\n".join(lines) + "\n"


def _said(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "ended" in row:
        return row["ended"]
    seconds = f"{row['seconds']:.1f} s" if row["seconds"] >= 1 else f"{row['seconds'] * 1e3:.0f} ms"
    return f"{seconds}, {max(row['bytes'] / 2**20, 1):,.0f} MiB"


def draw(found: dict[str, Any], path: Path) -> None:
    """Both against the nodes, on logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scale", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, rows in found["rows"].items():
        done = [row for row in rows if "bytes" in row]
        style = "--" if name.startswith("attention") else "-"
        for axis, key, unit in zip(axes, ("bytes", "seconds"), (2**30, 1)):
            axis.plot([r["nodes"] for r in done], [r[key] / unit for r in done], style, marker="o", ms=3, label=name)
    for axis, label in zip(axes, ("GiB a training step", "seconds a training step")):
        axis.set(xscale="log", yscale="log", xlabel="nodes of the graph", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest step")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that a step may take on the CPU")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--redraw", type=Path, help="a .json of an earlier run")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        method, nodes, precision, memory = arguments.cell
        return cell(method, int(nodes), precision, float(memory))
    found = json.loads(arguments.redraw.read_text()) if arguments.redraw else measure(arguments)
    stem = arguments.redraw.with_suffix("") if arguments.redraw else arguments.output / f"scale-{found['device']}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(found))
    print(table(found))
    try:
        draw(found, stem.with_suffix(".svg"))
    except ImportError:
        print("matplotlib is not there: no plot")


if __name__ == "__main__":
    main()
