"""``seqgraph mutate``, ``saturation`` and ``perplexity``: what a model thinks of a protein's letters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from seqgraph_lc_plm.commands import Budget, Model, NoGpu, Nucleotides, Precision

if TYPE_CHECKING:
    from seqgraph_lc_plm.base import ProteinLM

Method = Annotated[
    Literal["masked-marginals", "wt-marginals"],
    typer.Option("--method", help="Mask each position in turn, or read the protein once as it is."),
]
Sequence = Annotated[str | None, typer.Option("--sequence", help="The protein, as letters.")]
Fasta = Annotated[Path | None, typer.Option("--fasta", help="The protein, as the only record of a file.")]
Offset = Annotated[int, typer.Option("--offset", help="Number of the protein's first residue.")]


def mutate(
    model: Model,
    variants: Annotated[Path, typer.Argument(metavar="CSV", help="Variants, as in ProteinGym: A24C, A24C:D30E.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="CSV file to write.")],
    sequence: Sequence = None,
    fasta: Fasta = None,
    method: Method = "masked-marginals",
    column: Annotated[str, typer.Option("--column", help="Where the variants are.")] = "mutant",
    score_column: Annotated[str, typer.Option("--score-column", help="What the new column is called.")] = "score",
    target: Annotated[str, typer.Option("--target", help="Measured values, for Spearman's rho.")] = "DMS_score",
    offset: Offset = 1,
    toks_per_batch: Budget = 16384,
    precision: Precision = "fp32",
    nogpu: NoGpu = False,
) -> None:
    """Score variants of a protein without training: log p(new) - log p(old), summed over a variant's substitutions.

    The protein comes from --sequence or --fasta, or from the column mutated_sequence of ProteinGym's files. The CSV is
    written with one more column; higher is better. Where measured values stand beside, Spearman's rho is printed.
    """
    from seqgraph.train.checkpoint import write_file
    from seqgraph_lc_plm import mutate as how

    table = how.Table.read(variants)
    table.refuse(score_column)
    protein = how.protein(sequence, fasta) or how.wild_type(table, column=column, offset=offset)
    found = how.variants(table, protein, column=column, offset=offset)
    places = len({one.place for variant in found for one in variant})
    with _scorer(model, "scoring", places, toks_per_batch, precision, nogpu) as (network, options):
        scores = how.score(network, protein, found, method=method, **options)
    write_file(output, table.text(score_column, scores))
    said = f"{len(scores)} variants, {places} positions: {output}"
    rho = how.spearman(table, target, scores)
    print(said if rho is None else f"{said}\nSpearman's rho with {target}: {rho:.3f}")


def saturation(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write: .png, .svg or .pdf.")],
    sequence: Sequence = None,
    fasta: Fasta = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the scores, as a CSV of variants.")] = None,
    method: Method = "masked-marginals",
    title: Annotated[str | None, typer.Option("--title", help="Above the picture.")] = None,
    offset: Offset = 1,
    toks_per_batch: Budget = 16384,
    precision: Precision = "fp32",
    nogpu: NoGpu = False,
) -> None:
    """Draw a heat map of all single substitutions of a protein: blue fits as well or better, red does not fit."""
    from seqgraph.errors import ConfigError
    from seqgraph.train.checkpoint import write_file
    from seqgraph_lc_plm import mutate as how
    from seqgraph_lc_plm.heatmap import LONGEST, draw_saturation
    from seqgraph_lc_plm.maps import new_figure

    new_figure(output, (1, 1))  # before the work: can it be written?
    protein = how.protein(sequence, fasta)
    if protein is None:
        raise ConfigError("no protein to draw", "give it by --sequence or --fasta")
    if len(protein) > LONGEST:
        raise ConfigError(
            f"{len(protein):,} residues are too many for one picture", f"at most {LONGEST:,}; or seqgraph mutate"
        )
    with _scorer(model, "scoring", len(protein), toks_per_batch, precision, nogpu) as (network, options):
        scores = how.saturation(network, protein, method=method, **options).numpy()
    name = title if title is not None else f"Single substitutions, {len(protein)} residues, {method}"
    draw_saturation(scores, protein, output, title=name, first=offset)
    if csv is not None:
        write_file(csv, how.saturation_csv(scores, protein, offset))
    print(f"{19 * len(protein)} variants: {output}" + (f", {csv}" if csv else ""))


def perplexity(
    model: Model,
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="Proteins: FASTA, plain or compressed.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="CSV file to write, instead of stdout.")] = None,
    method: Method = "masked-marginals",
    toks_per_batch: Budget = 16384,
    precision: Precision = "fp32",
    nogpu: NoGpu = False,
    on_invalid: Annotated[
        Literal["error", "skip"], typer.Option("--on-invalid", help="Letters that are no amino acids, empty records.")
    ] = "error",
    nucleotides: Nucleotides = False,
) -> None:
    """Pseudo-perplexity of each protein: how surprised the model is of its residues, each masked by itself.

    Costs the square of the length; --method wt-marginals reads each protein once and gives lower numbers.
    """
    import csv as csv_module
    import io

    from seqgraph.train.checkpoint import write_file
    from seqgraph_lc_plm.scoring import pseudo_perplexity
    from seqgraph_lc_plm.survey import Source, survey

    source = Source(path=fasta, on_invalid=on_invalid, on_duplicate="number", nucleotides=nucleotides)
    found = survey(source)
    text = io.StringIO()
    rows = csv_module.writer(text, lineterminator="\n")
    rows.writerow(["label", "residues", "pseudo_perplexity"])
    with _scorer(model, "scoring", found.residues, toks_per_batch, precision, nogpu) as (network, options):
        for record in source.named(found):
            value = pseudo_perplexity(network, record.sequence, method=method, **options)
            rows.writerow([record.label, len(record.sequence), f"{value:.4f}"])
    if output is None:
        print(text.getvalue(), end="")
    else:
        write_file(output, text.getvalue())
        print(f"{found.records} proteins: {output}")


@contextmanager
def _scorer(
    model: str, what: str, positions: int, max_tokens: int, precision: str, nogpu: bool
) -> Iterator[tuple[ProteinLM, dict[str, Any]]]:
    """The model, with the budget and the progress that the scoring functions take."""
    import torch

    from seqgraph_lc_plm.memory import halved
    from seqgraph_lc_plm.models import open_model
    from seqgraph_lc_plm.progress import ResidueProgress

    device = "cuda" if torch.cuda.is_available() and not nogpu else "cpu"
    network = open_model(model, device)
    context = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
    options: dict[str, Any] = {"max_tokens": max_tokens}
    with context, ResidueProgress(what, None, positions) as progress:

        def on_halved(tokens: int) -> None:
            options["max_tokens"] = tokens  # the next protein begins with what sufficed
            progress.note(halved(tokens))

        options |= {"progress": lambda count: progress(0, count), "on_halved": on_halved}
        yield network, options
