"""What ``train_gpu.py`` trains, and where the data of a preset are."""

from __future__ import annotations

ROOTS = {
    "peptides": "peptides-func",
    "zinc": "zinc12k",
    "minesweeper": "heterophilous",
    "tolokers": "heterophilous",
    "ogbg": "ogbg-small",
}

# NAME=PRESET KEY=VALUE ..., in the order in which they begin. Schedules are shorter than in the presets: they end with
# the time that there is. ``more`` is what every run by the clock has.
LIMIT = 520
_CLOCK = "train.epochs=5000 train.eval_every=2"
_RWSE = "model.pe=rwse model.pe_size=32 model.pe_width=28 model.pe_norm=true"
_PEPTIDES = {
    "hybrid": "peptides-func-gcn-mamba",
    "gcn": "peptides-func-gcn train.max_tokens=4832 train.eval_tokens=38656",
    "plus": "peptides-func-plus",
}
_ORDERS = ("degree", "random", "bfs", "personalized-pagerank", "rwse")
_SETS = ("bace", "bbbp", "esol", "freesolv")
LISTS: dict[str, list[str]] = {
    "peptides": [
        f"{name}-{seed}={preset} {_CLOCK} train.seconds=400 seed={seed}"
        for seed in (0, 1)
        for name, preset in _PEPTIDES.items()
    ],
    "zinc": [
        "zinc-0=zinc-12k train.max_tokens=2964 train.lr=1.5e-3 train.epochs=5000 train.eval_every=4 train.seconds=400"
        " seed=0"
    ],
    "tolokers": [
        f"tolokers-{seed}=tolokers train.epochs=5000 train.eval_every=20 train.seconds=110 seed={seed}"
        for seed in range(4)
    ],
    "minesweeper": [f"minesweeper-{seed}=minesweeper seed={seed}" for seed in range(4)],
    "molecules": [
        *(
            f"{name}-{seed}=ogbg-mol{name} {_CLOCK} train.seconds=60 seed={seed}"
            for name in _SETS[:2]
            for seed in (0, 1)
        ),
        # their presets' 100 epochs, if there is time
        *(f"{name}-gin-{seed}=ogbg-mol{name}-gin-vn train.seconds=60 seed={seed}" for name in _SETS for seed in (0, 1)),
    ],
    "solubility": [f"{name}-{seed}=ogbg-mol{name} seed={seed}" for name in _SETS[2:] for seed in (0, 1)],
    # the published layers and batches; as many epochs each, whatever they cost
    "orders": [
        f"{order}-{way}=peptides-func {_RWSE} model.dropout=0.1 model.head_layers=3 model.order={order}"
        f" model.direction={way} train.epochs=30 train.eval_every=2 train.eval_tokens=38656 seed=0"
        for way in ("forward", "both")
        for order in _ORDERS
    ],
    "half": [
        f"{name}-bf16=" + f"{preset} {_CLOCK} train.seconds=400 train.precision=bf16 seed=0"
        for name, preset in _PEPTIDES.items()
    ]
    + [f"forward-bf16=peptides-func {_RWSE} train.eval_tokens=38656 train.precision=bf16 train.epochs=30 seed=0"],
}
LISTS["first"] = [*LISTS["peptides"], *LISTS["zinc"], *LISTS["tolokers"]]
