"""The run configuration: a preset or a YAML file, then dotted overrides, checked by the plugins' own classes.

Light: pydantic and PyYAML only. Plugins are asked through :mod:`seqgraph.plugin.manager`, and only their
configuration classes are imported.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from seqgraph.errors import ConfigError

SECTIONS = {"model": "models", "data": "datasets", "task": "tasks"}
"""Section of the configuration -> kind of descriptor that its name looks up."""

_C = TypeVar("_C", bound=BaseModel)


class Part(BaseModel):
    """A thing that a plugin provides, by name, and the constructor arguments that the user gave."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def fields(self) -> dict[str, Any]:
        """The arguments besides the name."""
        return dict(self.model_extra or {})


class TrainConfig(BaseModel):
    """How a run is trained. A *step* is one step of the optimiser.

    Attributes:
        epochs: passes over the training split.
        max_steps: stop after this many steps, if that is sooner.
        seconds: train for about this long, evaluation included, if that is sooner; the schedule then follows the clock
            and ends with it, so that how many epochs there are depends on the machine. Wants ``epochs`` enough, and
            ``warmup`` as a share.
        weights: start from those of a run, a checkpoint or other software's file instead of anew.
        lr: peak learning rate of AdamW.
        min_lr: learning rate at the end of the cosine or linear schedule.
        weight_decay: decoupled; not applied to biases, norms and parameters flagged ``_no_weight_decay``.
        betas: AdamW's two decay rates.
        schedule: after the warm-up: "cosine" or "linear" down to ``min_lr``, or "constant".
        warmup: linear rise of the learning rate; below 1 a share of all steps, from 1 a number of steps.
        clip: largest norm of the gradient; null for no clipping.
        max_tokens: tokens of one batch on one device; a longer example goes alone.
        max_items: examples of one batch at most.
        eval_tokens: ``max_tokens`` of evaluation; null for the same.
        accumulate: batches that make one step.
        precision: "32", or "bf16" (autocast).
        eval_every: epochs between evaluations on the validation split.
        patience: stop after this many evaluations without improvement; null for never.
        checkpoint_every: save ``last`` every so many steps as well as after each evaluation.
        accelerator: "auto" takes the GPU if there is one.
        devices: processes; more than one through ``torchrun``, which sets this itself.
        strategy: how several processes share the work; "auto" is "ddp".
        workers: processes that prepare batches; 0 prepares them in the training process.
        replay: epochs for which the same examples stay together in batches, in an order of its own each, 0 for one.
            All batches stay in memory, and on a GPU the step of each is recorded the first time as a CUDA graph and
            replayed in the other epochs, which spares the host the launching of kernels. Random numbers are drawn anew.
        level: batches of equal sizes (examples, tokens, and what else the data count: edges of graphs), drawn anew each
            epoch; the last few of an epoch may differ. With ``replay``, whose number does not matter then, one recorded
            step serves all of them. Examples of like length are not put together.
        ema: evaluate, test and keep as ``best`` an exponential moving average of the weights, which keeps this share of
            itself in each step (in step n, from 0, at most (1 + n) / (10 + n)), 0.999 say; null for the weights.
        deterministic: ask torch for deterministic algorithms (slower on a GPU).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: PositiveInt = 100
    max_steps: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    weights: str | None = None
    lr: PositiveFloat = 1e-3
    min_lr: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: NonNegativeFloat = 0.05
    clip: PositiveFloat | None = 1.0
    max_tokens: PositiveInt = 16384
    max_items: PositiveInt | None = None
    eval_tokens: PositiveInt | None = None
    accumulate: PositiveInt = 1
    precision: Literal["32", "bf16"] = "32"
    eval_every: PositiveInt = 1
    patience: PositiveInt | None = 20
    checkpoint_every: PositiveInt | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    workers: NonNegativeInt = 0
    replay: NonNegativeInt = 0
    level: bool = False
    ema: float | None = Field(default=None, gt=0, lt=1)
    deterministic: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _precision_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each beta must be at least 0 and below 1")
        return value


class RunConfig(BaseModel):
    """Everything that a run needs to know. Make one with :func:`load_config`, which checks the plugins' fields.

    Attributes:
        model: the model's name and constructor arguments; what only the data know may be left out.
        data: the data set's name and constructor arguments.
        task: the task's name and constructor arguments.
        train: how it is trained.
        seed: one or several; each is a run of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Part
    data: Part
    task: Part
    train: TrainConfig = Field(default_factory=TrainConfig)
    seed: list[NonNegativeInt] = Field(default=[0], min_length=1)

    @field_validator("seed", mode="before")
    @classmethod
    def _seeds_as_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int) else value

    @field_validator("seed")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("the seeds must differ")
        return value


