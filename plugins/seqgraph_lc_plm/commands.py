"""``seqgraph embed``: the options of fair-esm's esm-extract, for models of this plugin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_KINDS = ("mean", "per_tok", "bos", "contacts")
_NUMBERS = re.compile(r"-?\d+(,-?\d+)*\Z")


def embed(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run of `seqgraph train`, or a checkpoint folder.")],
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="Proteins: FASTA, plain or compressed.")],
    out: Annotated[str | None, typer.Argument(metavar="OUT", help="Folder to write into (or -o).")] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write into.")] = None,
    repr_layers: Annotated[
        list[str] | None,
        typer.Option(
            "--repr_layers", "--repr-layers", metavar="N ...", help="Layers: 0 to n, or from the end: 0 6, or 0,-1."
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="KIND ...", help="mean (the default), per_tok, bos: mean per_tok."),
    ] = None,
    toks_per_batch: Annotated[
        int, typer.Option("--toks_per_batch", "--toks-per-batch", min=1, help="Tokens in one forward pass.")
    ] = 16384,
    truncation_seq_length: Annotated[
        int,
        typer.Option(
            "--truncation_seq_length", "--truncation-seq-length", min=0, help="Keep so many residues; 0 keeps all."
        ),
    ] = 0,
    nogpu: Annotated[bool, typer.Option("--nogpu", help="Use the CPU even where there is a GPU.")] = False,
    format: Annotated[Literal["pt", "safetensors", "npy"], typer.Option(help="Of the files.")] = "pt",
    on_invalid: Annotated[
        Literal["error", "unk", "skip"],
        typer.Option("--on-invalid", "--on_invalid", help="Letters that are no amino acids, and empty records."),
    ] = "error",
    on_duplicate: Annotated[
        Literal["error", "number"], typer.Option(help="Names that occur twice: stop, or write name_2.")
    ] = "error",
    id: Annotated[
        Literal["full-header", "first-word"], typer.Option(help="What of a header is the protein's name.")
    ] = "full-header",
) -> None:
    """Embed the proteins of a FASTA file, one file each.

    With [bold]--format pt[/] each file holds the dictionary of esm-extract: label, and representations,
    mean_representations, bos_representations by layer. index.tsv lists name, length and label in the order of the
    input. Nothing is truncated unless asked for; lower case is read as upper case, a stop * at the end is dropped.
    """
    folder, layers, kinds = _words(output, out, more or [], repr_layers or [], include or [])
    import torch

    from seqgraph import load
    from seqgraph.cli.output import print_note
    from seqgraph.errors import CheckpointError
    from seqgraph_lc_plm.extract import Extraction
    from seqgraph_lc_plm.model import LcPlm

    job = Extraction(
        fasta=fasta,
        layers=layers or (-1,),
        include=kinds or ("mean",),  # type: ignore[arg-type]  # checked by the job
        max_tokens=toks_per_batch,
        truncate=truncation_seq_length,
        format=format,
        on_invalid=on_invalid,
        on_duplicate=on_duplicate,
        first_word=id == "first-word",
    )
    survey = job.survey
    if survey.nucleotides == survey.records:
        print_note("Warning", f"{fasta} looks like DNA or RNA; this model reads proteins")
    network = load(model, device="cuda" if torch.cuda.is_available() and not nogpu else "cpu")
    if not isinstance(network, LcPlm):
        raise CheckpointError(
            f"{model} holds a {type(network).__name__}, which embeds no proteins", "give an lc-plm run"
        )
    _run(job, network, folder, survey.records, survey.residues)


def _words(
    output: Path | None, out: str | None, more: list[str], layers: list[str], kinds: list[str]
) -> tuple[Path, tuple[int, ...], tuple[str, ...]]:
    """Sort the words that follow an option as esm-extract takes them: "--repr_layers 0 6 --include mean per_tok".

    Click reads them as positional. A number is a layer, one of mean, per_tok, bos is a kind, and nothing else is
    allowed.
    """
    from seqgraph.errors import ConfigError

    words = ([] if out is None else [out]) + more
    known = [word for word in words if word in _KINDS or _NUMBERS.match(word)]
    folders = [*([] if output is None else [str(output)]), *(word for word in words if word not in known)]
    if not folders:
        raise ConfigError("no folder to write into", "seqgraph embed MODEL FASTA OUT, or -o OUT")
    if len(folders) > 1:
        raise ConfigError(f"do not know what to do with {folders[1]!r}", "seqgraph embed MODEL FASTA OUT --help")
    numbers = [word for text in layers for word in re.split(r"[,\s]+", text.strip())]
    numbers += [number for word in known if _NUMBERS.match(word) for number in word.split(",")]
    if wrong := [word for word in numbers if not re.fullmatch(r"-?\d+", word)]:
        raise ConfigError(f"--repr_layers {wrong[0]!r} is not a number", "for example --repr_layers 0,-1")
    every = [word for text in kinds for word in re.split(r"[,\s]+", text.strip())]
    every += [word for word in known if word in _KINDS]
    return Path(folders[0]), tuple(dict.fromkeys(map(int, numbers))), tuple(dict.fromkeys(every))


def _run(job: Any, network: Any, folder: Path, records: int, residues: int) -> None:
    """Embed with a progress bar of residues, and say where the files are."""
    import time

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from seqgraph.cli.output import console

    columns = (
        TextColumn("embedding"),
        BarColumn(),
        TextColumn("{task.fields[proteins]}/" + str(records) + " proteins, {task.fields[rate]} residues/s"),
        TimeRemainingColumn(),
    )
    began, done = time.perf_counter(), 0
    out = console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=residues, proteins=0, rate="-")

        def advance(proteins: int, more: int) -> None:
            nonlocal done
            done += proteins
            elapsed = max(time.perf_counter() - began, 1e-9)
            rate = f"{(bar.tasks[0].completed + more) / elapsed:,.0f}"
            bar.update(task, advance=more, proteins=done, rate=rate)

        job.run(network, folder, advance)
    seconds = time.perf_counter() - began
    print(f"{records} proteins, {residues} residues in {seconds:.1f} s: {folder}")
