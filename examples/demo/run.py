"""Train all three domains on real data, use what was trained, and write one page about it: ``make demo``.

Runs the commands that a user would type, in one process, so that the imports are paid for once. Fails when a
model does not beat its trivial baseline.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from page import Result, graph_order, protein_map, write

import seqgraph as sg
from seqgraph.cli.main import main as seqgraph

HERE = Path(__file__).parent
SEED = 0


@dataclass(frozen=True)
class Job:
    """A preset, and how its result is told."""

    preset: str
    folder: str
    title: str
    metric: str
    label: str
    better: str
    baseline: str


JOBS = (
    Job("ogbg-molesol", "graph-mamba", "Graph-Mamba on ESOL", "rmse", "RMSE, log mol/l", "lower", "mean predictor"),
    Job("lc-plm-sample", "lc-plm", "LC-PLM on Swiss-Prot", "perplexity", "masked perplexity", "lower", "unigram"),
    Job(
        "ml-100k",
        "mamba4rec",
        "Mamba4Rec on MovieLens-100k",
        "NDCG@10-unseen",
        "NDCG@10-unseen",
        "higher",
        "popularity",
    ),
)


def command(*words: str) -> None:
    """Run one command of the program, shown as it would be typed."""
    print(f"\n$ seqgraph {shlex.join(words)}", flush=True)
    if code := seqgraph(words):
        sys.exit(code)


def trained(job: Job, folder: Path) -> Result:
    """Train one preset and read what the run wrote."""
    started = time.perf_counter()
    command("train", job.preset, f"seed={SEED}", "-o", str(folder))
    results = json.loads((folder / "metrics.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rows = [row for row in log if f"valid_{job.metric}" in row]
    return Result(
        title=job.title,
        metric=job.label,
        better=job.better,
        model=results["test"][job.metric],
        baseline=results["baseline"][job.metric],
        baseline_name=job.baseline,
        parameters=sum(p.numel() for p in sg.load(folder).parameters()),
        seconds=time.perf_counter() - started,
        curve=([row["epoch"] for row in rows], [row[f"valid_{job.metric}"] for row in rows]),
    )


def draw_molecule() -> str:
    """Caffeine, with its atoms in the order in which Graph-Mamba reads them."""
    from rdkit import Chem
    from rdkit.Chem import rdDepictor

    from seqgraph_graph_mamba.features import smiles_graph

    smiles = "Cn1cnc2c1c(=O)n(C)c(=O)n2C"
    molecule = Chem.MolFromSmiles(smiles)
    rdDepictor.Compute2DCoords(molecule)
    place = molecule.GetConformer().GetPositions()[:, :2]
    graph = smiles_graph(smiles)
    stream = sg.tokenize("nodes", graph, order="degree", generator=torch.Generator().manual_seed(SEED))
    rank = np.empty(stream.num_tokens, dtype=int)
    rank[stream.source.numpy()] = np.arange(stream.num_tokens)
    labels = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    return graph_order(dict(enumerate(place)), graph.edge_index.numpy(), rank, labels)


def embed_families(run: Path, out: Path) -> str:
    """Embed a FASTA file with the larger model that ships, or else with the one trained here, and draw its families."""
    from sklearn.manifold import TSNE

    from seqgraph_lc_plm.models import shipped

    shutil.copy(HERE / "families.fasta", out / "families.fasta")
    model = "lc-plm-8m" if "lc-plm-8m" in shipped() else str(run)
    command("embed", model, str(out / "families.fasta"), str(out / "embeddings"), "--include", "mean")
    families, vectors = [], []
    for file in sorted((out / "embeddings").glob("*.pt")):
        record = torch.load(file, weights_only=True)
        families.append(record["label"].split()[1].replace("-", " "))
        (vector,) = record["mean_representations"].values()
        vectors.append(vector.numpy())
    matrix = np.stack(vectors)
    matrix = (matrix - matrix.mean(0)) / (matrix.std(0) + 1e-6)
    return protein_map(TSNE(perplexity=15, random_state=SEED, init="pca").fit_transform(matrix), families)


def recommend_films(run: Path, out: Path) -> list[dict]:
    """Recommend to three made-up users, who each have seen a few films."""
    titles = sg.load(run).assets["titles"]
    tastes = {
        "space": ["Star Wars", "Empire Strikes Back", "Alien", "Blade Runner"],
        "family": ["Toy Story", "Lion King", "Aladdin", "Babe"],
        "noir": ["Chinatown", "Vertigo", "Third Man", "Maltese Falcon"],
    }
    seen = {user: [_find(titles, film) for film in films] for user, films in tastes.items()}
    with (out / "users.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["user", "item"])
        table.writerows([user, item] for user, items in seen.items() for item in items)
    command("recommend", str(run), str(out / "users.csv"), "-k", "10", "-o", str(out / "recommended.json"))
    lists = json.loads((out / "recommended.json").read_text())
    return [
        {
            "user": row["user"],
            "seen": [titles[item] for item in seen[row["user"]]],
            "recommended": [item["title"] for item in row["items"]],
        }
        for row in lists
    ]


def _find(titles: dict[str, str], film: str) -> str:
    """The item of a film; MovieLens writes articles last: "Third Man, The"."""
    return next(item for item, title in titles.items() if title in (film, f"{film}, The"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    out: Path = parser.parse_args().output
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    for job in JOBS:
        shutil.rmtree(out / job.folder, ignore_errors=True)
    shutil.rmtree(out / "embeddings", ignore_errors=True)

    results = [trained(job, out / job.folder) for job in JOBS]
    proteins = embed_families(out / "lc-plm", out)
    films = recommend_films(out / "mamba4rec", out)
    facts = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, torch {torch.__version__}, seed {SEED}."
    write(out / "index.html", results, graph=draw_molecule(), proteins=proteins, films=films, facts=facts)

    print(f"\n{'':30}{'model':>10}{'trivial':>10}")
    for r in results:
        verdict = "" if r.wins else f"   NOT better than the {r.baseline_name}"
        print(f"{r.title:30}{r.model:10.3f}{r.baseline:10.3f}   {r.metric}, {r.better} is better{verdict}")
    print(f"\n{time.perf_counter() - started:.0f} s. Open {out / 'index.html'}")
    if not all(r.wins for r in results):
        print("The demo failed: a model does not beat its trivial baseline.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
