"""The fifth session's trainings: wide models on Sports, the other models with equal budgets, and what came of both."""

from __future__ import annotations

from itertools import chain

from train_lists import EQUAL, MODELS, RATES, REPLAY, SETS, SHOP, THREE, both, deep

# eSASRec's settings for these sets have width 256, which its table of them does not say: 256 drawn negatives, dropout
# .2, batches of 128 users (a thousand tokens here), a constant 1e-3. From there, for both models alike.
_DRAWN = "task.loss=sampled-softmax task.negatives=256"
_WIDE = {
    "esasrec": f"{_DRAWN} model.dropout=0.2 train.schedule=constant",
    "p2": f"{_DRAWN} model.dropout=0.2",
    "p3": f"{_DRAWN} model.dropout=0.3",
    "p5": f"{_DRAWN} model.dropout=0.5",
    "d128": f"{_DRAWN} model.dropout=0.2 model.d_model=128",
    "large": f"{_DRAWN} model.dropout=0.3 train.max_tokens=4096 train.lr=2e-3",
    "ema": f"{_DRAWN} model.dropout=0.3 train.ema=0.999",
    "gbce-p2": "task.loss=gbce task.negatives=256 model.dropout=0.2",
    "gbce-p5": "task.loss=gbce task.negatives=256 model.dropout=0.5",
    "all-p5": "task.loss=softmax model.dropout=0.5",
}
# Around the best of those: depth, where the norms stand, history, decay, and what the mixer alone has.
_AROUND = {
    "layers": "model.n_layers=2",
    "pre": "model.norm=pre",
    "history": "data.max_history=100",
    "decay": "train.weight_decay=0.1",
}
_MIXER = {
    "mamba4rec": {"state-16": "model.d_state=16", "state-64": "model.d_state=64"},
    "sasrec": {"heads-2": "model.n_heads=2", "heads-4": "model.n_heads=4"},
}


def wide(data: str, seconds: int) -> list[str]:
    """Trials at width 256 of both models on a shop's set, and around the best of them."""
    shared = (
        f"{EQUAL} {REPLAY} data.file={SETS[data]}.txt.gz train.eval_tokens=262144 train.max_tokens=1024 train.lr=1e-3"
        f" model.d_model=256 train.seconds={seconds}"
    )
    own = {"mamba4rec": "", "sasrec": "model.norm=post model.max_length=100"}
    first = both(data, "wide", _WIDE, own, shared)
    around = {m: f"@{data}/{m}/wide" for m in MODELS}
    more = [f"{data}/{m}/wide-2/{name}={around[m]} {words}" for name, words in _AROUND.items() for m in MODELS]
    return first + more + [f"{data}/{m}/wide-2/{name}={around[m]} {w}" for m in MODELS for name, w in _MIXER[m].items()]


_JUDGED = "task.select_by=unseen task.k=[10,1,5,20]"
_KINDS = {
    "gru4rec": "model=gru4rec train.precision=32",
    "lrurec": f"model=lrurec {REPLAY}",
    "bimamba4rec": f"model=bimamba4rec task=cloze {_JUDGED}",
}
_SIZES = {
    "gru4rec": {64: "model.d_model=64 model.d_hidden=256", 128: "model.d_model=128 model.d_hidden=256",
                256: "model.d_model=256 model.d_hidden=512"},
    "lrurec": {d: f"model.d_model={d}" for d in (64, 128, 256)},
    "bimamba4rec": {d: f"model.d_model={d} model.n_layers=2" for d in (64, 128, 256)},
}  # fmt: skip
# What each has that the others have not, in place of where Mamba4Rec's and SASRec's norms stand.
_OWN_TRIAL = {
    "gru4rec": "model.n_layers=2",
    "lrurec": "model.n_layers=3",
    "bimamba4rec": "task.hidden=0.4",
}


