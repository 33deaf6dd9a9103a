"""What train_gpu.py trains: NAME=PRESET KEY=VALUE ..., one a line, in the order in which they should begin.

The part of a name before its last slash is a group. ``@GROUP`` instead of a preset is the configuration of that group's
run with the best validation figure, once the whole group is there. Nothing is chosen by test events. ``share=PERCENT``
is no setting of a run: it gets a process of its own that may use so much of the GPU; nor is ``after=NAME``: it begins
when that run has come to its end.

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
SHOP = (
    f"{_FAST} train.eval_every=4 train.max_tokens=4096 train.lr=1.4e-3 train.eval_tokens=262144 task.loss=softmax"
    " train.seconds=50"
)
RATES = {"mamba4rec": "2.8e-3", "sasrec": "1.4e-3"}
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
        f"{_OWN[model]['ml-1m']} {_ML} train.lr={RATES[model]} {_START[model]} seed=0",
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
        f"{name}-2/rate={first} train.lr={RATES[other]}",
    ]


def _beauty_first(model: str) -> list[str]:
    start = f"{SHOP} data.file=Beauty.txt.gz" + (" model.norm=pre" if model == "sasrec" else "")
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
    shared = _ML if which == "ml-1m" else f"{SHOP} data.file={SETS[which]}.txt.gz"
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

# ---------------------------------------------------------------------------------------------- with replayed steps
# A step is one launch, so that batches may be small and epochs many. Same rules: equal seconds, trials in pairs.
REPLAY = "task.capture=true"
EQUAL = f"{_FAST} train.eval_every=4"
THREE = "model.n_layers=3 model.norm=post"


def both(data: str, group: str, words: dict[str, str], own: dict[str, str], shared: str, seed: int = 0) -> list[str]:
    """A trial of each model by turns, of every name in ``words``."""
    return [
        f"{data}/{model}/{group}/{name}={_OWN[model]['ml-1m' if data == 'ml-1m' else 'beauty']} {shared} {own[model]} "
        f"{more} seed={seed}"
        for name, more in words.items()
        for model in MODELS
    ]


def _unmasked(seconds: int) -> list[str]:
    """Epoch and trial by the ranking of every film: deep, wide, or with the released layers but every position."""
    shared = f"{EQUAL} {REPLAY} task.select_by=all"
    half = {"mamba4rec": "1.4e-3", "sasrec": "7e-4"}
    words = {
        "deep": f"{THREE} model.dropout=0.3 train.max_tokens=25600 train.seconds={seconds}",
        "wide": f"{THREE} model.d_model=256 model.dropout=0.5 train.max_tokens=12800 train.seconds={seconds}",
        "released": f"model.d_model=64 model.dropout=0.2 train.max_tokens=6400 train.seconds={seconds * 5 // 8}",
    }
    own = {
        "mamba4rec": {"released": "model.n_layers=1 model.residual=null model.init=mamba4rec train.lr=1e-3"},
        "sasrec": {"released": "model.n_layers=2 model.norm=post train.lr=1e-3"},
    }
    return [
        line
        for name, more in words.items()
        for line in both(
            "ml-1m", "all", {name: more},
            {m: own[m].get(name, f"train.lr={(half if name == 'wide' else RATES)[m]}") for m in MODELS}, shared
        )
    ]  # fmt: skip


def deep(seconds: int, seeds: tuple[int, ...]) -> list[str]:
    """Three layers with norms behind, for both."""
    shared = f"{EQUAL} {REPLAY} train.max_tokens=25600 train.seconds={seconds} {THREE} model.dropout=0.3"
    own = {m: f"train.lr={RATES[m]}" for m in MODELS}
    return [line for seed in seeds for line in both("ml-1m", "deep", {str(seed): ""}, own, shared, seed)]


def _sports(seconds: int) -> list[str]:
    shared = f"{SHOP} data.file={SETS['sports']}.txt.gz"
    shared = " ".join(f"train.seconds={seconds}" if w.startswith("train.seconds=") else w for w in shared.split())
    replay, own = REPLAY, {"mamba4rec": "model.norm=post", "sasrec": "model.norm=post"}
    words = {
        "beauty": f"{replay} model.dropout=0.5",
        "d128": f"{replay} model.d_model=128 model.dropout=0.6",
        "d256": f"{replay} model.d_model=256 model.dropout=0.7",
        "decay": f"{replay} model.d_model=128 model.dropout=0.5 train.weight_decay=0.1",
        "short": f"{replay} model.d_model=128 model.dropout=0.6 data.max_history=20",
        # gSASRec's: after 650 steps on Beauty it was nowhere; here it has some thousands, and less dropout.
        "gbce": "task.loss=gbce task.negatives=256 model.dropout=0.3 train.lr=2e-3 train.clip=null",
    }
    return both("sports", "tune", words, own, shared)


_BASELINES = {
    "gru4rec": "model=gru4rec model.d_model={d} model.d_hidden={h} train.precision=32",
    "lrurec": f"model=lrurec model.d_model={{d}} model.n_layers=2 {REPLAY}",
    "bimamba4rec": "model=bimamba4rec model.d_model={d} model.n_layers=2 model.d_state=32 task=cloze",
    "mamba4rec": f"model.mixer=ssd {REPLAY}",
}


def _baselines(data: str, seconds: int) -> list[str]:
    """Two settings of each, in the same seconds."""
    ml = data == "ml-1m"
    start = f"ml-1m {EQUAL} train.max_tokens=25600" if ml else f"beauty {SHOP} data.file=Beauty.txt.gz"
    sizes = {"d": 128, "h": 256} if ml else {"d": 64, "h": 256}
    settings = {"a": "model.dropout=0.2 train.lr=2.8e-3", "b": "model.dropout=0.3 train.lr=1.4e-3"}
    if not ml:
        settings = {"a": "model.dropout=0.4 train.lr=1.4e-3", "b": "model.dropout=0.5 train.lr=2.8e-3"}
    return [
        f"{data}/{model}/{'ssd' if model == 'mamba4rec' else 'tune'}/{name}={start} {words.format(**sizes)} {more}"
        f" train.seconds={seconds} seed=0"
        for name, more in settings.items()
        for model, words in _BASELINES.items()
    ]


def _sports_finals(seconds: int, seeds: tuple[int, ...]) -> list[str]:
    return [f"sports/{m}/final/{s}=@sports/{m}/tune* train.seconds={seconds} seed={s}" for s in seeds for m in MODELS]


# ---------------------------------------------------------------------------------------------- third session
_SEEN = "model.seen=bias"
# Of each model what its own validation figures preferred among two layers, three, and dropout .2 and .3.
_PREFERRED = {
    "mamba4rec": f"train.lr={RATES['mamba4rec']} {THREE} model.dropout=0.3",
    "sasrec": f"train.lr={RATES['sasrec']} model.norm=post model.dropout=0.2",
}


def _told(seconds: int, seeds: tuple[int, ...]) -> list[str]:
    """Both models as they were chosen before, with a learned term for what a user has had."""
    shared = f"{EQUAL} {REPLAY} train.max_tokens=25600 train.seconds={seconds} {_SEEN}"
    return [line for seed in seeds for line in both("ml-1m", "seen", {str(seed): ""}, _PREFERRED, shared, seed)]


def _sports_more(group: str, seconds: int, seed: int) -> list[str]:
    """ "own": drawn negatives and less dropout, as SASRec+SS. "seen": what won on Beauty, with the learned term."""
    shared = f"{SHOP} data.file={SETS['sports']}.txt.gz"
    shared = " ".join(f"train.seconds={seconds}" if w.startswith("train.seconds=") else w for w in shared.split())
    if group == "seen":
        return both("sports", group, {str(seed): f"{REPLAY} {_SEEN}"}, _WON["beauty"], shared, seed)
    drawn = "task.loss=sampled-softmax task.negatives=256 model.dropout=0.3 train.max_tokens=8192"
    return both("sports", group, {str(seed): drawn}, {"mamba4rec": "", "sasrec": "model.norm=post"}, shared, seed)


def third(limit: int = 360) -> list[str]:
    """Twelve processes on one GPU for so many seconds: MovieLens the whole time, the shops beside it."""
    shops = [line for which in ("toys", "video-games") for lines in _chosen(which, limit // 6, (2,)) for line in lines]
    return [
        *_told(limit - 95, (0, 1, 2)),
        *_sports_more("own", limit // 3, 0),
        *_sports_more("seen", limit // 4, 0),
        *(f"{line} {REPLAY}" for line in shops),
        *_sports_more("own", limit // 3, 1),
        *_sports_more("seen", limit // 4, 1),
        *_sports_more("seen", limit // 4, 2),
    ]


LISTS: dict[str, list[str]] = {
    # The second session's, in this order on one GPU beside other work: 8 processes and the first line's own. It ran
    # shortened, with fewer seconds, trials and seeds: benchmarks/results/recommendation-runs.json has what ran.
    "second": [
        "ml-1m/mamba4rec/faithful/0=ml-1m-faithful data.file=ml-1m.txt.gz seed=0 share=100",
        *(
            f"ml-1m/mamba4rec/faithful/{s}=ml-1m-faithful data.file=ml-1m.txt.gz seed={s} share=100"
            f" after=ml-1m/mamba4rec/faithful/{s - 1}"
            for s in (1, 2)
        ),
        *_unmasked(480),
        *_baselines("ml-1m", 150),
        *_sports(90),
        f"beauty/mamba4rec/faithful/0={_BEAUTY} seed=0",
        f"beauty/mamba4rec/faithful/1={_BEAUTY} seed=1",
        *deep(220, (0, 1)),
        *_baselines("beauty", 60),
        *_sports_finals(110, (0, 1, 2)),
        f"beauty/mamba4rec/faithful/2={_BEAUTY} seed=2",
        *chain.from_iterable(chain.from_iterable(_chosen(which, 60, (2,)) for which in ("toys", "video-games"))),
    ],
    # The third session's: as released the whole time on a share of one GPU; all else later, on another.
    "third-faithful": ["ml-1m/mamba4rec/faithful/0=ml-1m-faithful data.file=ml-1m.txt.gz seed=0 share=35"],
    "third": third(),
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
        f"beauty/gru4rec/untuned/0=beauty {SHOP} data.file=Beauty.txt.gz"
        " model=gru4rec model.d_model=64 model.d_hidden=256 model.dropout=0.5 seed=0",
        "beauty/mamba4rec/ssd/0=@beauty/mamba4rec/tune* model.mixer=ssd seed=0",
    ],
    # Everything that is new on a GPU, a few steps each.
    "smoke": [
        f"smoke/{name}={preset} {more} train.seconds=null train.max_steps=12 train.warmup=0"
        for name, preset, more in (
            ("ml-mamba", "ml-1m", _ML),
            ("ml-sasrec", "ml-1m-sasrec", _ML),
            ("beauty-mamba", "beauty", f"{SHOP} data.file=Beauty.txt.gz"),
            ("beauty-sasrec", "beauty-sasrec", f"{SHOP} data.file=Beauty.txt.gz task.loss=gbce"),
            ("faithful", "ml-1m-faithful", "share=14"),
        )
    ],
}
