"""The picture of a protein's single substitutions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from seqgraph_lc_plm.maps import new_figure, save_figure
from seqgraph_lc_plm.mutate import AMINO_ACIDS

# Rows by what the residues are like: hydrophobic, aromatic, polar, positive, negative, and the three odd ones.
ORDER = "AVILMFWYSTNQHKRDECGP"
_GROUPS = (5, 8, 12, 15, 17)  # rows after which another kind begins
_ROW = 80  # residues in a line of the picture
LONGEST = 4000  # residues of a picture that can still be opened


def draw_saturation(scores: np.ndarray, sequence: str, output: Path, *, title: str = "", first: int = 1) -> Path:
    """Draw the scores of all single substitutions.

    Args:
        scores: (20, L), rows as :data:`AMINO_ACIDS`, 0 at the protein's own letters.
        sequence: L residues.
        output: .png, .svg or .pdf.
        title: above the picture.
        first: number of the first residue.

    Raises:
        ConfigError: for another suffix.
        PluginError: without matplotlib.
    """
    length = len(sequence)
    lines = math.ceil(length / _ROW)
    width = min(length, _ROW)
    figure = new_figure(output, (1.6 + 0.135 * max(width, 30), 0.9 + 2.75 * lines))
    scores = scores[[AMINO_ACIDS.index(letter) for letter in ORDER]]
    # Few scores are above 0; a symmetric scale keeps white for "as good as the letter that is there".
    bound = float(np.quantile(np.abs(scores), 0.98)) or 1.0
    parts = figure.subplots(lines, 1, squeeze=False)[:, 0]
    shown = None
    for line, axes in enumerate(parts):
        start = line * _ROW
        part = scores[:, start : start + _ROW]
        own = sequence[start : start + _ROW]
        padded = np.full((20, width), np.nan)
        padded[:, : part.shape[1]] = part
        shown = axes.imshow(padded, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
        places = [(i, ORDER.index(letter)) for i, letter in enumerate(own) if letter in ORDER]
        axes.scatter(*np.array(places).T.reshape(2, -1), s=5, color="#222222", linewidths=0)
        for row in _GROUPS:
            axes.axhline(row - 0.5, color="#666666", lw=0.5, xmax=part.shape[1] / width)
        axes.set_yticks(range(20), list(ORDER), fontsize=6.5)
        ticks = [i for i in range(len(own)) if (start + i + first) % 10 == 0]
        axes.set_xticks(ticks, [str(start + i + first) for i in ticks], fontsize=7)
        axes.set_xticks(range(len(own)), minor=True)
        top = axes.secondary_xaxis("top")
        top.set_xticks(range(len(own)), list(own), fontsize=6.5)
        top.tick_params(length=0, pad=1)
        axes.tick_params(which="both", length=2, color="#888888")
        for spine in [*axes.spines.values(), *top.spines.values()]:
            spine.set_visible(False)
    bar = figure.colorbar(shown, ax=list(parts), shrink=min(1.0, 0.9 / lines + 0.1), pad=0.01, aspect=18, extend="both")
    bar.set_label("log p(new) − log p(own)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return save_figure(figure, output)