def load_config(
    source: str | Path | Mapping[str, Any] | RunConfig,
    overrides: Iterable[str] = (),
    *,
    data_root: str | Path | None = None,
) -> RunConfig:
    """Read a run configuration and check every field of it.

    Args:
        source: a preset's name, a YAML file, a run folder (its ``config.json``), a mapping, or a configuration.
        overrides: ``section.key=value`` texts, or ``seed=0,1,2``; the value is read as YAML. What names a section's
            plugin (``model=gmn``) comes first, wherever it stands, as it clears the section; of several names the last
            one counts, and the fields are its.
        data_root: the same as ``data.root=...``.

    Raises:
        ConfigError: naming the key, what is allowed there and the nearest match.
        PluginError: when no plugin provides the name.
    """
    tree, where = _read(source)
    for text in sorted(overrides, key=lambda text: not _names_a_plugin(text)):
        _override(tree, text)
    if data_root is not None:
        _override(tree, "data.root", str(data_root))
    config = checked(RunConfig, tree, where)
    for section in SECTIONS:
        _part(section, getattr(config, section), {}, where, partial=section == "model")
    _one_domain(config, where)
    return config


def _one_domain(config: RunConfig, where: str) -> None:
    from seqgraph.plugin import manager

    domains = {section: manager.get(kind, getattr(config, section).name).domain for section, kind in SECTIONS.items()}
    if len(set(domains.values())) > 1:
        said = ", ".join(f"{section} {getattr(config, section).name} is of {domains[section]}" for section in SECTIONS)
        raise ConfigError(
            f"{where}: model, data and task are of different domains: {said}", "choose ones of one domain"
        )


def build_part(config: RunConfig, section: str, defaults: Mapping[str, Any] | None = None) -> BaseModel:
    """The plugin's own configuration object of one section, complete and checked.

    Args:
        config: the run configuration.
        section: "model", "data" or "task".
        defaults: values that the section's own fields win over (``Dataset.model_defaults()``).
    """
    return _part(section, getattr(config, section), dict(defaults or {}), f"the {section} section")


def arguments(config: BaseModel) -> dict[str, Any]:
    """The fields of a plugin's configuration object, as keywords for the constructor."""
    return {name: getattr(config, name) for name in type(config).model_fields}


def checked(cls: type[_C], tree: Mapping[str, Any], where: str, prefix: str = "") -> _C:
    """Validate, with pydantic's errors said in our words.

    Raises:
        ConfigError: naming each wrong key.
    """
    try:
        return cls.model_validate(dict(tree))
    except ValidationError as error:
        raise _config_error(error, cls, where, prefix) from None


# ---------------------------------------------------------------------- reading
class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: ``3e-4`` is a number, ``on`` and ``12:30`` are text; a repeated key is an error."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
# PyYAML reads a leading zero as octal, as YAML 1.1 did.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: {getattr(error, 'problem', None) or error}", "write it as YAML") from None


