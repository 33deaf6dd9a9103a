"""Downstream tasks of a list of runs in one table, beside simple features and random weights.

    python benchmarks/proteins/downstream.py pack  --data /path/to/protein --out PACKED
    python benchmarks/proteins/downstream.py table --data PACKED --out OUT --runs RUN [RUN ...] [--device cuda]

    python benchmarks/proteins/downstream.py edges --data PACKED --out OUT [--splits bfs dfs] [--seeds 0]

``edges`` writes OUT/shs27k-SPLIT-SEED.tsv, the training interactions of a split, for a second stage that is probed on
it: one that has walked over all of them has seen the answers. Probe it with the same ``--splits`` and ``--seeds``.
``pack`` copies what the tasks read, and of Swiss-Prot only the proteins of the task on function (30 MB instead of 63).
``table`` goes through the tasks one by one; each begins only while ``--limit`` seconds are not over. After each
OUT/rows.json is written, at the end OUT/table.md; ``--resume`` leaves out the tasks that OUT has. A run is anything
that ``seqgraph probe`` takes; interactions are also read beside neighbours where it has been through the second stage.
A column a run; "simple" is the best of one-hot codes and words of letters, "random" a run's shape with random weights.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqgraph_lc_plm.probes.measures import Row

# the cheap ones first
TASKS = ("zero-shot", "gb1", "yeast", "interactions", "remote-homology", "function", "secondary-structure")
FOLDERS = ("secondary_structure_tests", "scope_astral40", "proteingym_partial", "ppi_shs27k", "ppi_yeast_pipr")
FLIP = ("secondary_structure.splits.zip", "gb1.splits.zip")
_SIMPLE = ("-mers", "one-hot", "letters of")


def pack(data: Path, out: Path) -> None:
    """Copy what the tasks read."""
    from seqgraph_lc_plm.probes import sets

    for folder in FOLDERS:
        shutil.copytree(data / folder, out / folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    (out / "ppi_shs27k" / "protein.SHS148k.sequences.dictionary.tsv.gz").unlink(missing_ok=True)
    (out / "flip").mkdir(parents=True, exist_ok=True)
    for name in FLIP:
        shutil.copyfile(data / "flip" / name, out / "flip" / name)
    direct = sets.direct_functions(data)
    rows, first, kept = [], set(), set()
    for accession, cluster, split, sequence in sets.swissprot(data):
        if accession not in direct or (split == "train" and (cluster in first or len(sequence) > 2000)):
            continue
        first.add(cluster)
        kept.add(accession)
        rows.append(f"{accession}\t{cluster}\t{split}\t{sequence}\n")
    target = out / sets.SWISSPROT
    target.mkdir(exist_ok=True)
    (target / "swissprot_2014_01.tsv.xz").write_bytes(lzma.compress("".join(rows).encode()))
    lines = "".join(f"{accession}\t{direct[accession]}\t\t\n" for accession in sorted(kept))
    (target / "go_annotations.tsv.xz").write_bytes(lzma.compress(lines.encode()))
    shutil.copyfile(data / sets.SWISSPROT / "go_graph.tsv.xz", target / "go_graph.tsv.xz")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, {len(rows):,} proteins of Swiss-Prot")


def pivot(rows: list[Row], runs: list[str]) -> str:
    """A line for each task, data and probe; a column a run, the best simple features, and random weights."""
    short = {run: Path(run).name if Path(run).name not in ("best", "last") else Path(run).parent.name for run in runs}
    columns = [*runs, "trivial", "simple", *(f"{run}, random weights" for run in runs)]
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    sizes: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        beside = ", beside neighbours"
        name = row.features.removesuffix(beside)
        key = (row.task, row.data, row.head + (beside if name != row.features else ""), row.measure)
        if name in columns:
            found.setdefault(key, {})[name] = row.value
            sizes[key] = row.size
    for row in rows:
        kind = "trivial" if row.features == "none" else "simple" if any(w in row.features for w in _SIMPLE) else ""
        for key in found:
            if kind and key[:2] == (row.task, row.data):
                found[key][kind] = max(row.value, found[key].get(kind, row.value))
    names = [short.get(column, column) for column in columns[: len(runs)]] + ["trivial", "simple"]
    names += [f"{short[run]}, random" for run in runs]
    lines = ["| task | data | probe | measure | " + " | ".join(names) + " | n |", "|---" * (len(names) + 5) + "|"]
    for key, values in found.items():
        best = max((values[run] for run in runs if run in values), default=None)
        cells = [f"{values[column]:.3f}" if column in values else "" for column in columns]
        cells = [
            f"**{c}**" if best is not None and c == f"{best:.3f}" and i < len(runs) else c for i, c in enumerate(cells)
        ]
        lines.append("| " + " | ".join([*key, *cells, f"{sizes[key]:,}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["pack", "edges", "table"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks' data, whole or packed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=[], help="runs, checkpoints, ESM-2 files")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/downstream-cache"), help="embeddings are kept here")
    parser.add_argument("--splits", nargs="+", default=["random", "bfs", "dfs"], help="of SHS27k's interactions")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of these splits")
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--examples", type=int, default=None, help="of each set at most, to try it out")
    parser.add_argument("--tokens", type=int, default=65536, help="in one forward pass")
    parser.add_argument("--limit", type=float, default=540, help="seconds after which no task begins")
    parser.add_argument("--resume", action="store_true", help="leave out the tasks that OUT/rows.json has")
    options = parser.parse_args()
    if options.stage == "pack":
        pack(options.data, options.out)
        return
    if options.stage == "edges":
        from seqgraph_lc_plm.probes.pairs import training_edges

        options.out.mkdir(parents=True, exist_ok=True)
        for how in options.splits:
            for seed in options.seeds:
                (options.out / f"shs27k-{how}-{seed}.tsv").write_text(training_edges(options.data, how, seed))
        return
    from seqgraph_lc_plm.probes.command import measure
    from seqgraph_lc_plm.probes.measures import Row

    if not options.runs:
        parser.error("--runs names nothing")
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rows.json"
    done = json.loads(file.read_text()) if options.resume and file.is_file() else {}
    for task in options.tasks:
        if task in done:
            continue
        if time.perf_counter() - began > options.limit:
            print(f"{task}: left out, {options.limit:.0f} s are over; go on with --resume")
            continue
        start = time.perf_counter()
        rows = measure(
            [task], options.runs, options.data, cache=options.cache, layer=options.layer, limit=options.examples,
            max_tokens=options.tokens, bf16=options.device == "cuda", nogpu=options.device == "cpu",
            splits=options.splits, seeds=options.seeds,
        )  # fmt: skip
        done[task] = [asdict(row) for row in rows]
        file.write_text(json.dumps(done, indent=1) + "\n")
        print(f"{task}: {len(rows)} rows in {time.perf_counter() - start:.0f} s", flush=True)
    text = pivot([Row(**row) for rows in done.values() for row in rows], options.runs)
    (options.out / "table.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
