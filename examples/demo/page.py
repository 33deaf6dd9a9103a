"""The demo's page: pictures and tables of what was just trained, in one HTML file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

INK, ACCENT, QUIET = "#1f2933", "#2563eb", "#9aa5b1"


@dataclass(frozen=True)
class Result:
    """One trained model beside its trivial baseline."""

    title: str
    metric: str
    better: str  # "lower" or "higher"
    model: float
    baseline: float
    baseline_name: str
    parameters: int
    seconds: float
    curve: tuple[Sequence[float], Sequence[float]]  # epoch, validation metric

    @property
    def wins(self) -> bool:
        return self.model < self.baseline if self.better == "lower" else self.model > self.baseline


def _image(figure: plt.Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=140, bbox_inches="tight")
    plt.close(figure)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'


def curve(result: Result) -> str:
    """Validation metric by epoch, with the baseline as a line."""
    figure, axes = plt.subplots(figsize=(4.4, 2.7))
    axes.plot(*result.curve, color=ACCENT, marker=".", label="validation")
    axes.axhline(result.baseline, color=QUIET, linestyle="--", label=f"{result.baseline_name} (test)")
    axes.axhline(result.model, color=INK, linewidth=0.8, label="model (test)")
    axes.set(xlabel="epoch", ylabel=result.metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return _image(figure)


def graph_order(position: dict[int, np.ndarray], edges: np.ndarray, rank: np.ndarray, labels: Sequence[str]) -> str:
    """A molecule with its atoms numbered and coloured in token order; first dark, last bright."""
    figure, (axes, strip) = plt.subplots(
        2, 1, figsize=(7.2, 5.4), gridspec_kw={"height_ratios": [8, 1], "hspace": 0.06}
    )
    xy = np.array([position[i] for i in range(len(rank))])
    for a, b in edges.T:
        axes.plot(*xy[[a, b]].T, color=QUIET, linewidth=1.2, zorder=1)
    axes.scatter(*xy.T, c=rank, cmap="viridis", s=230, zorder=2)
    bright = np.median(rank)
    for i, (x, y) in enumerate(xy):
        colour = "black" if rank[i] > bright * 1.4 else "white"
        axes.annotate(f"{labels[i]}{rank[i]}", (x, y), ha="center", va="center", fontsize=7, color=colour, zorder=3)
    axes.set_aspect("equal")
    axes.axis("off")
    strip.imshow(np.arange(len(rank))[None], aspect="auto", cmap="viridis")
    strip.set_yticks([])
    strip.set_xticks(range(len(rank)), [labels[i] for i in np.argsort(rank)], fontsize=7)
    strip.set_xlabel("the token stream, as the state-space model reads it")
    return _image(figure)


def protein_map(points: np.ndarray, families: Sequence[str]) -> str:
    """Embeddings in two dimensions, coloured by family."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    colours = plt.get_cmap("tab10")
    for i, family in enumerate(sorted(set(families))):
        chosen = np.array([f == family for f in families])
        axes.scatter(*points[chosen].T, s=22, color=colours(i), label=family)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _image(figure)


def write(path: Path, results: Sequence[Result], *, graph: str, proteins: str, films: list[dict], facts: str) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        results: one a domain.
        graph: what :func:`graph_order` drew.
        proteins: what :func:`protein_map` drew.
        films: {"user", "seen": titles, "recommended": titles} each.
        facts: one line on hardware and versions.
    """
    rows = "".join(
        f"<tr><td>{html.escape(r.title)}</td><td>{html.escape(r.metric)} ({r.better} is better)</td>"
        f"<td><b>{r.model:.3f}</b></td><td>{r.baseline:.3f} ({html.escape(r.baseline_name)})</td>"
        f"<td>{r.parameters:,}</td><td>{r.seconds:.0f} s</td></tr>"
        for r in results
    )
    curves = "".join(f"<figure>{curve(r)}<figcaption>{html.escape(r.title)}</figcaption></figure>" for r in results)
    users = "".join(
        f"<article><h3>User {html.escape(str(f['user']))}</h3><p class=q>last seen: "
        + html.escape("; ".join(f["seen"]))
        + "</p><ol>"
        + "".join(f"<li>{html.escape(t)}</li>" for t in f["recommended"])
        + "</ol></article>"
        for f in films
    )
    path.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>seqgraph demo</title>
<meta name="viewport" content="width=device-width">
<style>
body{{font:16px/1.5 system-ui,sans-serif;color:{INK};max-width:1080px;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #e4e7eb}}
.row{{display:flex;flex-wrap:wrap;gap:1rem}}figure{{margin:0;flex:1 1 300px}}img{{max-width:100%}}
article{{flex:1 1 280px}}.q{{color:#616e7c;font-size:.9rem}}figcaption{{color:#616e7c}}h2{{margin-top:2.2rem}}
</style>
<h1>seqgraph demo</h1>
<p>Three domains as ordered token streams through one bidirectional selective state-space encoder,
trained just now on this machine. <span class=q>{html.escape(facts)}</span></p>
<table><tr><th>model and data</th><th>test metric</th><th>model</th><th>trivial baseline</th><th>parameters</th>
<th>training</th></tr>{rows}</table>
<h2>Curves</h2><div class=row>{curves}</div>
<h2>A molecule in its token order</h2>
<p>Atoms sorted by degree, ties at random: rings' branching points come last, where they have seen the rest.</p>{graph}
<h2>Protein embeddings</h2>
<p>Means over residues for eight families that the model was not told of, by t-SNE. A model of this size tells them
apart mostly by their composition.</p>{proteins}
<h2>Recommended films</h2><div class=row>{users}</div></html>
""",
        encoding="utf-8",
    )