def _read(source: str | Path | Mapping[str, Any] | RunConfig) -> tuple[dict[str, Any], str]:
    if isinstance(source, RunConfig):
        return source.model_dump(mode="json"), "the configuration"
    if isinstance(source, Mapping):
        return json.loads(json.dumps(source, default=str)), "the configuration"
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path} is a folder without config.json", "name a preset, a YAML file or a run folder")
        try:
            return json.loads((path / "config.json").read_text())["run"], str(path / "config.json")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path / 'config.json'} is not a run's configuration: {error}") from None
    if path.suffix in (".yaml", ".yml") or path.is_file() or len(path.parts) > 1:
        try:
            return _mapping(_parse(path.read_text(), str(path)), str(path)), str(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigError(f"{path}: {reason}", "list the presets: seqgraph presets") from None
    text, where = _read_preset(str(source))
    return _mapping(_parse(text, where), where), where


def _read_preset(name: str) -> tuple[str, str]:
    from seqgraph.plugin import manager

    path = manager.resolve(manager.get("presets", name))
    return path.read_text(encoding="utf-8"), f"preset {name}"


def _mapping(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} holds no configuration", "it needs the sections model, data and task")
    # A bare name is enough where nothing else is said.
    return {k: {"name": v} if k in SECTIONS and isinstance(v, str) else v for k, v in tree.items()}


def _names_a_plugin(text: str) -> bool:
    """Not so a whole section (``model={name: gmn, m: 2}``), which takes the place of what stands before it."""
    key, _, value = text.partition("=")
    section, _, field = key.partition(".")
    return section in SECTIONS and field in ("", "name") and not value.lstrip().startswith("{")


def _override(tree: dict[str, Any], text: str, value: Any = None) -> None:
    key, found, raw = text.partition("=")
    if value is None:
        if not found or not key:
            raise ConfigError(f"{text!r} is no override", "write section.key=value, as in train.lr=3e-4")
        value = _parse(raw, key)
    *parents, last = key.split(".")
    if not parents and key in SECTIONS and isinstance(value, str):
        parents, last = [key], "name"
    for parent in parents:
        inner = tree.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section")
        tree = inner
    # Another plugin's thing has other fields: those of the old one must not stay behind.
    if last == "name" and parents[-1:] and parents[0] in SECTIONS and len(parents) == 1 and tree.get("name") != value:
        tree.clear()
    tree[last] = value


# ---------------------------------------------------------------------- checking
def _part(section: str, part: Part, defaults: dict[str, Any], where: str, *, partial: bool = False) -> BaseModel:
    """Check a section with its plugin's class; with ``partial``, required fields may still be missing."""
    from seqgraph.plugin import manager

    cls = manager.resolve_config(manager.get(SECTIONS[section], part.name))
    strange = [key for key in defaults if key not in cls.model_fields and key not in part.fields]
    if strange and cls.model_config.get("extra") == "forbid":
        raise ConfigError(
            f"the {section} {part.name} does not go with this data set, which sets {', '.join(strange)}",
            f"choose ones of the same domain: seqgraph {SECTIONS[section]}, seqgraph datasets",
        )
    try:
        return cls.model_validate({**defaults, **part.fields})
    except ValidationError as error:
        errors = [e for e in error.errors() if e["type"] != "missing"] if partial else error.errors()
        if not errors:
            return cls.model_construct(**part.fields)
        raise _config_error(error, cls, where, section, errors) from None


def _config_error(
    error: ValidationError, cls: type[BaseModel], where: str, prefix: str, errors: list | None = None
) -> ConfigError:
    lines, hint = [], None
    for item in errors if errors is not None else error.errors():
        path = [str(p) for p in item["loc"]]
        key = ".".join(([prefix] if prefix else []) + path)
        if item["type"] == "extra_forbidden":
            allowed = _allowed(cls, path[:-1])
            lines.append(f"unknown key {key}")
            hint = hint or _near(path[-1], allowed, ".".join(key.split(".")[:-1]))
        elif item["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            given = "" if isinstance(item["input"], dict) else f", not {item['input']!r}"
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}{given}")
    return ConfigError(f"{where}: " + "; ".join(lines), hint)


def _allowed(cls: type[BaseModel], path: list[str]) -> list[str]:
    for name in path:
        inner = cls.model_fields[name].annotation if name in cls.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        cls = inner
    return list(cls.model_fields)


def _near(key: str, allowed: list[str], section: str) -> str | None:
    if section == "train" and key == "seed":
        return "seed is a key of its own: seed=0,1,2"
    if not section and key in TrainConfig.model_fields:
        return f"did you mean train.{key}?"
    near = difflib.get_close_matches(key, allowed, 1, 0.6)
    prefix = f"{section}." if section else ""
    said = f"did you mean {prefix}{near[0]}? " if near else ""
    return f"{said}allowed: {', '.join(sorted(allowed))}" if allowed else said or None
