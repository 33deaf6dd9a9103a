"""benchmarks/results/recommendation.md from the runs kept beside it and from what train_gpu.py brings back.

    python benchmarks/recommendation/report.py [OUT ...] [--notes ...] [--epochs ...] [--serving ...] [-o PAGE]

Beside the page stand its runs (NAME-runs.json) and comparisons (NAME-intervals.json): they are read first and written
again. Each OUT holds runs.json and ranks.npz; its runs are added, or take the place of those of the same name, so that
the last counts; --drop leaves out the runs whose names a pattern matches in all but the last. Each user's ranks are too
large to keep: a comparison is made, or made again, only when those of all its runs come in one call. One of runs that
are others now does not stay; where it cannot be made again, the page and stderr say so.

The page's fixed words are here; what was learnt from the numbers is written by a person in notes.md and put in front
of the tables. EPOCHS is what epoch_gpu.py wrote (NAME-epoch-*.json beside the page), SERVING what serving.py printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from report_runs import Rows, Runs, compared, read, rows_of, write
from report_tables import comparisons, speeds, tables, targets, trials

HERE = Path(__file__).parent

_RULES = """## How

Leave one out, every item ranked, ties against the model; the epoch is chosen on the validation events. *Masked* leaves
out what the user has seen; its figures and the unmasked ones answer different questions and share no table. *Strong*:
every position of packed histories, softmax, bf16, cosine schedule; epoch and trial chosen by NDCG@10 masked on
validation, and both protocols' figures from those weights. *As released*: every prefix an example, last position, the
release's initialisation, fp32 where not said, Adam at 1e-3, patience of 10 epochs on NDCG@10 unmasked. Both models had
the same number of trials, one seed each, and the same seconds a trial (MovieLens-1M 115, Beauty 50); what won was
trained anew with every seed (215, 75, and 60 on the other sets). Sports, Toys and Video Games were trained with what
won on Beauty. *Second session*: 31 trainings on one H200 which they shared with three trainings on graphs and, for
about 400 of 513 s, with GPU tests that took slices of its time; steps replayed as CUDA graphs (`task.capture`) but for
GRU4Rec (fp32), the cloze model and those as released. *Chosen unmasked*: epoch and trial by NDCG@10 with every film
ranked, 230 s (the released layers at every position 200); Mamba4Rec had three such trials, SASRec two. Sports: two
trials of each, 60 s. The first trials of GRU4Rec, LRURec, the cloze model (chosen unmasked) and the SSD mixer: two each
(MovieLens-1M 95 s, Beauty 45). `--list second` is longer: what there was no time for was cut or left out. *Third
session*: 12 trainings in 302 s, eight at a time on one H200 beside two trainings on proteins. *With a learned seen
term* (`model.seen=bias`): one weight on the scores of what the user has had, learnt with all else; MovieLens-1M 235 s,
steps replayed, Mamba4Rec as deep, SASRec with two layers, norms behind and dropout .2; Sports 82 s, what won on Beauty.
*Drawn negatives*: sampled softmax, 256 a prediction, dropout .3, 110 s. Toys' seed 2: 55 s, steps replayed. *Fourth
session*: seed 2 of Video Games, both models at once in 79 s on an H200, and beside them MovieLens-1M as released in
bf16, seed 0, alone on that GPU after its first 100 s, until its patience ended it. *Fifth session*: two H200s, three
times, a list a GPU: `wide` and `equal`, 10 at a time each; `table`, 12, of which 4 ran out of memory, and
`equal-finals`, 14, of which two did; `table-finals`, 9, and `released` with what of `equal-finals` had shared its GPU
with too many, 5 beside the three as released, stopped after 568 s and gone on with for 197. *Deep*: three layers with
norms behind and dropout .3 for both models, 150 s. *Wide, dropout on the item table*: what won among all trials on
Sports for each model, spelt out as `wide-chosen`; Sports 90 s, the others 75 s. *SSD mixer* on MovieLens-1M: as deep,
at 1.4e-3; on Beauty as strong. Mean ± standard deviation (n - 1) over as many seeds as the table says; a star marks a
training that the time limit cut. *s a training*: on the clock, beside the other trainings. Published rows: as printed
by their authors, from other harnesses.

