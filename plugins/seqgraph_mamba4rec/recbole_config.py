"""RecBole's configurations as ours. RecBole need not be installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqgraph.errors import ConfigError

_MODELS: dict[str, tuple[str, dict[str, str], set[str]]] = {
    "Mamba4Rec": (
        "mamba4rec",
        {"hidden_size": "d_model", "num_layers": "n_layers", "dropout_prob": "dropout"},
        {"d_state", "d_conv", "expand"},
    ),
    "SASRec": (
        "sasrec",
        {
            "hidden_size": "d_model",
            "inner_size": "d_ffn",
            "hidden_dropout_prob": "dropout",
            "attn_dropout_prob": "attention_dropout",
        },
        {"n_layers", "n_heads"},
    ),
    "GRU4Rec": (
        "gru4rec",
        {"embedding_size": "d_model", "hidden_size": "d_hidden", "num_layers": "n_layers", "dropout_prob": "dropout"},
        set(),
    ),
    "LRURec": ("lrurec", {"hidden_size": "d_model", "num_layers": "n_layers", "dropout_prob": "dropout"}, set()),
}
"""RecBole's (or the authors') name -> ours, renamed keys, keys of the same name."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "Mamba4Rec": {"init": "mamba4rec"},
    "SASRec": {"n_layers": 2, "n_heads": 2, "dropout": 0.5, "attention_dropout": 0.5, "d_ffn": 256, "norm": "post"},
    "GRU4Rec": {"d_model": 64, "d_hidden": 128, "dropout": 0.3},
    "LRURec": {},
}

# What changes neither data nor result, or what we do anyway.
_SILENT = frozenset(
    """
    gpu_id worker use_gpu state reproducibility checkpoint_dir show_progress save_dataset dataset_save_path
    save_dataloaders dataloaders_save_path log_wandb wandb_project shuffle eval_batch_size metrics
    metric_decimal_place loss_decimal_place valid_metric_bigger load_col unload_col unused_col require_pow
    repeatable seq_separator LIST_SUFFIX ITEM_LIST_LENGTH_FIELD POSITION_FIELD NEG_PREFIX RATING_FIELD LABEL_FIELD
    user_inter_num_interval item_inter_num_interval data_path normalize_all normalize_field
    """.split()  # noqa: SIM905
)
_FIXED: dict[str, tuple[Any, ...]] = {
    "loss_type": ("CE",),
    "learner": ("adam",),
    "weight_decay": (0, 0.0),
    "layer_norm_eps": (1e-12, "1e-12"),
    "hidden_act": ("gelu",),
    "initializer_range": (0.02,),
    "enable_amp": (False,),
    "field_separator": ("\t",),
    "filter_inter_by_user_or_item": (True,),
    "train_neg_sample_args": (None, {}, "None"),
}
_TRAIN = {
    "epochs": "epochs",
    "learning_rate": "lr",
    "train_batch_size": "max_items",
    "eval_step": "eval_every",
}


