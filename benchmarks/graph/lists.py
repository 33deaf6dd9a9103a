"""What ``train_gpu.py`` trains, and where the data of a preset are."""

from __future__ import annotations

ROOTS = {
    "peptides": "peptides-func",
    "zinc": "zinc12k",
    "minesweeper": "heterophilous",
    "tolokers": "heterophilous",
    "ogbg": "ogbg-small",
}

# NAME=PRESET KEY=VALUE ..., in the order in which they begin. Runs by the clock have schedules that end with a call of
# so many seconds (``--limit`` changes both); the others have as many epochs as it says, whatever they cost.
LIMIT = 1040
_CLOCK, _HALF = (f"train.epochs=5000 train.seconds={seconds}" for seconds in (930, 450))
_RWSE = "model.pe=rwse model.pe_size=32 model.pe_width=28 model.pe_norm=true"
# One recording serves all batches of an epoch, which are drawn anew.
_LEVEL = "train.level=true train.replay=1"
_PEPTIDES = {
    "gcn": f"peptides-func-gcn train.eval_tokens=38656 train.eval_every=5 {_LEVEL}",
    "gcn-mamba": f"peptides-func-gcn-mamba train.eval_every=4 {_LEVEL}",
    "plus": f"peptides-func-plus train.eval_every=4 {_LEVEL}",
}
_ORDERS = ("degree", "random", "bfs", "personalized-pagerank", "rwse")
_SETS = ("bace", "bbbp", "esol", "freesolv")
LISTS: dict[str, list[str]] = {
    # with --jobs 3 the second seeds follow the first
    "peptides": [
        f"{name}-{seed}={preset} {_HALF} seed={seed}" for seed in (0, 1) for name, preset in _PEPTIDES.items()
    ],
    "zinc": [
        f"{name}={preset} train.eval_every=5 {_LEVEL} {_CLOCK} seed={seed}"
        for name, preset, seed in (
            ("zinc-gin-0", "zinc-12k-gin-mamba", 0),
            ("zinc-gin-1", "zinc-12k-gin-mamba", 1),
            ("zinc-0", "zinc-12k train.max_tokens=1482", 0),
        )
    ],
    # one graph is one batch, which stays what it is
    "tolokers": [f"tolokers-{seed}=tolokers train.eval_every=20 train.replay=1000 seed={seed}" for seed in range(4)],
    "minesweeper": [f"minesweeper-{seed}=minesweeper train.replay=1000 seed={seed}" for seed in range(4)],
    "molecules": [
        *(f"{name}-{seed}=ogbg-mol{name} train.replay=60 seed={seed}" for name in _SETS[:2] for seed in (0, 1)),
        *(f"{name}-gin-{seed}=ogbg-mol{name}-gin-vn train.replay=50 seed={seed}" for name in _SETS for seed in (0, 1)),
    ],
    "solubility": [
        f"{name}-{seed}=ogbg-mol{name} train.replay=40 seed={seed}" for name in _SETS[2:] for seed in (0, 1)
    ],
    # the published layers and batches, half of the published epochs
    "orders": [
        f"{order}-{way}=peptides-func {_RWSE} model.dropout=0.1 model.head_layers=3 model.order={order}"
        f" model.direction={way} train.epochs=100 train.eval_every=5 {_LEVEL} train.eval_tokens=38656 seed=0"
        for way in ("both", "forward")
        for order in _ORDERS
    ],
}
LISTS["all"] = [
    *LISTS["peptides"],
    LISTS["zinc"][0],
    *LISTS["tolokers"],
    *LISTS["orders"],
    *LISTS["molecules"],
]