```
python benchmarks/recommendation/train_gpu.py --list faithful tune --data DATA --out TUNING --limit 368 --jobs 10 --mps
python benchmarks/recommendation/train_gpu.py --list chosen --data DATA --out FINALS --limit 366 --jobs 11 --mps
python benchmarks/recommendation/train_gpu.py --run "NAME=WORDS" ... --data DATA --out SECOND --limit 540 --jobs 7 --mps
python benchmarks/recommendation/train_gpu.py --run "NAME=WORDS" ... --data DATA --out THIRD --limit 330 --mps
python benchmarks/recommendation/train_gpu.py --run "NAME=WORDS" ... --data DATA --out VIDEO --limit 130 --jobs 2 --mps
python benchmarks/recommendation/train_gpu.py --list wide --data DATA --out WIDE --limit 492 --jobs 10 --mps
python benchmarks/recommendation/train_gpu.py --list equal --data DATA --out EQUAL --limit 492 --jobs 10 --mps
python benchmarks/recommendation/train_gpu.py --list table --data DATA --work W0 --out TABLE --limit 340 --jobs 12 --mps
python benchmarks/recommendation/train_gpu.py --list equal-finals --data DATA --out EQ --limit 340 --jobs 14 --mps
python benchmarks/recommendation/train_gpu.py --list table-finals --data DATA --work W0 --out T --limit 568 \\
    --jobs 9 --mps
python benchmarks/recommendation/train_gpu.py --list released equal-finals --only "$AGAIN" --data DATA --out R \\
    --limit 568 --jobs 5 --mps   # AGAIN='(faithful|deep|final-ssd|beauty|ml-1m/gru4rec/final/1)'
seqgraph train ml-1m-faithful --data-root DATA data.file=ml-1m.txt.gz train.precision=bf16 seed=0 -o RELEASED
python benchmarks/recommendation/epoch_gpu.py --data DATA --seconds 16 --steps 6 --epochs 6 --out rec-epoch.json
python benchmarks/recommendation/serving.py --part step topk memory --device cuda --seconds 0.15
python benchmarks/recommendation/report.py [NEW ...]
```
DATA holds ml-1m.txt.gz and the Amazon files of S3-Rec, gzipped. `--list finals` picks the winners from the folder of
the trials by itself; `chosen` spells them out. Every run's name, words and figures: [as JSON](STEM-runs.json); the
exact NAME and WORDS of SECOND's, THIRD's and VIDEO's runs are there. RELEASED was judged afterwards, in fp32 as all
others are. Three runs as released that had been stopped after 5 epochs are left out; SECOND's stand there. THIRD had
the words of `third(330)` in `train_lists.py` (`--list third` gives more seconds), as many as began. `report.py` makes
this page of those runs and of [the comparisons](STEM-intervals.json), and adds what further folders hold. The runs' own
folders, with each user's rank, are not kept, so comparisons cannot be made again. Of the first four sessions' NDCG and
MRR five digits are left, of their intervals four: a mean's last digit here may be one off.
The presets `ml-1m`, `ml-1m-sasrec`, `beauty` and `beauty-sasrec` have the strong settings, `sports`, `toys`,
`video-games` and `video-games-sasrec` the wide ones, with about the epochs that were done in place of the clock:
`seqgraph train ml-1m --data-root DATA seed=0,1,2`. Wide on Beauty: `seqgraph train toys data.file=Beauty.txt.gz
--data-root DATA`. Without a GPU: `toys train.precision=32 train.epochs=45` took 56 minutes of one CPU core and has
.1004, .0630 masked (seed 0, best epoch 30; .1025, .0642 on the GPU).
"""


def page(
    runs: Runs,
    intervals: Rows,
    notes: str,
    stem: str,
    epochs: list[str],
    serving: str,
) -> Iterator[str]:
    """The whole page."""
    rows = list(runs.values())
    devices = ", ".join(sorted({row["device"] for row in rows}))
    versions = "; ".join(
        dict.fromkeys(", ".join(f"{name} {version}" for name, version in row["versions"].items()) for row in rows)
    )
    hours = sum(max(row["wall"], row["seconds"]) for row in rows) / 3600
    yield f"# Recommendation\n\n{devices}; {versions}. {len(rows)} trainings, {hours:.1f} hours of processes in all,"
    yield "most of them eight to twenty at a time on one GPU through NVIDIA's multi-process service.\n"
    yield notes.strip() + "\n" if notes else ""
    yield "## What was asked for"
    yield "\n".join(targets(runs)) + "\n"
    yield _RULES.replace("STEM", stem)
    yield "\n".join(tables(runs))
    yield "\n## Differences, same users\n"
    yield "Paired bootstrap over users, 10,000 draws, of each user's mean over seeds: the intervals hold the luck of"
    yield f"drawing users, not that of training, and are not corrected for there being {len(intervals)} of them."
    yield "\n".join(comparisons(runs, intervals))
    yield "\n## Trials\n\nNDCG@10 on the validation events, masked but where it says otherwise, one seed each."
    yield "\n".join(trials(runs))
    if epochs:
        yield "\n## An epoch of MovieLens-1M, alone on a GPU\n"
        yield "\n\n".join("\n".join(speeds(json.loads(one))) for one in epochs)
    if serving:  # the command's own lines: its machine first, then tables
        first, *lines = [line for line in serving[serving.rindex("torch 2") :].splitlines() if not line.startswith("#")]
        yield f"\n## The next event of a user, on a GPU\n\n{first.partition(', load')[0]}.\n"
        top = next((i for i, line in enumerate(lines) if line.startswith("| items")), len(lines))
        yield "\n".join(lines[:top]).strip() + "\n\nThe best ten of all items:\n"
        yield "\n".join(lines[top:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--notes", type=Path, default=HERE / "notes.md")
    parser.add_argument("--drop", default="", metavar="REGEX", help="names of runs not to take from what is older")
    parser.add_argument("--epochs", nargs="*", type=Path, help="one of each machine")
    parser.add_argument("--serving", type=Path, default=HERE / "results" / "serving-h100.md")
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "results" / "recommendation.md")
    options = parser.parse_args()
    if options.drop and not options.folders:
        parser.error("--drop leaves out what is older than a folder: name one")
    output, stem = options.output, options.output.stem
    kept, held = (output.with_name(f"{stem}-{what}.json") for what in ("runs", "intervals"))
    runs, ranks, changed = read(kept, options.folders, options.drop)
    intervals, missing = compared(runs, ranks, rows_of(held), changed)
    for name in sorted(changed):
        print(f"{name}: {'replaced' if name in runs else 'dropped'}", file=sys.stderr)
    for pair, names in missing.items():
        print(f"{pair}: not compared, no ranks of {', '.join(names)}", file=sys.stderr)
    if options.epochs is None:
        options.epochs = sorted(output.parent.glob(f"{stem}-epoch-*.json"))
    notes, serving, *epochs = (path.read_text() for path in (options.notes, options.serving, *options.epochs))
    text = "\n".join(page(runs, intervals, notes, stem, epochs, serving)) + "\n"
    write(kept, list(runs.values()))
    write(held, intervals)
    output.write_text(text)


if __name__ == "__main__":
    main()
