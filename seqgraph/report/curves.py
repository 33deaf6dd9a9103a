"""Learning curves as SVG texts."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from seqgraph.report.collect import Run

_COLOURS = ("#2c6e9b", "#c8553d", "#4f8a4b", "#8a5a9e", "#b58a1f", "#4d4d4d", "#3aa6a0", "#d17a9b")


def curve(runs: Sequence[Run], quantities: Sequence[str], title: str) -> str | None:
    """A quantity of the logs over the epochs: one colour a run, the mean over its seeds, a band from min to max.

    Args:
        runs: with the logs.
        quantities: columns of the log; the first is drawn solid, the second dashed.
        title: above the axes.

    Returns:
        An ``<svg>`` element, or None when no run logged any of them.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    drawn = False
    for run, colour in zip(runs, _cycle(len(runs))):
        for quantity, style in zip(quantities, ("-", "--")):
            points = _points(run, quantity)
            if not points:
                continue
            drawn = True
            epochs = sorted(points)
            marker = "o" if len(epochs) == 1 else None
            label = f"{run.name} {quantity.partition('_')[0]}"
            mean = [sum(points[e]) / len(points[e]) for e in epochs]
            axes.plot(epochs, mean, style, color=colour, lw=1.6, marker=marker, label=label)
            if any(len(points[e]) > 1 for e in epochs):
                low, high = [min(points[e]) for e in epochs], [max(points[e]) for e in epochs]
                axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
    if not drawn:
        return None
    axes.set(title=title, xlabel="epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, title)


def _points(run: Run, quantity: str) -> dict[int, list[float]]:
    points: dict[int, list[float]] = {}
    for rows in run.logs:
        for row in rows:
            value = row.get(quantity)
            if value is not None and math.isfinite(value):
                points.setdefault(row["epoch"], []).append(value)
    return points


def _cycle(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]


def _svg(figure: Figure, salt: str) -> str:
    text = io.StringIO()
    # Without the date and with fixed ids the same runs give the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
