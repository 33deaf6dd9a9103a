"""Put what ``train_gpu.py`` and ``epoch_gpu.py`` wrote into the pages of results.

    python benchmarks/graph/collect.py results.json [more.json ...] [--epoch epoch.json] [--results benchmarks/results]

Runs are merged into graphs-runs.json by name and command: a finished one wins, then that of more epochs, then the later
one, never by its metric. Runs of one name and other commands (batches, time) are other runs, with rows of their own.
The tables of graphs.md, between ``<!-- NAME -->`` and ``<!-- /NAME -->``, are written anew; everything else there is
left alone. A run with ``superseded``, which says how its preset was otherwise then, is kept but not shown.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

Run = dict[str, Any]

# Group of runs (their name without the seed): data, metric, what it is, published.
NUMBERS: dict[str, tuple[str, str, str, str]] = {
    "plus": (
        "Peptides-func", "AP ↑", "Graph-Mamba, both directions, RWSE, GELU, dropout, deep head, weights averaged",
        ".6739 ± .0087 (Graph-Mamba), .7071 ± .0083 (GMN)",
    ),
    "gcn-mamba": (
        "Peptides-func", "AP ↑", "GCN+ with a BiMamba beside its last convolution, weights averaged",
        ".7096 ± .0078 (NeuralWalker), .7357 ± .0036 (ESA)",
    ),
    "gcn": ("Peptides-func", "AP ↑", "GCN+", ".7261 ± .0067"),
    "zinc-gin": (
        "ZINC-12k", "MAE ↓", "GIN+ with a BiMamba beside every third convolution, weights averaged",
        ".065 (GIN+), .059 (GRIT)",
    ),
    "zinc": ("ZINC-12k", "MAE ↓", "Graph-Mamba", ".070 (GPS), .059 (GRIT)"),
    "minesweeper": (
        "minesweeper", "ROC-AUC ↑", "Graph-Mamba, both directions, 12 × 48", ".9101 ± .0023 (GMN), .9533 (MP-SSM)",
    ),
    "tolokers": ("tolokers", "ROC-AUC ↑", "Graph-Mamba, both directions", ".8452 ± .0021 (GMN), .8526 (MP-SSM)"),
}  # fmt: skip
ONE_GRAPH = ("minesweeper", "tolokers")
MOLECULES = {"bace": "ROC-AUC ↑", "bbbp": "ROC-AUC ↑", "esol": "RMSE ↓", "freesolv": "RMSE ↓"}
FINGERPRINTS = {"bace": ".778", "bbbp": ".637", "esol": "1.03", "freesolv": "3.81"}
ORDERS = {
    "random": "random", "degree": "degree", "rwse": "RWSE", "personalized-pagerank": "personalised PageRank",
    "bfs": "breadth first",
}  # fmt: skip


def merge(old: list[Run], new: list[Run]) -> list[Run]:
    """Of each name and command one run: a finished one, then that of most epochs, then the later one."""
    held: dict[tuple[str, str], Run] = {}
    for run in [*old, *new]:
        key = run["run"], run["command"]
        before = held.get(key)
        if run["test"] is not None and (before is None or _rank(run) >= _rank(before)):
            held[key] = run
    return list(held.values())


def _rank(run: Run) -> tuple[bool, int]:
    return run["state"] == "done", run["epochs"]


def number(value: float | None, digits: int = 4) -> str:
    """As in papers: no zero before the point."""
    return "" if value is None else f"{value:.{digits}f}".removeprefix("0")


def spread(values: list[float], digits: int = 4) -> str:
    """Mean ± standard deviation (n - 1), the mean alone for one value."""
    if not values:
        return ""
    more = f" ± {number(statistics.stdev(values), digits)}" if len(values) > 1 else ""
    return number(statistics.fmean(values), digits) + more


def span(values: list[float]) -> str:
    """``3`` or ``3 to 5``."""
    low, high = min(values), max(values)
    return f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"


def planned(runs: list[Run]) -> str:
    """What the schedules were made for, and whether they came to their ends."""
    seconds, epochs = (runs[0]["planned"].get(kind) for kind in ("seconds", "epochs"))
    plan = f"by the clock, {seconds:.0f} s" if seconds else f"of {epochs:,}"
    cut = sum(run["state"] != "done" for run in runs)
    if not cut:
        return plan
    return f"{plan}, cut" if cut == len(runs) else f"{plan}, {cut} of {len(runs)} cut"


def option(run: Run, key: str) -> str:
    """What the command gives an option, empty where it does not name it."""
    found = re.search(rf" {re.escape(key)}=(\S+)", run["command"])
    return found.group(1) if found else ""


def drawn(runs: list[Run]) -> str:
    """How long batches stay what they are."""
    if not runs:
        return ""
    if runs[0]["command"].split()[2] in ONE_GRAPH:
        return "one graph"
    if option(runs[0], "train.level") == "true":
        return "level, anew each epoch"
    replay = option(runs[0], "train.replay")
    return f"kept for {replay} epochs" if replay not in ("", "1") else "anew each epoch"


def grouped(runs: list[Run]) -> dict[str, list[list[Run]]]:
    """Runs by name without the seed: for each, lists of runs whose commands differ in the seed alone, older first."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        name, command = (
            re.sub(pattern, "", run[key]) for pattern, key in ((r"-\d+$", "run"), (r" seed=\d+", "command"))
        )
        groups.setdefault(name, {}).setdefault(command, []).append(run)
    return {
        name: [sorted(each, key=lambda run: run["run"]) for each in lists.values()] for name, lists in groups.items()
    }


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def details(runs: list[Run]) -> tuple[str, ...]:
    """Parameters, seeds, epochs, seconds and machine of runs of one command."""
    machines = sorted({run["machine"].removeprefix("NVIDIA ") for run in runs})
    return (
        f"{runs[0]['parameters']:,}",
        ", ".join(run["run"].rpartition("-")[2] for run in runs),
        f"{span([run['epochs'] for run in runs])} {planned(runs)}",
        span([run["seconds"] for run in runs]),
        ", ".join(machines),
    )


