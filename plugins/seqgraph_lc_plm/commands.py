"""``seqgraph embed``: the options of fair-esm's esm-extract, for LC-PLM and ESM-2."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from seqgraph_lc_plm.base import ProteinLM
    from seqgraph_lc_plm.extract import Extraction
    from seqgraph_lc_plm.ranks import Ranks
    from seqgraph_lc_plm.survey import Survey

_KINDS = ("mean", "per_tok", "bos", "logits", "contacts")
_NUMBERS = re.compile(r"-?\d+(,-?\d+)*\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run, a checkpoint, a shipped model, or an ESM-2 (.pt file, or name)."),
]
Budget = Annotated[int, typer.Option("--toks_per_batch", "--toks-per-batch", min=1, help="Tokens in one forward pass.")]
NoGpu = Annotated[bool, typer.Option("--nogpu", help="Use the CPU even where there is a GPU.")]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option(help="Of matrix products.")]
Nucleotides = Annotated[bool, typer.Option("--nucleotides", help="Read a file that looks like DNA or RNA as proteins.")]


def embed(
    context: typer.Context,
    model: Model,
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
        typer.Option("--include", metavar="KIND ...", help="mean (the default), per_tok, bos, logits, contacts."),
    ] = None,
    toks_per_batch: Budget = 16384,
    truncation_seq_length: Annotated[
        int,
        typer.Option(
            "--truncation_seq_length", "--truncation-seq-length", min=0, help="Keep so many residues; 0 keeps all."
        ),
    ] = 0,
    nogpu: NoGpu = False,
    format: Annotated[Literal["pt", "safetensors", "h5", "npy"], typer.Option(help="Of the files.")] = "pt",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the files' numbers.")
    ] = "float32",
    precision: Precision = "fp32",
    layer_semantics: Annotated[
        Literal["residual", "upstream"],
        typer.Option(help="What layer i is: the residual stream, as in ESM, or what LC-PLM's released code calls so."),
    ] = "residual",
    shard_bytes: Annotated[
        str | None,
        typer.Option("--shard-bytes", metavar="SIZE", help="Many proteins a file, of about this size: 512M, 2G."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where one stopped.")] = False,
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
    nucleotides: Nucleotides = False,
    contacts_max: Annotated[
        int, typer.Option("--contacts-max", min=1, help="Residues of the longest protein for contacts.")
    ] = 512,
) -> None:
    """Embed the proteins of a FASTA file, with the arguments and files of fair-esm's esm-extract.

    With [bold]--format pt[/] each protein's file holds esm-extract's dictionary: label, and representations,
    mean_representations, bos_representations by layer. index.tsv lists name, length and label in the order of the
    input. Nothing is truncated unless asked for; lower case is read as upper case, a stop * at the end is dropped.

    Killed at any moment, it goes on with [bold]--resume[/]. Under [bold]torchrun[/] every process takes its share.
    """
    # "--nogp MODEL FASTA OUT" moves every word on. A file may be called so: Path has lost the "./" before it.
    words = [model, *([] if fasta.exists() else [str(fasta)]), *([] if out is None else [out]), *(more or [])]
    _refuse_options(words, [name for each in context.command.params for name in each.opts if name.startswith("-")])
    folder, layers, kinds = _words(output, out, more or [], repr_layers or [], include or [])
    from seqgraph_lc_plm.extract import Extraction
    from seqgraph_lc_plm.models import open_model
    from seqgraph_lc_plm.ranks import OtherRankError, Ranks

    job = Extraction(
        fasta=fasta,
        layers=layers or (-1,),
        include=kinds or ("mean",),  # type: ignore[arg-type]  # checked by the job
        max_tokens=toks_per_batch,
        truncate=truncation_seq_length,
        format=format,
        dtype=dtype,
        precision=precision,
        semantics=layer_semantics,
        shard_bytes=parse_size(shard_bytes or ("512M" if format == "h5" else "0")),
        on_invalid=on_invalid,
        on_duplicate=on_duplicate,
        first_word=id == "first-word",
        nucleotides=nucleotides,
        contacts_max=contacts_max,
    )
    with Ranks.joined() as ranks:
        try:
            found = ranks.first(lambda: job.survey)
            network = open_model(model, ranks.device(nogpu))
            _run(job, network, folder, found, ranks, resume=resume, overwrite=overwrite)
        except OtherRankError:
            raise typer.Exit(2) from None


# esm-extract's "--repr_layers 0 -1": a negative layer is a word, and _refuse_options refuses options that are none.
embed.context_settings = {"ignore_unknown_options": True}  # type: ignore[attr-defined]


def _refuse_options(words: list[str], options: list[str]) -> None:
    """Raise ConfigError, with the nearest of the options, for the first word that begins as one and is no number."""
    import difflib

    from seqgraph.errors import ConfigError

    strange = next((word for word in words if word.startswith("-") and not _NUMBERS.match(word)), None)
    if strange is None:
        return
    option = strange.partition("=")[0]
    near = difflib.get_close_matches(option, options, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"No such option: {option}", f"{hint}see: seqgraph embed --help")


def _words(
    output: Path | None, out: str | None, more: list[str], layers: list[str], kinds: list[str]
) -> tuple[Path, tuple[int, ...], tuple[str, ...]]:
    """Sort the words that follow an option as esm-extract takes them: "--repr_layers 0 6 --include mean per_tok".

    Click reads them as positional. A number is a layer, one of mean, per_tok, ... is a kind, and nothing else is
    allowed.
    """
    from seqgraph.errors import ConfigError

    words = ([] if out is None else [out]) + more
    known = [word for word in words if word in _KINDS or _NUMBERS.match(word)]
    folders = [*([] if output is None else [str(output)]), *(word for word in words if word not in known)]
    if not folders:
        raise ConfigError(
            "no folder to write into", "seqgraph embed MODEL FASTA OUT, or -o OUT for one that is called mean, say"
        )
    if len(folders) > 1:
        raise ConfigError(f"do not know what to do with {folders[1]!r}", "seqgraph embed MODEL FASTA OUT --help")
    numbers = [word for text in layers for word in re.split(r"[,\s]+", text.strip())]
    numbers += [number for word in known if _NUMBERS.match(word) for number in word.split(",")]
    if wrong := [word for word in numbers if not re.fullmatch(r"-?\d+", word)]:
        raise ConfigError(f"--repr_layers {wrong[0]!r} is not a number", "for example --repr_layers 0,-1")
    every = [word for text in kinds for word in re.split(r"[,\s]+", text.strip())]
    every += [word for word in known if word in _KINDS]
    return Path(folders[0]), tuple(dict.fromkeys(map(int, numbers))), tuple(dict.fromkeys(every))


def parse_size(text: str) -> int:
    """Bytes of "512M", "2G", "1.5GB" or "1000"; K is 1,024."""
    from seqgraph.errors import ConfigError

    match = _SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size", "for example 512M or 2G")
    number, unit = match.groups()
    return int(float(number) * 1024 ** " KMGT".index(unit.upper() or " "))


def _run(
    job: Extraction,
    network: ProteinLM,
    folder: Path,
    found: Survey,
    ranks: Ranks,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Embed with a report of residues, and say where the files are."""
    from seqgraph.cli.output import print_note
    from seqgraph_lc_plm.progress import ResidueProgress

    began = time.perf_counter()
    # What rank 0 has done of its share tells how far all are.
    what = "embedding" if ranks.world == 1 else f"embedding (rank 0 of {ranks.world}: its share)"
    mine = job.cut(network).sizes(found.lengths)[ranks.rank :: ranks.world]
    records, residues = (sum(sizes) for sizes in zip(*mine)) if mine else (0, 0)
    with ResidueProgress(what, records, residues, quiet=ranks.rank > 0) as progress:
        try:
            job.run(
                network,
                folder,
                surveyed=found,
                ranks=ranks,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
                note=progress.note,
            )
        except KeyboardInterrupt:
            if ranks.rank == 0:
                print_note("Note", "what is done is kept; the same command with --resume goes on")
            raise
    if ranks.rank == 0:
        seconds = time.perf_counter() - began
        print(f"{found.records} proteins, {found.residues} residues in {seconds:.1f} s: {folder}")
