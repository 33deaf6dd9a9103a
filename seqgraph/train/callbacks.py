"""What happens around the steps: evaluation, log, checkpoints, early stopping, interruption, bad losses."""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from seqgraph.errors import ConfigError, UserError
from seqgraph.train.average import Average
from seqgraph.train.batching import TokenBatches
from seqgraph.train.console import Console
from seqgraph.train.evaluation import evaluate_task
from seqgraph.train.speed import utilisation
from seqgraph.train.state import get_rng, set_rng
from seqgraph.train.store import RunFolder

if TYPE_CHECKING:
    from seqgraph.train.fit import Module

_LOOK = 50
"""Batches between two looks at the losses on a GPU: each look waits for it."""

_AGREE = 8
"""Steps between two times that several processes ask each other whether to stop."""


class Stop(BaseException):
    """Unwinds Lightning's loops once the state is saved."""


class Conductor(Callback):
    """Runs everything of a training that is not a step.

    Args:
        module: the task in Lightning's clothes.
        valid: batches of the validation split, or None.
        folder: takes the log and the checkpoints.
        console: takes the progress.
        state: the trainer's state to go on from.
        stop_after: interrupt after so many steps.
    """

    def __init__(
        self,
        module: Module,
        valid: DataLoader | None,
        folder: RunFolder,
        console: Console,
        *,
        state: dict[str, Any] | None,
        stop_after: int | None,
    ) -> None:
        self.module, self.valid, self.folder, self.console = module, valid, folder, console
        self.progress, self.config, self.task = module.progress, module.settings, module.task
        self.sampler: TokenBatches = module.loader.sampler  # type: ignore[assignment]
        self.state = state
        self.average: Average | None = None
        self.stop_at = None if stop_after is None else self.progress.step + stop_after
        self.asked = False
        self._seen: dict[str, list[tuple[int, Tensor]]] = {}
        self._handlers: dict[signal.Signals, Any] = {}
        self._clock = time.monotonic()
        module.elapsed = self.elapsed
        self.latest: dict[str, float] = {}
        if state and not self.finished:
            folder.go_on(self.progress.epoch, self.progress.best_epoch)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        progress, config = self.progress, self.config
        patient = config.patience is None or progress.waited < config.patience
        steps_left = config.max_steps is None or progress.step < config.max_steps
        # to the nearest whole epoch
        half = 0.5 * progress.seconds / max(progress.epoch, 1)
        over = config.seconds is not None and progress.seconds + half >= config.seconds
        return progress.epoch >= config.epochs or not steps_left or not patient or over

    def elapsed(self) -> float:
        """Seconds of training and evaluation until now."""
        return self.progress.seconds + time.monotonic() - self._clock

    def limit(self) -> None:
        """End this epoch's batches where ``max_steps`` ends."""
        left = None if self.config.max_steps is None else self.config.max_steps - self.progress.step
        self.sampler.limit = None if left is None else self.sampler.position + left * self.config.accumulate

    # ------------------------------------------------------------------ Lightning's hooks
    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin the average of the weights; give it and the optimiser their states back."""
        if self.config.ema is not None:
            self.average = Average(self.task, self.config.ema)
        if not self.state:
            return
        if self.average is not None:
            self.average.load(self.state["average"])
        optimizer = trainer.optimizers[0]
        if not self.module.sharded:
            optimizer.load_state_dict(self.state["optimizer"])
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.task, optimizer, self.state["optimizer"], options=options)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Last thing before the first step: signals, random generators, modes."""
        self.task.train()
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
                    self._handlers[name] = signal.signal(name, self._ask)
        if self.state:
            set_rng(self.state["rng"][trainer.global_rank])
        elif trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        self.state = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the sums, unless the epoch goes on from a checkpoint."""
        if self.sampler.position == 0:
            self.progress.begin_epoch()
        self.progress.sums = {name: sums.to(pl_module.device) for name, sums in self.progress.sums.items()}
        self._clock = time.monotonic() - self.progress.epoch_seconds
        epoch = self.progress.epoch + 1
        self.console.begin_epoch(epoch, self.config.epochs, self.sampler.total(), self.sampler.position)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count; save or stop after a step where that is due."""
        loss_sum = outputs["sum_loss"]
        self._watch("loss", loss_sum[0])
        for name, value in outputs.items():
            if name.startswith("sum_"):
                key = name.removeprefix("sum_")
                self.progress.sums[key] = self.progress.sums.get(key, 0) + value
        lengths = self.sampler.lengths_of(self.sampler.position)
        self.progress.tokens += int(lengths.sum())
        self.progress.flops += self.task.flops(lengths.tolist()) or 0.0
        self.sampler.advance()
        if not self.module.stepped:
            return
        self._watch("norm of the gradient", self.module.norm)
        self.module.stepped = False
        if self.average is not None:
            self.average.update(self.progress.step)
        self.progress.step += 1
        self.console.batch(self.sampler.position, loss_sum)
        if len(self.sampler) == 0:  # the end of the epoch saves and stops
            return
        every = self.config.checkpoint_every
        stop = self._stopping(trainer)
        if stop or (every and self.progress.step % every == 0):
            self.progress.epoch_seconds = time.monotonic() - self._clock
            self._save_last(trainer)
        if stop:
            raise Stop

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Evaluate, log, save, and see whether that was all."""
        self._check()
        progress, config = self.progress, self.config
        seconds = progress.epoch_seconds = time.monotonic() - self._clock
        # max_steps in mid epoch: what is saved is the place in the epoch, as if this evaluation had not been,
        # so that a longer run goes on from it exactly.
        cut = self.sampler.position < self.sampler.total()
        state = self._task_state(trainer)
        if cut:
            self._save_last(trainer, state)
        row = self._train_row(seconds)
        progress.epoch += 1
        progress.seconds += seconds
        self.console.stop()
        better = self.valid is None
        last = cut or self.finished
        due = last or progress.epoch % config.eval_every == 0
        if self.valid is not None and due:
            with nullcontext() if self.average is None else self.average.used():
                self.latest = evaluate_task(self.task, self.valid, device=pl_module.device, precision=config.precision)
                if self.module.sharded:  # without a backward pass the outermost weights would stay whole
                    self.task.reshard()  # type: ignore[operator]
            row.update({f"valid_{name}": value for name, value in self.latest.items()})
            better = self._judge(self.latest)
        row["seconds"] = round(time.monotonic() - self._clock, 3)
        progress.seconds += row["seconds"] - seconds
        self.folder.log(row)
        self.console.end_epoch(row, config.epochs, better and self.valid is not None)
        if better:
            chosen = state if self.average is None else {**state, **self.average.state()}
            self.folder.save("best", chosen, results=self._results(), set_aside=cut)
        if not cut:
            self.sampler.seek(progress.epoch)
            progress.begin_epoch()
            self._clock = time.monotonic()
            # what comes last has been evaluated
            last = last or (due and self.finished)
        stop = not last and self._stopping(trainer, always=True)
        if not cut:
            if due or last or stop:
                self._save_last(trainer, state)
            self.limit()
        if last:
            trainer.should_stop = True
        elif stop:
            raise Stop

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Leave the signals and the terminal as they were."""
        self.console.stop()
        for name, handler in self._handlers.items():
            signal.signal(name, handler)
        self._handlers.clear()

    # ------------------------------------------------------------------ evaluation
    def _train_row(self, seconds: float) -> dict[str, Any]:
        names = sorted(self.progress.sums)
        sums = torch.stack([self.progress.sums[name] for name in names])
        work = torch.tensor([self.progress.tokens, self.progress.flops], dtype=torch.float64, device=sums.device)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
            dist.all_reduce(work)
        tokens, flops = work.tolist()
        means = (sums[:, 0] / sums[:, 1].clamp_min(1e-12)).tolist()
        optimizer = self.module.optimizers(use_pl_optimizer=False)
        return {
            "epoch": self.progress.epoch + 1,
            "step": self.progress.step,
            **{f"train_{name}": mean for name, mean in zip(names, means, strict=True)},
            "lr": optimizer.param_groups[0]["lr"],  # type: ignore[union-attr]
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            **utilisation(flops, seconds, sums.device, self.config.precision),
        }

    def _judge(self, results: dict[str, float]) -> bool:
        """Count the evaluation for early stopping; whether it is the best one."""
        if self.task.monitor not in results:
            raise ConfigError(
                f"the task monitors {self.task.monitor!r}, but its evaluation gives {', '.join(results) or 'nothing'}",
                "tell the plugin's author",
            )
        value = results[self.task.monitor]
        if self.progress.is_better(value, self.task.mode):
            self.progress.best, self.progress.best_epoch, self.progress.waited = value, self.progress.epoch, 0
            return True
        self.progress.waited += 1
        return False

    def _results(self) -> dict[str, Any]:
        if self.valid is None:
            self.progress.best_epoch = self.progress.epoch
        return {"best_epoch": self.progress.best_epoch, "steps": self.progress.step, "valid": self.latest}

    # ------------------------------------------------------------------ bad losses
    def _watch(self, what: str, value: Tensor) -> None:
        """Keep a number that must be finite; on a GPU many are looked at together, as each look waits for it."""
        self._seen.setdefault(what, []).append((self.progress.step + 1, value.detach()))
        if value.device.type == "cpu" or self.sampler.position % _LOOK == 0:
            self._check()

    def _check(self) -> None:
        seen, self._seen = self._seen, {}
        for what, pairs in seen.items():
            values = torch.stack([value for _, value in pairs]).tolist()
            step, value = next((p for p in zip([s for s, _ in pairs], values) if not math.isfinite(p[1])), (0, 0.0))
            if not step:
                continue
            saved = (self.folder.path / "last").exists()
            kept = f"the last good checkpoint is {self.folder.path / 'last'}; " if saved else ""
            raise UserError(
                f"the {what} is {value} in epoch {self.progress.epoch + 1}, step {step}",
                f"{kept}lower train.lr, set train.clip or a longer train.warmup, and look for NaN in the data",
            )

    # ------------------------------------------------------------------ checkpoints and interruption
    def _task_state(self, trainer: Trainer) -> dict[str, Tensor]:
        """The whole task's tensors; with a sharded model on the first process only."""
        self._check()
        if not self.module.sharded:
            return self.task.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.task, options=options)  # type: ignore[return-value]

    def _optimizer_state(self, trainer: Trainer) -> dict[str, Any]:
        optimizer = trainer.optimizers[0]
        if not self.module.sharded:
            return optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(self.task, optimizer, options=options)

    def _save_last(self, trainer: Trainer, state: dict[str, Tensor] | None = None) -> None:
        state = self._task_state(trainer) if state is None else state
        optimizer = self._optimizer_state(trainer)
        mine = {"rng": get_rng(), "progress": self.progress.state_dict()}
        every: list[Any] = [mine]
        if trainer.world_size > 1:
            every = [None] * trainer.world_size
            dist.all_gather_object(every, mine)
        trainer_state = {
            "progress": [one["progress"] for one in every],
            "rng": [one["rng"] for one in every],
            "sampler": self.sampler.state_dict(),
            "optimizer": optimizer,
            **({} if self.average is None else {"average": self.average.state()}),
        }
        results = {"epoch": self.progress.epoch, **self._results()}
        self.folder.save("last", state, results=results, trainer=trainer_state)
        trainer.strategy.barrier("saved")

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.console.line("stopping after this step (once more: at once, without saving)")

    def _stopping(self, trainer: Trainer, always: bool = False) -> bool:
        """Whether to stop now; all processes answer alike."""
        reached = self.stop_at is not None and self.progress.step >= self.stop_at
        if trainer.world_size == 1:
            return reached or self.asked
        if not (always or self.progress.step % _AGREE == 0):
            return reached
        return trainer.strategy.reduce_boolean_decision(reached or self.asked, all=False)
