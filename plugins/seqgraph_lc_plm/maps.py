"""A map of embeddings: every protein a point in the plane, coloured by what is known of it."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqgraph.errors import ConfigError, DataError, PluginError

Method = Literal["auto", "umap", "tsne", "pca"]
_TITLES = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
# Okabe and Ito's colours, which the colour-blind tell apart, and four more.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#7A5195", "#8C6D31", "#4D4D4D", "#B5BD00"),
)
_GREY = "#C9CCD1"
_COMPONENTS = 50  # of PCA in front of t-SNE and UMAP


def choose(method: Method) -> Literal["umap", "tsne", "pca"]:
    """The method, or for "auto" the best that is installed: UMAP, t-SNE, PCA.

    Raises:
        PluginError: for one that is not installed.
    """
    needs = {"umap": ("umap", "umap-learn"), "tsne": ("sklearn", "scikit-learn")}
    if method == "auto":
        return next((m for m in ("umap", "tsne") if importlib.util.find_spec(needs[m][0])), "pca")  # type: ignore[return-value]
    if method in needs and importlib.util.find_spec(needs[method][0]) is None:
        raise PluginError(f"{_TITLES[method]} needs {needs[method][1]}", f"pip install {needs[method][1]}, or use pca")
    return method


def project(values: np.ndarray, method: Method = "auto", *, seed: int = 0) -> tuple[np.ndarray, str]:
    """Vectors (N, D) in the plane.

    Args:
        values: finite numbers.
        method: see :func:`choose`; fewer than 10 proteins always get PCA.
        seed: of UMAP and t-SNE.

    Returns:
        Places (N, 2) float64, and what the two axes are called together: "UMAP", "t-SNE" or "PCA".

    Raises:
        DataError: for fewer than 2 vectors, or numbers that are not finite.
    """
    if len(values) < 2:
        raise DataError(f"a map needs at least 2 proteins, here is {len(values)}", "embed more of them")
    if not np.isfinite(values).all():
        raise DataError("some embeddings are not finite", "embed once more; see which are NaN")
    chosen = choose(method)
    small = _pca(values.astype(np.float64), _COMPONENTS)
    if chosen == "pca" or len(values) < 10:
        return small[:, :2], "PCA"
    if chosen == "umap":
        import warnings

        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that a seed costs it its threads
            neighbours = min(15, len(values) - 1)
            found = UMAP(n_neighbors=neighbours, min_dist=0.1, random_state=seed).fit_transform(small)
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(values) - 1) / 3)
        found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(small)
    return np.asarray(found, np.float64), _TITLES[chosen]


def _pca(values: np.ndarray, components: int) -> np.ndarray:
    """The first principal components, (N, at most components but at least 2), each with its largest entry positive."""
    centred = values - values.mean(0)
    left, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    places = (left * sizes * np.where(signs == 0, 1, signs))[:, :components]
    return places if places.shape[1] > 1 else np.pad(places, ((0, 0), (0, 1)))


def read_column(table: Path, column: str, labels: Sequence[str], *, key: str | None = None) -> list[str | None]:
    """A column of a CSV or TSV file for each protein.

    Args:
        table: comma or tab separated, with a header.
        column: which one.
        labels: names of the proteins; a name is looked up whole, then by its first word, then by the accession of
            "sp|P12345|NAME".
        key: the column of names; the first by default.

    Returns:
        A cell for each label, None for a protein that the table does not have.

    Raises:
        DataError: for a file that cannot be read, a column it lacks, or names of which it has none.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            head = lines.readline()
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter="\t" if "\t" in head else ",")
            there = list(reader.fieldnames or [])
            for name in (column, key):
                if name is not None and name not in there:
                    raise DataError(f"{table}: no column {name!r}", f"there are: {', '.join(there) or 'none'}")
            name_of = key or there[0]
            cells = {row[name_of]: row[column] for row in reader}
    except (OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read: {error}", "give a CSV or TSV file") from None
    found = [next((cells[name] for name in _names(label) if name in cells), None) for label in labels]
    if not any(value is not None for value in found):
        raise DataError(
            f"{table}: column {name_of!r} names none of the {len(labels)} proteins, such as {labels[0]!r}",
            "name the column of names by --key",
        )
    return [value or None for value in found]


def _names(label: str) -> list[str]:
    words = label.split(maxsplit=1)
    first = words[0] if words else label
    return [label, first, *first.split("|")[1:2]]


def header_words(labels: Sequence[str], place: int) -> list[str | None]:
    """A word of each header, counted from 1; None where it has fewer."""
    return [words[place - 1] if len(words := label.split()) >= place else None for label in labels]


def draw(
    places: np.ndarray,
    method: str,
    output: Path,
    *,
    values: Sequence[str | None] | None = None,
    name: str = "",
    title: str = "",
) -> Path:
    """Draw the map.

    Args:
        places: (N, 2).
        method: what the axes are called.
        output: .png, .svg or .pdf.
        values: a text for each protein; if all are numbers and more than ten differ, a scale of colours, otherwise one
            colour each for the ten commonest and grey for the others.
        name: what the values are.
        title: above the picture.

    Raises:
        ConfigError: for another suffix.
        PluginError: without matplotlib.
    """
    figure = new_figure(output, (7.2, 5.2))
    axes = figure.add_subplot()
    size = float(np.clip(2600 / len(places), 4, 42))
    style: dict[str, Any] = {"s": size, "linewidths": 0.3 if size > 12 else 0, "edgecolors": "white"}
    numbers = _numbers(values) if values is not None else None
    if values is None:
        axes.scatter(*places.T, color=_COLOURS[0], alpha=0.8, **style)
    elif numbers is not None:
        missing = np.isnan(numbers)
        axes.scatter(*places[missing].T, color=_GREY, **style)
        order = np.argsort(numbers[~missing])
        shown = axes.scatter(*places[~missing][order].T, c=numbers[~missing][order], cmap="viridis", **style)
        figure.colorbar(shown, ax=axes, label=name, shrink=0.8).outline.set_visible(False)
    else:
        _draw_groups(axes, places, values, name, style)
    axes.set(xticks=[], yticks=[], xlabel=f"{method} 1", ylabel=f"{method} 2")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9AA0A6")
    return save_figure(figure, output)


def _draw_groups(axes: Any, places: np.ndarray, values: Sequence[str | None], name: str, style: dict[str, Any]) -> None:
    counts = Counter(value for value in values if value is not None)
    top = [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: len(_COLOURS)]]
    colour_of = dict(zip(top, _COLOURS))
    rest = np.array([value not in colour_of for value in values])
    if rest.any():
        others = len(counts) - len(top)
        parts = [f"{others} others"] * bool(others) + ["unknown"] * any(value is None for value in values)
        label = f"{' and '.join(parts)} ({rest.sum():,})"
        axes.scatter(*places[rest].T, color=_GREY, label=label, zorder=1, **style)
    # All groups in one call and in a random order, so that none lies over the others.
    chosen = np.flatnonzero(~rest)
    order = np.random.default_rng(0).permutation(chosen)
    axes.scatter(*places[order].T, color=[colour_of[str(values[i])] for i in order], alpha=0.85, zorder=2, **style)
    for value in top:
        axes.scatter([], [], color=colour_of[value], label=f"{_cut(value)} ({counts[value]:,})", s=34)
    handles, texts = axes.get_legend_handles_labels()
    if rest.any():  # to the end
        handles, texts = [*handles[1:], handles[0]], [*texts[1:], texts[0]]
    legend = axes.legend(
        handles, texts, title=_cut(name), frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    legend.set_alignment("left")
    for handle in legend.legend_handles:
        handle.set_sizes([34])


def _cut(text: str) -> str:
    return text if len(text) <= 28 else text[:27] + "…"


def _numbers(values: Sequence[str | None]) -> np.ndarray | None:
    """The values as numbers (N,), NaN where there is none; None when they are names or only a few numbers."""
    try:
        found = np.array([math.nan if value is None else float(value) for value in values])
    except ValueError:
        return None
    return found if len(np.unique(found[~np.isnan(found)])) > len(_COLOURS) else None


def as_csv(labels: Sequence[str], places: np.ndarray, values: Sequence[str | None] | None) -> str:
    """label, x, y, and value where there are any."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["label", "x", "y", *(["value"] if values is not None else [])])
    for i, (label, (x, y)) in enumerate(zip(labels, places, strict=True)):
        rows.writerow([label, f"{x:.5f}", f"{y:.5f}", *([values[i] or ""] if values is not None else [])])
    return text.getvalue()


def new_figure(output: Path, size: tuple[float, float]) -> Any:
    """An empty figure; raises where it could not be written in the end."""
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{output}: no picture is called so", "end the name in .png, .svg or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise PluginError("a picture needs matplotlib", 'pip install "seqgraph[report]"')
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Any, output: Path) -> Path:
    """Write a figure; the same figure gives the same bytes."""
    import matplotlib

    about: dict[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "seqgraph", "svg.fonttype": "none"}):
            figure.savefig(output, dpi=160, metadata=about[output.suffix.lower()])
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror or error}", "choose another place") from None
    return output