def equal(data: str, model: str) -> list[str]:
    """As many trials of another model, of as many seconds, as Mamba4Rec and SASRec had on the set ("tune")."""
    size, kind = _SIZES[model], _KINDS[model]
    if data == "ml-1m":
        start = f"ml-1m {EQUAL} train.max_tokens=25600 train.seconds=115 {kind} train.lr=2.8e-3"
        first = {"d128-p3": (128, 0.3), "d256-p4": (256, 0.4), "d128-p2": (128, 0.2), "d256-p5": (256, 0.5)}
        second = {"own": _OWN_TRIAL[model], "less": "model.dropout=0.1", "rate": "train.lr=1.4e-3"}
    else:
        start = f"beauty {SHOP} data.file=Beauty.txt.gz {kind}"
        first = {"d64-p5": (64, 0.5), "d128-p6": (128, 0.6), "d64-p4": (64, 0.4), "d128-p7": (128, 0.7),
                 "d128-p3": (128, 0.3)}  # fmt: skip
        second = {"own": _OWN_TRIAL[model], "decay": "train.weight_decay=0.5", "rate": "train.lr=2.8e-3"}
    name = f"{data}/{model}/equal"
    return [
        *(f"{name}/{trial}={start} {size[d]} model.dropout={p} seed=0" for trial, (d, p) in first.items()),
        *(f"{name}-2/{trial}=@{name} {words}" for trial, words in second.items()),
    ]


def losses(seconds: int) -> list[str]:
    """MovieLens-1M over drawn items: its best setting on validation with the two other losses."""
    shared = f"{EQUAL} {REPLAY} train.max_tokens=25600 train.seconds={seconds} {THREE} model.dropout=0.3"
    words = {"gbce": "task.loss=gbce task.negatives=256", "sampled": _DRAWN}
    return both("ml-1m", "loss", words, {m: f"train.lr={RATES[m]}" for m in MODELS}, shared)


# All of "wide" were best in their first tens of thousands of steps. eSASRec has dropout on the table of items too, the
# vectors that the scores are tied to among them (RecTools' item_net.py): the second trials.
_TABLE = {
    "ss-p2-i2": f"{_DRAWN} model.dropout=0.2 model.item_dropout=0.2",
    "ss-p2-i4": f"{_DRAWN} model.dropout=0.2 model.item_dropout=0.4",
    "ss-p4-i4": f"{_DRAWN} model.dropout=0.4 model.item_dropout=0.4",
    "ss-p5-i2": f"{_DRAWN} model.dropout=0.5 model.item_dropout=0.2",
    "ss-d128-p2-i2": f"{_DRAWN} model.d_model=128 model.dropout=0.2 model.item_dropout=0.2",
    "ss-d64-p2-i2": f"{_DRAWN} model.d_model=64 model.dropout=0.2 model.item_dropout=0.2",
    "ss-p2-i2-constant": f"{_DRAWN} model.dropout=0.2 model.item_dropout=0.2 train.schedule=constant",
    "ss1024-p2-i4": "task.loss=sampled-softmax task.negatives=1024 model.dropout=0.2 model.item_dropout=0.4",
    "gbce-p2-i3": "task.loss=gbce task.negatives=256 model.dropout=0.2 model.item_dropout=0.3",
    "all-p5": "task.loss=softmax model.dropout=0.5",
    "all-p5-i2": "task.loss=softmax model.dropout=0.5 model.item_dropout=0.2",
    "all-p5-i5": "task.loss=softmax model.dropout=0.5 model.item_dropout=0.5",
    "all-d64-p4-i2": "task.loss=softmax model.d_model=64 model.dropout=0.4 model.item_dropout=0.2",
    "all-d64-p4-i4": "task.loss=softmax model.d_model=64 model.dropout=0.4 model.item_dropout=0.4",
    "all-d128-p5-i3": "task.loss=softmax model.d_model=128 model.dropout=0.5 model.item_dropout=0.3",
    "all-p5-decay": "task.loss=softmax model.dropout=0.5 train.weight_decay=1.0",
    "all-p6-i3-decay": "task.loss=softmax model.dropout=0.6 model.item_dropout=0.3 train.weight_decay=0.5",
}
_AROUND_TABLE = {
    "layers": "model.n_layers=2",
    "history": "data.max_history=100",
    "decay": "train.weight_decay=0.5",
    "large": "train.max_tokens=4096 train.lr=2e-3",
    "slow": "train.lr=5e-4",
    "more": "model.item_dropout=0.6",
    "ema": "train.ema=0.999",
}