def numbers_table(groups: dict[str, list[list[Run]]]) -> list[str]:
    """Ours beside the published; a row for each command."""
    head = ("data", "metric", "model (runs)", "nodes a batch", "batches", "parameters", "seeds", "epochs",
            "s a run", "on", "valid", "test", "published")  # fmt: skip
    rows = [line(*head), line(*["---"] * len(head))]
    for name, (data, metric, what, published) in NUMBERS.items():
        for runs in groups.get(name, [[]]):
            cells = details(runs) if runs else ("", "", "not run", "", "")
            batch = f"{runs[0]['batch']:,}" if runs and runs[0]["batch"] else ""
            values = (spread([run[part] for run in runs]) for part in ("valid", "test"))
            rows.append(line(data, metric, f"{what} (`{name}`)", batch, drawn(runs), *cells, *values, published))
    return rows


def molecules_table(groups: dict[str, list[list[Run]]]) -> list[str]:
    """OGB's small sets: Graph-Mamba, GIN with a virtual node, fingerprints."""
    head = ("data", "metric", "model", "parameters", "seeds", "epochs", "s a run", "on", "valid", "test")
    rows = [line(*head), line(*["---"] * len(head))]
    for name, metric in MOLECULES.items():
        for group, what in ((name, "Graph-Mamba"), (f"{name}-gin", "GIN with a virtual node")):
            for runs in groups.get(group, [[]]):
                digits = 3 if metric.startswith("ROC") else 2
                cells = details(runs) if runs else ("", "", "not run", "", "")
                values = (spread([run[part] for run in runs], digits) for part in ("valid", "test"))
                rows.append(line(f"ogbg-mol{name}", metric, what, *cells, *values))
        rows.append(
            line(f"ogbg-mol{name}", metric, "fingerprints, boosted trees", "", "", "", "", "", "", FINGERPRINTS[name])
        )
    return rows


