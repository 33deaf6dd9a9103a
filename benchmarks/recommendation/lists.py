"""What train_gpu.py trains: NAME=PRESET KEY=VALUE ..., one a line, in the order in which they should begin.

The part of a name before its last slash is a group. ``@GROUP`` instead of a preset is the configuration of that group's
run with the best validation figure, once the whole group is there. Nothing is chosen by test events. ``share=PERCENT``
is no setting of a run: it gets a process of its own that may use so much of the GPU.

Every training in the strong setting gets the same time on the clock, for both models of a data set the same number of
trials over the same settings, and its schedule ends with its time. Sports, Toys and Video Games have no trials: they
are trained with what won on Beauty. "finals" picks what won from the folder of the trials; "chosen" says what that was,
as it ran on another machine: no trials needed. The presets have what was chosen since, so the trials say what they
began from.
"""

from __future__ import annotations

from itertools import chain

MODELS = ("mamba4rec", "sasrec")
SETS = {"beauty": "Beauty", "sports": "Sports_and_Outdoors", "toys": "Toys_and_Games", "video-games": "Video_Games"}
_FAST = "train.precision=bf16 train.patience=null train.epochs=5000"
# Large batches: beside other processes a step takes the host 20 ms, whatever is in it.
_ML = f"{_FAST} train.eval_every=3 train.max_tokens=25600 train.seconds=115"
_SHOP = (
    f"{_FAST} train.eval_every=4 train.max_tokens=4096 train.lr=1.4e-3 train.eval_tokens=262144 task.loss=softmax"
    " train.seconds=50"
)
_RATES = {"mamba4rec": "2.8e-3", "sasrec": "1.4e-3"}
_FINAL = {"ml-1m": "train.seconds=150"}
_OWN = {
    "mamba4rec": {"ml-1m": "ml-1m", "beauty": "beauty"},
    "sasrec": {"ml-1m": "ml-1m-sasrec", "beauty": "beauty-sasrec"},
}
# The same question for either model: what else can stand around the mixer.
_START = {"mamba4rec": "model.n_layers=2", "sasrec": "model.norm=pre"}
_ROUND = {"mamba4rec": "model.norm=pre", "sasrec": "model.norm=post"}
_BARE = {"mamba4rec": "model.residual=false", "sasrec": "model.norm=post"}


def _ml_first(model: str) -> list[str]:
    name, preset = (
        f"ml-1m/{model}/tune",
        f"{_OWN[model]['ml-1m']} {_ML} train.lr={_RATES[model]} {_START[model]} seed=0",
    )
    return [
        f"{name}/d128-p3={preset} model.dropout=0.3",
        f"{name}/d256-p4={preset} model.dropout=0.4 model.d_model=256",
        f"{name}/d128-p2={preset} model.dropout=0.2",
        f"{name}/d256-p5={preset} model.dropout=0.5 model.d_model=256",
    ]


def _ml_second(model: str) -> list[str]:
    name = f"ml-1m/{model}/tune"
    first, other = f"@{name} seed=0", next(m for m in MODELS if m != model)
    return [
        f"{name}-2/layers={first} model.n_layers=3",
        f"{name}-2/norm={first} {_ROUND[model]}",
        f"{name}-2/rate={first} train.lr={_RATES[other]}",
    ]


def _beauty_first(model: str) -> list[str]:
    start = f"{_SHOP} data.file=Beauty.txt.gz" + (" model.norm=pre" if model == "sasrec" else "")
    name, preset = f"beauty/{model}/tune", f"{_OWN[model]['beauty']} {start} seed=0"
    return [
        f"{name}/d64-p5={preset} model.dropout=0.5",
        f"{name}/d128-p6={preset} model.dropout=0.6 model.d_model=128",
        f"{name}/d64-p4={preset} model.dropout=0.4",
        f"{name}/d128-p7={preset} model.dropout=0.7 model.d_model=128",
        f"{name}/norm={preset} model.dropout=0.5 {_BARE[model]}",
    ]


def _beauty_second(model: str) -> list[str]:
    name = f"beauty/{model}/tune"
    first = f"@{name} seed=0"
    return [
        f"{name}-2/sampled={first} task.loss=sampled-softmax task.negatives=256",
        f"{name}-2/gbce={first} task.loss=gbce task.negatives=256",
        f"{name}-2/decay={first} train.weight_decay=0.5",
    ]


def _paired(make, *given) -> list[str]:  # type: ignore[no-untyped-def]
    """The trials of both models in turn, so that a lack of time meets both alike."""
    return list(chain.from_iterable(zip(*(make(*given, model) for model in MODELS), strict=True)))


def _final(which: str, seeds: tuple[int, ...]) -> list[str]:
    """Both models anew with what won on the set; on a shop without trials of its own, on Beauty."""
    tuned, more = which if which == "ml-1m" else "beauty", _FINAL.get(which, f"data.file={SETS.get(which)}.txt.gz")
    return [f"{which}/{m}/final/{s}=@{tuned}/{m}/tune* {more} seed={s}" for s in seeds for m in MODELS]


