"""Training. With its neighbour :mod:`seqgraph.train.callbacks` the only module that knows Lightning.

Lightning runs the steps, over one device or several. The place in the data, the learning rate, evaluation and
checkpoints are ours, so that they are the same with every version and strategy of it.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from seqgraph.config import TrainConfig
from seqgraph.errors import ConfigError, UserError
from seqgraph.train.batching import BatchKey, BatchSource, TokenBatches, token_batches
from seqgraph.train.callbacks import Conductor, Stop
from seqgraph.train.console import Console
from seqgraph.train.evaluation import sums_of
from seqgraph.train.memory import no_memory
from seqgraph.train.optimize import learning_rate, parameter_groups, timed_learning_rate, undecayed
from seqgraph.train.replay import CudaRecorder, LevelReplays, Replays, check, own_stream
from seqgraph.train.state import Interrupted, Progress
from seqgraph.train.store import RunFolder
from seqgraph.train.task import Dataset, Task


class Module(LightningModule):
    """Lightning's view of a task.

    A step's loss is the mean over all its items, however many batches and processes they are spread over: each
    batch's mean is weighted by its ``size``, and the gradient divided by the sum of sizes.

    Args:
        task: what is trained.
        config: how.
        loader: the training batches.
        progress: counts the steps.
        world: the number of processes.
        say: tells a person of a step that cannot be replayed.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        loader: DataLoader,
        progress: Progress,
        *,
        world: int,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        self.task, self.settings, self.loader, self.progress = task, config, loader, progress
        self.parts, self.sharded = world * config.accumulate, config.strategy == "fsdp"
        self.undecayed = undecayed(task)
        steps = math.ceil(loader.sampler.total(0) / config.accumulate) * config.epochs  # type: ignore[attr-defined]
        self.total_steps = min(steps, config.max_steps or steps)
        self.stepped, self.norm = False, torch.zeros(())
        self.elapsed: Callable[[], float] = lambda: 0.0  # seconds of training; the conductor has the clock
        self.say = say
        self.replays: Replays | None = None
        # a step that is replayed is no call of Lightning's
        self.automatic_optimization = not config.replay
        self._sizes: list[Tensor] = []
        self._clipped: list[nn.Parameter] | None = None

    def configure_model(self) -> None:
        """Shard over the processes, when asked to, by blocks and then the rest."""
        if not self.sharded or getattr(self, "_is_sharded", False):
            return
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for child in list(self.task.modules()):
            if isinstance(child, nn.ModuleList):
                for block in child:
                    # A leaf's weights may be read without calling it, as an embedding's are.
                    if next(block.children(), None) is not None:
                        fully_shard(block, mesh=mesh)
        fully_shard(self.task, mesh=mesh)
        for method in ("training_step", "evaluation_step"):
            register_fsdp_forward_method(self.task, method)
        self._is_sharded = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; its learning rate is set before each step."""
        groups = parameter_groups(self.task, self.settings.weight_decay, self.undecayed)
        # One launch for all parameters, where they are on a GPU.
        fused = all(p.is_cuda for group in groups for p in group["params"]) or None
        return torch.optim.AdamW(groups, lr=self.settings.lr, betas=self.settings.betas, fused=fused)

    def train_dataloader(self) -> DataLoader:
        """Asked for again at the start of each epoch: epochs differ in their number of batches."""
        if self.automatic_optimization:
            return self.loader
        return DataLoader(_Keys(), None, sampler=self.loader.sampler, generator=self.loader.generator)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches move themselves: from page-locked memory, where they can, the host need not wait for the GPU."""
        if isinstance(batch, BatchKey):
            return batch
        there = getattr(batch, "device", torch.device("cpu"))
        if device.type == "cuda" and there.type == "cpu" and hasattr(batch, "pin_memory"):
            return batch.pin_memory().to(device, non_blocking=True)
        return batch.to(device)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One batch. For the name of one whose step may be replayed all is done here, the optimiser's step too."""
        if self.automatic_optimization:
            return self.forward_step(batch)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        outputs = self._replays().step(batch)
        self.on_before_optimizer_step(optimizer)
        self.configure_gradient_clipping(optimizer)
        optimizer.step()
        return outputs

    def _replays(self) -> Replays:
        if self.replays is None:
            recorder = CudaRecorder(self.device) if self.device.type == "cuda" else None
            parameters = list(self.task.parameters())
            kind = LevelReplays if self.settings.level else Replays
            self.replays = kind(self._batch, self.forward_step, parameters, recorder=recorder, say=self.say)
        return self.replays

    def _batch(self, key: BatchKey) -> Any:
        source: BatchSource = self.loader.dataset  # type: ignore[assignment]
        batch = source.data.leveled(source[key]) if self.settings.level else source[key]
        return self.transfer_batch_to_device(batch, self.device, 0)

    def forward_step(self, batch: Any) -> dict[str, Tensor]:
        """The loss of one batch, and what is logged of it."""
        output = dict(self.task.training_step(batch))
        loss = output["loss"]
        size = _beside(output.pop("size", 1), loss)
        sums = {name: sums_of(value, size) for name, value in output.items() if torch.as_tensor(value).numel() == 1}
        if self.parts > 1:
            self._sizes.append(size.to(loss.dtype))
            loss = loss * size
        return {"loss": loss, **{f"sum_{name}": value for name, value in sums.items()}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate; turn the sum of the batches' gradients into the mean over their items."""
        if self.settings.seconds is None:
            rate = learning_rate(self.settings, self.progress.step, self.total_steps)
        else:
            rate = timed_learning_rate(self.settings, self.elapsed() / self.settings.seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.stepped = True
        if self.parts > 1:
            size = torch.stack(self._sizes).sum()
            self._sizes.clear()
            # Lightning has divided by the batches of a full step, DDP by the processes.
            scale = self.parts / self.trainer.strategy.reduce(size, reduce_op="sum").clamp_min(1)
            for parameter in self.task.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip the norm over all parameters, and keep it to be looked at."""
        if self._clipped is None:  # a walk through all modules; sharding has replaced what was there at first
            self._clipped = list(self.task.parameters())
        norm = nn.utils.clip_grad_norm_(self._clipped, self.settings.clip or math.inf)
        self.norm = norm.full_tensor() if self.sharded else norm  # type: ignore[attr-defined]


class _Keys(torch.utils.data.Dataset):
    """Batches' names in the place of batches."""

    def __getitem__(self, key: Any) -> Any:
        return key


def _beside(size: Any, loss: Tensor) -> Tensor:
    """A number where the loss is; one that the host knows is filled in there, as copying it would wait for the GPU."""
    if isinstance(size, Tensor) and size.device == loss.device:
        return size.detach()
    size = torch.as_tensor(size)
    return torch.full((), size.item(), dtype=size.dtype, device=loss.device)


def _leave_group() -> None:
    """Lightning leaves NCCL's group at the end, and no other; gloo's threads then abort the process at times."""
    if dist.is_initialized():
        dist.destroy_process_group()


def fit(
    task: Task,
    data: Dataset,
    config: TrainConfig,
    *,
    seed: int,
    folder: RunFolder,
    console: Console,
    state: dict[str, Any] | None = None,
    stop_after: int | None = None,
) -> Progress:
    """Train a task on a data set, to the end or until it is interrupted.

    Args:
        task: set up, with its first weights, or those of the checkpoint to go on from.
        data: gives the splits "train" and "valid".
        config: how to train.
        seed: of the batches' order and of ``collate``.
        folder: takes the log and the checkpoints.
        console: takes the progress.
        state: the trainer's state of the checkpoint to go on from.
        stop_after: interrupt after so many steps.

    Returns:
        The counts at the end.

    Raises:
        ConfigError: when the machine does not have the devices that are asked for, for several processes or a
            warm-up in steps with ``train.seconds``, and for what ``train.replay`` does not go with.
        UserError: when the loss is not finite, or a GPU's memory does not suffice.
        Interrupted: when a signal came, or ``stop_after`` was reached; the state is saved.
        KeyboardInterrupt: when a second signal came; nothing is saved.
    """
    rank, world = shares(config)
    if config.seconds is not None and world > 1:
        raise ConfigError("train.seconds with several processes, whose clocks differ", "set train.epochs")
    if config.seconds is not None and config.warmup >= 1:
        raise ConfigError("train.seconds with a warm-up in steps", "set train.warmup to a share, below 1")
    check(config, world)
    progress = Progress.from_state(_mine(state, rank, world)) if state else Progress()
    loader = token_batches(
        data,
        "train",
        config.max_tokens,
        max_items=config.max_items,
        shuffle=True,
        seed=seed,
        keep=1 if config.level else max(1, config.replay),
        level=config.level,
        rank=rank,
        world=world,
        workers=config.workers,
    )
    sampler: TokenBatches = loader.sampler  # type: ignore[assignment]
    if state:
        sampler.load_state_dict(state["sampler"])
    if config.level:
        console.line(f"train.level: {sampler.level()} of an epoch's {sampler.total()} batches have equal sizes")
    valid = None
    if len(data.split("valid")):
        tokens = config.eval_tokens or config.max_tokens
        valid = token_batches(data, "valid", tokens, max_items=config.max_items, rank=rank, world=world)
    module = Module(task, config, loader, progress, world=world, say=console.line)
    conductor = Conductor(module, valid, folder, console, state=state, stop_after=stop_after)
    if conductor.finished:
        return progress
    conductor.limit()
    if world > 1:
        atexit.register(_leave_group)
    with _quiet(), own_stream(bool(config.replay) and device_type(config) == "cuda"):
        trainer = Trainer(
            **_trainer_arguments(config), max_epochs=config.epochs - progress.epoch, callbacks=[conductor]
        )
        try:
            trainer.fit(module)
        except Stop:
            raise Interrupted(folder.path, progress.step) from None
        except torch.OutOfMemoryError as error:
            raise UserError(*no_memory(config, data, progress, str(error))) from None
        except SystemExit as error:  # Lightning's answer to Ctrl-C; it leaves the signal ignored
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            conductor.teardown(trainer, module, "fit")
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        finally:
            module.replays = conductor.average = None  # and their memory: Lightning keeps hold of the trainer
    return progress


def _mine(state: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    if len(state["progress"]) != world:
        raise ConfigError(
            f"the run was begun with {len(state['progress'])} processes, here are {world}", "resume with as many"
        )
    return state["progress"][rank]


def shares(config: TrainConfig) -> tuple[int, int]:
    """This process's number, and how many there are; checks that the devices exist.

    Raises:
        ConfigError: naming what is not there and the command that helps.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not _torchrun():
        world = local = 1
        if config.devices > 1:
            raise ConfigError(
                f"train.devices={config.devices} needs as many processes",
                f"torchrun --nproc-per-node {config.devices} -m seqgraph train …",
            )
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        build = "this torch is built for the CPU" if torch.version.cuda is None else "torch sees none"
        raise ConfigError(f"train.accelerator=gpu, but there is no GPU: {build}", "train.accelerator=cpu, or auto")
    if device_type(config) == "cuda" and local > torch.cuda.device_count():
        raise ConfigError(
            f"{local} processes on {torch.cuda.device_count()} GPUs", "use torchrun --nproc-per-node less"
        )
    if config.strategy == "fsdp" and world == 1:
        raise ConfigError("train.strategy=fsdp with one process", "torchrun --nproc-per-node N -m seqgraph train …")
    return (int(os.environ["RANK"]) if world > 1 else 0), world


def device_type(config: TrainConfig) -> str:
    """ "cuda" or "cpu"."""
    return "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def _torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _trainer_arguments(config: TrainConfig) -> dict[str, Any]:
    world = int(os.environ["WORLD_SIZE"]) if _torchrun() else 1
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if _torchrun() else 1
    # NCCL moves what is on GPUs only, and counts, states of generators and metrics are not all there.
    backend = "cpu:gloo,cuda:nccl" if device_type(config) == "cuda" else None
    strategy: Any = "auto"
    if config.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            data_parallel_size=world, tensor_parallel_size=1, process_group_backend=backend
        )
    elif world > 1:
        strategy = DDPStrategy(process_group_backend=backend)
    return {
        "accelerator": "gpu" if device_type(config) == "cuda" else "cpu",
        "devices": local,
        "num_nodes": world // local,
        "strategy": strategy,
        # Otherwise Lightning would take a job scheduler's variables for its own.
        "plugins": None if _torchrun() else [LightningEnvironment()],
        "precision": "bf16-mixed" if config.precision == "bf16" else "32-true",
        "accumulate_grad_batches": config.accumulate,
        "deterministic": config.deterministic or None,
        "reload_dataloaders_every_n_epochs": 1,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_autolog_hparams": False,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Lightning's advertising, tips and the warnings about settings that we have chosen."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning(\..*)?")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