def table(data: str, seconds: int) -> list[str]:
    """Trials with dropout on the table of items, and around the best of them, of both models."""
    shared = (
        f"{EQUAL} {REPLAY} data.file={SETS[data]}.txt.gz train.eval_tokens=262144 train.max_tokens=1024 train.lr=1e-3"
        f" model.d_model=256 train.seconds={seconds} train.eval_every=3"
    )
    first = both(data, "table", _TABLE, {"mamba4rec": "", "sasrec": "model.norm=post"}, shared)
    long = {"sasrec": " model.max_length=100"}
    around = [
        f"{data}/{m}/table-2/{name}=@{data}/{m}/table {words}{long.get(m, '') if name == 'history' else ''}"
        for name, words in _AROUND_TABLE.items()
        for m in MODELS
    ]
    mixer = [f"{data}/{m}/table-2/{name}=@{data}/{m}/table {w}" for m in MODELS for name, w in _MIXER[m].items()]
    return first + around + mixer


# What both were better with, and what neither had had: on an emptier GPU, for longer.
_DEEPER = {
    "layers": "model.n_layers=2",
    "layers-i5": "model.n_layers=2 model.item_dropout=0.5",
    "layers-p7": "model.n_layers=2 model.dropout=0.7",
    "layers-decay": "model.n_layers=2 train.weight_decay=1.0",
    "slow": "train.lr=5e-4",
    "large": "train.max_tokens=4096 train.lr=2e-3",
    "ema": "train.ema=0.999",
}


def deeper(data: str, seconds: int) -> list[str]:
    """Trials around what won in the trials before, which WORK has to hold."""
    words = _DEEPER.items()
    start = {m: f"@{data}/{m}/table train.seconds={seconds} train.eval_tokens=65536" for m in MODELS}
    both_ = [f"{data}/{m}/table-3/{name}={start[m]} {more}" for name, more in words for m in MODELS]
    return both_ + [f"{data}/{m}/table-3/{name}={start[m]} {w}" for m in MODELS for name, w in _MIXER[m].items()]


def table_finals(data: str, seconds: int, seeds: tuple[int, ...]) -> list[str]:
    """Both models anew with what won on Sports, on any of the shops' sets."""
    more = f"data.file={SETS[data]}.txt.gz train.seconds={seconds} train.eval_tokens=65536"
    return [f"{data}/{m}/item-dropout/{s}=@sports/{m}/table* {more} seed={s}" for s in seeds for m in MODELS]


_WON_WIDE = {
    "mamba4rec": "beauty model.dropout=0.6 model.item_dropout=0.3 train.ema=0.999",
    "sasrec": "beauty-sasrec model.norm=post model.dropout=0.6 model.item_dropout=0.5 model.n_layers=2",
}


def wide_chosen(data: str, seconds: int, seeds: tuple[int, ...]) -> list[str]:
    """The same, with what won spelt out."""
    shared = (
        f"{EQUAL} {REPLAY} data.file={SETS[data]}.txt.gz train.eval_tokens=65536 train.max_tokens=1024 train.lr=1e-3"
        f" model.d_model=256 train.seconds={seconds} train.eval_every=3 task.loss=softmax train.weight_decay=0.5"
    )
    return [f"{data}/{m}/item-dropout/{s}={_WON_WIDE[m]} {shared} seed={s}" for s in seeds for m in MODELS]


