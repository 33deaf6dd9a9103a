"""The folder of one run: its configuration, log, checkpoints and results."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from seqgraph.config import TrainConfig
from seqgraph.errors import CheckpointError, ConfigError
from seqgraph.train import checkpoint
from seqgraph.train.card import model_card

_FREE = ("epochs", "max_steps", "seconds", "patience", "workers", "accelerator", "devices", "checkpoint_every")
"""Settings of ``train`` that may differ when a run is resumed; with the others it would be another run."""


_ASIDE = ".best.whole"
"""The best checkpoint of whole epochs, while ``best`` is of an epoch that ``max_steps`` cut short."""


@dataclass
class RunFolder:
    """Writes what a run leaves behind. Only the first process has one that writes.

    Attributes:
        path: the folder.
        config: the resolved configuration, as JSON.
        facts: of the data and the model: fingerprint, split sizes, parameters.
        assets: what the model needs on raw input.
        writes: False in the other processes of a distributed run.
    """

    path: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    assets: dict[str, Any]
    writes: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)

    def check(self) -> None:
        """See that the folder is free, or holds a run of this configuration.

        Raises:
            ConfigError: when the run that is there was begun with another configuration.
        """
        if (self.path / checkpoint.CONFIG).is_file():
            self._same(checkpoint.read_json(self.path / checkpoint.CONFIG))

    def begin(self) -> None:
        """Write ``config.json``."""
        if self.writes:
            whole = {
                "format": checkpoint.FORMAT,
                "run": self.config,
                "versions": checkpoint.versions(),
                "facts": self.facts,
            }
            checkpoint.write_file(self.path / checkpoint.CONFIG, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")

    def _same(self, old: dict[str, Any]) -> None:
        before, now = flatten(old.get("run", {})), flatten(self.config)
        # a setting that is newer than the run had its default
        before = flatten({"train": TrainConfig().model_dump(mode="json")}) | before
        free = {f"train.{key}" for key in _FREE}
        differ = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and k not in free]
        if differ:
            said = ", ".join(f"{k} ({before.get(k)!r}, now {now.get(k)!r})" for k in differ[:5])
            raise ConfigError(
                f"{self.path} was begun with another configuration: {said}",
                "resume with the same one, or give the new one a folder of its own: -o",
            )
        was, is_ = old.get("facts", {}).get("data"), self.facts.get("data")
        if was != is_:
            raise ConfigError(
                f"{self.path} was begun with other data: fingerprint {was}, now {is_}", "use a new folder"
            )

    # ------------------------------------------------------------------ checkpoints
    def save(
        self,
        which: str,
        state: Mapping[str, Tensor],
        *,
        results: Mapping[str, Any],
        trainer: Mapping[str, Any] | None = None,
        set_aside: bool = False,
    ) -> None:
        """Write the checkpoint ``best`` or ``last``.

        Args:
            which: its name.
            state: the task's ``state_dict``: the model's tensors begin with "model.".
            results: goes to ``metrics.json``.
            trainer: what training needs to go on.
            set_aside: keep the one before, for a run that goes on from before these weights.
        """
        if not self.writes:
            return
        if set_aside and (self.path / which).exists():
            shutil.rmtree(self.path / _ASIDE, ignore_errors=True)
            (self.path / which).rename(self.path / _ASIDE)
        name, fields = _named(self.config["model"])
        model = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        checkpoint.save(
            self.path / which,
            model,
            name=name,
            fields=fields,
            assets=self.assets,
            metrics=results,
            run=self.config,
            extra={"facts": self.facts},
            card=model_card(self.config, self.facts, results),
            task={k: v for k, v in state.items() if not k.startswith("model.")},
            trainer=trainer,
        )

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the results, beside the best weights and at the top of the run."""
        if not self.writes:
            return
        text = json.dumps(results, indent=1) + "\n"
        folder = checkpoint.find(self.path)
        checkpoint.write_file(folder / checkpoint.METRICS, text)
        checkpoint.write_file(folder / checkpoint.CARD, model_card(self.config, self.facts, results))
        checkpoint.write_file(self.path / checkpoint.METRICS, text)

    def results(self) -> dict[str, Any] | None:
        """What :meth:`finish` wrote, if it did."""
        file = self.path / checkpoint.METRICS
        return checkpoint.read_json(file) if file.is_file() else None

    def trainer_state(self) -> dict[str, Any] | None:
        """The trainer's state in ``last``, or None where there is no ``last`` yet."""
        checkpoint.recover(self.path / "last")
        return checkpoint.load_trainer(self.path / "last") if (self.path / "last").is_dir() else None

    # ------------------------------------------------------------------ log
    def go_on(self, epochs: int, best_epoch: int) -> None:
        """Take up log and best weights where a run goes on.

        Args:
            epochs: the epochs that are complete; later rows of the log are dropped.
            best_epoch: the best of them; 0 where none was evaluated.
        """
        self.rows = [row for row in read_log(self.path) if row["epoch"] <= epochs]
        if not self.writes:
            return
        best, aside = self.path / "best", self.path / _ASIDE
        if aside.exists() or not best_epoch:
            shutil.rmtree(best, ignore_errors=True)
        if aside.exists():
            aside.rename(best)

    def log(self, row: dict[str, Any]) -> None:
        """Add an epoch to ``log.jsonl`` and ``log.csv``."""
        self.rows.append(row)
        if not self.writes:
            return
        checkpoint.write_file(self.path / "log.jsonl", "".join(json.dumps(r) + "\n" for r in self.rows))
        text = io.StringIO()
        columns = list(dict.fromkeys(key for r in self.rows for key in r))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        checkpoint.write_file(self.path / "log.csv", text.getvalue())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``log.jsonl``; none where there is no log.

    Raises:
        CheckpointError: naming file and line, when one is damaged.
    """
    file, rows = path / "log.jsonl", []
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(f"{file} line {number} is damaged: {error}") from None
    return rows


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def _named(part: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    fields = dict(part)
    return fields.pop("name"), fields