def model_fields(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Our constructor's arguments out of RecBole's keys, without defaults."""
    _, renamed, same = _MODELS[model]
    return {ours: given[theirs] for theirs, ours in renamed.items() if theirs in given} | {
        key: given[key] for key in same if key in given
    }


def translate(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A run configuration of ours that does what RecBole does under one of its own, all files merged.

    Prefixes as examples, RecBole's rounding of the times, a constant rate, leave-one-out, every item ranked.

    Args:
        theirs: RecBole's keys.

    Returns:
        What :func:`seqgraph.config.load_config` reads.

    Raises:
        ConfigError: naming what we would do otherwise, or do not know.
    """
    given = {key: value for key, value in theirs.items() if value is not None or key == "train_neg_sample_args"}
    name = given.pop("model", "Mamba4Rec")
    if name not in _MODELS:
        raise ConfigError(f"RecBole's model {name!r} has no counterpart", f"there are {', '.join(_MODELS)}")
    for key, allowed in _FIXED.items():
        if key in given and given[key] not in allowed:
            raise ConfigError(f"{key}: {given[key]!r} is not what happens here", f"set {key}: {allowed[0]}")
    ours, renamed, same = _MODELS[name]
    length = int(given.pop("MAX_ITEM_LIST_LENGTH", 50))
    model = {"name": ours, **_DEFAULTS[name], **model_fields(name, given)}
    if name == "SASRec":
        model["max_length"] = length
    train = {ours_key: given[key] for key, ours_key in _TRAIN.items() if key in given}
    batch = int(train.setdefault("max_items", 2048))
    train |= {
        "max_tokens": batch * length,
        "schedule": "constant",
        "warmup": 0,
        "weight_decay": 0.0,
        "clip": (given.get("clip_grad_norm") or {}).get("max_norm"),
        # It stops after more evaluations without gain than this.
        "patience": int(given.get("stopping_step", 10)) + 1,
    }
    train.setdefault("epochs", 300)
    train.setdefault("lr", 1e-3)
    config = {
        "model": model,
        "data": _data(given, length),
        "task": _task(given),
        "train": train,
        "seed": int(given.get("seed", 2020)),
    }
    known = set(renamed) | same | set(_TRAIN) | _SILENT | set(_FIXED)
    known |= {"dataset", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "rm_dup_inter", "eval_args", "topk"}
    known |= {"valid_metric", "clip_grad_norm", "stopping_step", "seed"}
    strange = sorted(set(given) - known)
    if strange:
        raise ConfigError(f"RecBole's {', '.join(strange)} cannot be said here", "take out what does not matter")
    return config


def read(paths: list[Path]) -> dict[str, Any]:
    """RecBole's YAML files merged, later ones winning.

    Raises:
        ConfigError: for a file that is none.
    """
    import yaml

    merged: dict[str, Any] = {}
    for path in paths:
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{path}: {getattr(error, 'strerror', None) or error}", "give RecBole's YAML file"
            ) from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} holds no configuration", "give RecBole's YAML file")
        # YAML 1.1 reads 1e-3 as text, in RecBole too, which turns it into a number by itself.
        merged |= {key: _number(value) for key, value in tree.items()}
    return merged


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _data(given: dict[str, Any], length: int) -> dict[str, Any]:
    name = given.get("dataset", "ml-100k")
    data: dict[str, Any] = {"max_history": length, "examples": "prefixes", "order": "recbole"}
    time = given.get("TIME_FIELD", "timestamp")
    scaled = time in (given.get("normalize_field") or []) or given.get("normalize_all", name == "ml-100k")
    if name == "ml-100k":
        data["name"] = "ml-100k"
        if not scaled:
            raise ConfigError("normalize_all: False for ml-100k", "take its .inter file as a data set of your own")
    else:
        data["order"] = "recbole-scaled" if scaled else "recbole"
        data |= {"name": "recbole-inter", "root": str(Path(str(given.get("data_path", "dataset/"))) / str(name))}
        fields = {"USER_ID_FIELD": "user_field", "ITEM_ID_FIELD": "item_field", "TIME_FIELD": "time_field"}
        data |= {ours: given[key] for key, ours in fields.items() if key in given}
    cores = {_core(str(given.get(f"{kind}_inter_num_interval", "[0,inf)"))) for kind in ("user", "item")}
    if len(cores) > 1:
        raise ConfigError(f"users and items are filtered by different counts: {sorted(cores)}", "filter both alike")
    data["k_core"] = cores.pop()
    if "rm_dup_inter" in given:
        data["duplicates"] = given["rm_dup_inter"]
    return data


def _core(interval: str) -> int:
    found = re.fullmatch(r"\[\s*(\d+)\s*,\s*inf\s*[)\]]", interval.strip())
    if not found:
        raise ConfigError(f"the interval {interval!r} is more than a k-core", "write [k,inf)")
    return int(found[1])


def _task(given: dict[str, Any]) -> dict[str, Any]:
    args = given.get("eval_args") or {}
    asked = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"} | dict(args)
    if asked["split"] != {"LS": "valid_and_test"} or asked["order"] != "TO" or asked["mode"] != "full":
        raise ConfigError(f"eval_args {dict(args)!r}", "only LS: valid_and_test, order TO, mode full is done here")
    kind, _, k = str(given.get("valid_metric", "MRR@10")).partition("@")
    metric = {"ndcg": "NDCG", "hit": "HR", "recall": "HR", "mrr": "MRR"}.get(kind.lower())
    if metric is None or not k.isdigit():
        raise ConfigError(f"valid_metric: {given['valid_metric']!r}", "one of NDCG@k, Hit@k, Recall@k, MRR@k")
    lengths = given.get("topk", [10])
    rest = [int(n) for n in (lengths if isinstance(lengths, list) else [lengths]) if int(n) != int(k)]
    return {"name": "next-item", "k": [int(k), *rest], "select_metric": metric}