def films(seconds: int) -> list[str]:
    """The same means on MovieLens-1M, around each model's best there."""
    shared = f"{EQUAL} {REPLAY} train.max_tokens=25600 train.seconds={seconds} {THREE} model.dropout=0.3"
    words = {"i2": "model.item_dropout=0.2", "i2-decay": "model.item_dropout=0.2 train.weight_decay=0.1"}
    return both("ml-1m", "table", words, {m: f"train.lr={RATES[m]}" for m in MODELS}, shared)


# What each won with on validation ("equal").
_WON_EQUAL = {
    "ml-1m": {
        "gru4rec": f"{_SIZES['gru4rec'][256]} model.dropout=0.5",
        "lrurec": f"{_SIZES['lrurec'][128]} model.dropout=0.2",
        "bimamba4rec": f"{_SIZES['bimamba4rec'][256]} model.dropout=0.1",
    },
    "beauty": {
        "gru4rec": f"{_SIZES['gru4rec'][128]} model.dropout=0.7",
        "lrurec": f"{_SIZES['lrurec'][128]} model.dropout=0.6",
        "bimamba4rec": f"{_SIZES['bimamba4rec'][128]} model.dropout=0.3 train.lr=2.8e-3",
    },
}


def equal_finals(data: str, seed: int) -> list[str]:
    """The other models anew with what won, as long as Mamba4Rec and SASRec had ("chosen"), and the SSD mixer."""
    if data == "ml-1m":
        start, seconds = f"ml-1m {EQUAL} train.max_tokens=25600 train.lr=2.8e-3", 215
        ssd = f"{start} {REPLAY} {THREE} model.dropout=0.3 train.lr=1.4e-3 train.seconds=150"
    else:
        start, seconds = f"beauty {SHOP} data.file=Beauty.txt.gz", 75
        ssd = f"{start} {REPLAY} model.dropout=0.4 train.seconds=75"
    return [
        *(
            f"{data}/{m}/final/{seed}={start} {_KINDS[m]} {words} train.seconds={seconds} seed={seed}"
            for m, words in _WON_EQUAL[data].items()
        ),
        f"{data}/mamba4rec/final-ssd/{seed}={ssd} model.mixer=ssd seed={seed}",
    ]


_RELEASED = "ml-1m-faithful data.file=ml-1m.txt.gz train.precision=bf16"

FIFTH: dict[str, list[str]] = {
    # Trials, a GPU each.
    "wide": wide("sports", 95) + losses(115) + deep(150, (1, 2)),
    "equal": [
        *chain.from_iterable(zip(*(equal("ml-1m", m) for m in _KINDS), strict=True)),
        *chain.from_iterable(zip(*(equal("beauty", m) for m in _KINDS), strict=True)),
    ],
    # The second call's, a GPU each.
    "table": table("sports", 60),
    "equal-finals": deep(150, (0,))
    + [line for data in ("ml-1m", "beauty") for s in (0, 1, 2) for line in equal_finals(data, s)],
    # The third's: more trials and the finals of both on one GPU; on the other what is as released, until its patience
    # ends it, and beside it the other models' finals again, which had shared the second call's GPU with too many.
    "table-finals": [
        *deeper("sports", 90),
        *films(115),
        *table_finals("sports", 90, (0, 1, 2)),
        *(
            line
            for s in (0, 1, 2)
            for data in ("beauty", "toys", "video-games")
            for line in table_finals(data, 75, (s,))
        ),
    ],
    "wide-chosen": [
        *wide_chosen("sports", 90, (0, 1, 2)),
        *(line for data in ("beauty", "toys", "video-games") for line in wide_chosen(data, 75, (0, 1, 2))),
    ],
    "released": [
        *(f"ml-1m/mamba4rec/faithful-bf16/{s}={_RELEASED} seed={s} share=100" for s in (1, 2)),
        f"ml-1m/mamba4rec/faithful-2/0={_RELEASED} model.n_layers=2 seed=0 share=100",
    ],
}