_WON = {
    "ml-1m": {
        "mamba4rec": "model.dropout=0.2 train.lr=2.8e-3 model.n_layers=3",
        "sasrec": "model.dropout=0.2 train.lr=1.4e-3 model.norm=post",
    },
    "beauty": {"mamba4rec": "model.dropout=0.4", "sasrec": "model.dropout=0.5 model.norm=post"},
}


def _chosen(which: str, seconds: int, seeds: tuple[int, ...]) -> list[list[str]]:
    """Both models with what won, a list a seed."""
    tuned = which if which == "ml-1m" else "beauty"
    shared = _ML if which == "ml-1m" else f"{_SHOP} data.file={SETS[which]}.txt.gz"
    words = " ".join(f"train.seconds={seconds}" if w.startswith("train.seconds=") else w for w in shared.split())
    return [
        [f"{which}/{m}/final/{s}={_OWN[m][tuned]} {words} {_WON[tuned][m]} seed={s}" for m in MODELS] for s in seeds
    ]


_OTHERS = [_chosen(which, 60, (0, 1)) for which in ("sports", "toys", "video-games")]
_ROWS = "train.eval_tokens=819200 share={share}"
_BEAUTY = "mamba4rec-faithful data.file=Beauty.txt.gz train.max_items=2048"
# RecBole's SASRec: two layers and heads, inner width 256, norms behind, dropout 0.5 everywhere.
_RECBOLE = (
    f"{_BEAUTY} model=sasrec model.d_model=64 model.n_layers=2 model.n_heads=2 model.d_ffn=256 model.dropout=0.5"
    " model.attention_dropout=0.5 model.norm=post model.max_length=50"
)

LISTS: dict[str, list[str]] = {
    # The long ones: as released, from the first minute of the first call to the last of the second.
    "faithful": [
        *(f"ml-1m/mamba4rec/faithful/{s}=ml-1m-faithful seed={s} {_ROWS.format(share=14)}" for s in (0, 1, 2)),
        f"ml-1m/mamba4rec/faithful-2/0=ml-1m-faithful model.n_layers=2 seed=0 {_ROWS.format(share=18)}",
    ],
    # What takes longest first, and what waits for it next.
    "tune": [
        *_paired(_ml_first),
        *_paired(_ml_second),
        *_paired(_beauty_first),
        *_paired(_beauty_second),
    ],
    "finals": [
        *_final("ml-1m", (0, 1, 2)),
        *(line for seed in (0, 1, 2) for which in SETS for line in _final(which, (seed,))),
    ],
    "chosen": [
        *chain.from_iterable(_chosen("ml-1m", 215, (0, 1, 2)) + _chosen("beauty", 75, (0, 1, 2))),
        *chain.from_iterable(chain.from_iterable(zip(*_OTHERS, strict=True))),
    ],
    "faithful-beauty": [
        *(f"beauty/mamba4rec/faithful/{s}={_BEAUTY} seed={s}" for s in (0, 1, 2)),
        *(f"beauty/sasrec/faithful/{s}={_RECBOLE} seed={s}" for s in (0, 1, 2)),
        f"beauty/mamba4rec/faithful-2/0={_BEAUTY} model.n_layers=2 seed=0",
    ],
    # One run each in the settings of the strong presets, if there is time: not tuned.
    "others": [
        f"ml-1m/gru4rec/untuned/0=ml-1m {_ML} model=gru4rec model.d_model=128 model.d_hidden=256"
        " model.dropout=0.3 seed=0",
        "ml-1m/mamba4rec/ssd/0=@ml-1m/mamba4rec/tune* model.mixer=ssd seed=0",
        f"beauty/gru4rec/untuned/0=beauty {_SHOP} data.file=Beauty.txt.gz"
        " model=gru4rec model.d_model=64 model.d_hidden=256 model.dropout=0.5 seed=0",
        "beauty/mamba4rec/ssd/0=@beauty/mamba4rec/tune* model.mixer=ssd seed=0",
    ],
    # Everything that is new on a GPU, a few steps each.
    "smoke": [
        f"smoke/{name}={preset} {more} train.seconds=null train.max_steps=12 train.warmup=0"
        for name, preset, more in (
            ("ml-mamba", "ml-1m", _ML),
            ("ml-sasrec", "ml-1m-sasrec", _ML),
            ("beauty-mamba", "beauty", f"{_SHOP} data.file=Beauty.txt.gz"),
            ("beauty-sasrec", "beauty-sasrec", f"{_SHOP} data.file=Beauty.txt.gz task.loss=gbce"),
            ("faithful", "ml-1m-faithful", "share=14"),
        )
    ],
}