def orders_table(runs: list[Run]) -> list[str]:
    """Validation and test AP of each order in one and in both directions."""
    by_name = {run["run"]: run for run in runs}
    rows = [line("order", "one direction: epochs, valid, test", "both: epochs, valid, test"), line(*["---"] * 3)]
    for order, title in ORDERS.items():
        cells = []
        for way in ("forward", "both"):
            if (run := by_name.get(f"{order}-{way}")) is None:
                cells.append("not run")
                continue
            epochs = f"{run['epochs']}{'' if run['state'] == 'done' else ' (cut)'}"
            cells.append(f"{epochs}, {number(run['valid'])}, {number(run['test'])}")
        rows.append(line(title, *cells))
    return rows


def epoch_table(held: dict[str, Any]) -> list[str]:
    """An epoch's seconds and where a step's go, a row a precision."""
    head = ("", "trainer, s an epoch", "evaluation, s", "nodes/s", "loop, s", "step, ms", "host, ms", "kernels, ms",
            "loader", "message passing", "scan")  # fmt: skip
    rows = [line(*head), line(*["---"] * len(head))]
    for precision, found in held["precisions"].items():
        trainer, loop, kernels = (found.get(part, {}) for part in ("trainer", "loop", "kernels"))
        parts = [kernels.get(part) for part in ("step", "loader", "message passing", "scan")]
        whole = parts[0] or float("nan")
        shares = ["" if part is None else f"{part:.2f} ({part / whole:.0%})" for part in parts[1:]]
        rows.append(
            line(
                precision,
                *(f"{trainer[key]:.2f}" if trainer else "" for key in ("epoch", "evaluation")),
                f"{(trainer or loop).get('nodes_per_second', 0):,.0f}",
                *(f"{loop[key]:.2f}" if loop else "" for key in ("seconds", "step_ms", "host_ms")),
                "" if parts[0] is None else f"{parts[0]:.2f}",
                *shares,
            )
        )
        if "replayed" in found:
            rows.append(replayed_row(precision, found.get("trainer_replayed", {}), found["replayed"]))
    name = " ".join([held["preset"], *held["overrides"]])
    return [f"`{name}`, {held['machine']}, torch {held['torch']}:", "", *rows]


def replayed_row(precision: str, trainer: dict[str, Any], loop: dict[str, Any]) -> str:
    """The mean over the epochs that a recording lasts; in brackets the epoch that records, and a later one."""
    rate = f"{trainer['nodes_per_second']:,.0f}" if trainer else ""
    return line(
        f"{precision}, `train.replay={loop['epochs']}`",
        f"{trainer['epoch']:.2f} ({trainer['record']:.2f}, {trainer['seconds']:.2f})" if trainer else "",
        f"{trainer['evaluation']:.2f}" if trainer else "",
        rate,
        f"{loop['mean']:.2f} ({loop['record']:.2f}, {loop['seconds']:.2f})",
        f"{loop['step_ms']:.2f}",
        f"{loop['host_ms']:.2f}",
        *[""] * 4,
    )


def put(page: str, name: str, rows: list[str]) -> str:
    """The page with these lines between the marks of a table.

    Raises:
        SystemExit: when the page has no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"the page has no <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda found: found.group(1) + "\n".join(["", *rows, "", ""]) + found.group(2), page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summaries", nargs="*", type=Path, help="results.json of train_gpu.py, oldest first")
    parser.add_argument("--epoch", type=Path, help="--output of epoch_gpu.py")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    held, page = arguments.results / "graphs-runs.json", arguments.results / "graphs.md"
    runs: list[Run] = json.loads(held.read_text())
    for path in arguments.summaries:
        whole = json.loads(path.read_text())
        call = re.sub(r"--(data|work|out) \S+", lambda found: f"--{found[1]} {found[1].upper()}", whole["call"])
        runs = merge(runs, [{**run, "machine": whole["machine"], "call": call} for run in whole["runs"]])
    held.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    shown = [run for run in runs if "superseded" not in run]
    groups, text = grouped(shown), page.read_text()
    text = put(text, "numbers", numbers_table(groups))
    text = put(text, "molecules", molecules_table(groups))
    text = put(text, "orders", orders_table(shown))
    if arguments.epoch:
        text = put(text, "epoch", epoch_table(json.loads(arguments.epoch.read_text())))
    page.write_text(text)


if __name__ == "__main__":
    main()
