"""Training: the arithmetic of a step, exact resumption, early stopping, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml

from seqgraph.config import TrainConfig
from seqgraph.errors import CheckpointError, ConfigError, DataError, UserError
from seqgraph.train import checkpoint, fit
from seqgraph.train.batching import TokenBatches
from seqgraph.train.optimize import learning_rate, timed_learning_rate, undecayed
from seqgraph.train.run import evaluate, train
from seqgraph.train.state import Interrupted, seed_everything

TOY = Path(__file__).with_name("toy_plugin.py")
NOISY = {"model__dropout": 0.2, "model__noise": 0.1, "data__jitter": 0.1, "train__accumulate": 2}


def weights(run, which="last"):
    return checkpoint.read_tensors(Path(run) / which / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def log(run):
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def plain_loop(toy, steps_of_epochs, config):
    """Training without Lightning: each step is the mean over all examples of its batches, AdamW written out."""
    seed_everything(0)
    model = toy.ToyModel(toy.WIDTH)
    data = toy.ToyData()
    mean = data.split("train").targets.mean()
    decay = {"inner.weight": config.weight_decay, "head.weight": config.weight_decay}
    first = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    second = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    total = len(steps_of_epochs[0]) * len(steps_of_epochs)
    step = 0
    for steps in steps_of_epochs:
        for indices in steps:
            batch = data.collate([data.split("train")[i] for i in indices])
            loss = (model(batch.stream) + mean - batch.targets).square().mean()
            grads = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
            rate = learning_rate(config, step, total)
            step += 1
            with torch.no_grad():
                for name, p in model.named_parameters():
                    g = grads[name] * min(1.0, config.clip / norm)
                    first[name] = 0.9 * first[name] + 0.1 * g
                    second[name] = 0.999 * second[name] + 0.001 * g * g
                    p -= rate * decay.get(name, 0.0) * p
                    hat = second[name] / (1 - 0.999**step)
                    p -= rate * first[name] / (1 - 0.9**step) / (hat.sqrt() + 1e-8)
    return model.state_dict()


def batches_of(toy, config, world=1):
    """For each epoch the examples of each batch, in the order of the processes."""
    lengths, epochs = toy.ToyData().lengths("train"), []
    for epoch in range(config.epochs):
        shares = []
        for rank in range(world):
            sampler = TokenBatches(lengths, config.max_tokens, seed=0, rank=rank, world=world)
            sampler.seek(epoch)
            shares.append([key.indices for key in sampler])
        epochs.append([indices for step in zip(*shares) for indices in step])
    return epochs


def grouped(epochs, n):
    return [[[*chain(*batches[i : i + n])] for i in range(0, len(batches), n)] for batches in epochs]


def close(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_the_mean_over_its_examples(toy, toy_config, tmp_path, accumulate):
    changes = {"clip": 0.3, "weight_decay": 0.1, "warmup": 2, "epochs": 2, "accumulate": accumulate}
    config = TrainConfig(**{**toy_config()["train"], **changes})
    epochs = batches_of(toy, config)
    assert len({len(batch) for batch in epochs[0]}) > 1  # or weighting by size would not show
    assert len(epochs[0]) % 3, "the last step of an epoch has fewer batches"
    train(toy_config(train=config.model_dump()), output=tmp_path / "run", quiet=True)
    assert close(weights(tmp_path / "run"), plain_loop(toy, grouped(epochs, accumulate), config)) < 1e-5
    assert log(tmp_path / "run")[-1]["step"] == sum(map(len, grouped(epochs, accumulate)))


def test_two_processes_do_what_one_does(toy, toy_config, tmp_path):
    raw = toy_config(train__clip=0.3, train__epochs=2)
    config = TrainConfig(**raw["train"])
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(raw))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seqgraph", "-p", str(TOY)]
    command += ["train", str(tmp_path / "toy.yaml"), "-o", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/2") == 1, "only the first process prints"
    epochs = batches_of(toy, config, world=2)
    assert close(weights(tmp_path / "two"), plain_loop(toy, grouped(epochs, 2), config)) < 1e-5
    # Validation and test saw every example once, whichever process had it.
    results = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert evaluate(tmp_path / "two")["mse"] == pytest.approx(results["test"]["mse"], abs=1e-6)
    assert evaluate(tmp_path / "two", "valid")["loss"] == pytest.approx(results["valid"]["mse"], abs=1e-6)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Makes a run that nobody interrupts, once for the tests that compare with it."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"

    def make(config):
        if not folder.exists():
            train(config, output=folder, quiet=True)
        return folder

    return make


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


def finish_and_compare(run, whole):
    train(run, output=run, resume=True, quiet=True)
    assert same(weights(run), weights(whole)) and same(weights(run, "best"), weights(whole, "best"))
    assert without_times(log(run)) == without_times(log(whole))
    mine, its = (checkpoint.load_trainer(r / "last") for r in (run, whole))
    assert all(torch.equal(mine["optimizer"]["state"][i]["exp_avg_sq"], its["optimizer"]["state"][i]["exp_avg_sq"])
               for i in its["optimizer"]["state"])  # fmt: skip
    results = [json.loads((r / "metrics.json").read_text()) for r in (run, whole)]
    assert results[0]["test"] == results[1]["test"] and results[0]["best_epoch"] == results[1]["best_epoch"]


def test_resumed_run_is_the_unbroken_run_bit_by_bit(toy_config, tmp_path, unbroken):
    whole = unbroken(toy_config(**NOISY))
    per_epoch = log(whole)[0]["step"]
    assert per_epoch > 3
    run = tmp_path / "run"
    with pytest.raises(Interrupted) as stop:  # in mid epoch
        train(toy_config(**NOISY), output=run, quiet=True, stop_after=per_epoch + 2)
    assert stop.value.step == per_epoch + 2 and stop.value.folder == run
    assert not same(weights(run), weights(whole))
    torch.manual_seed(1234)
    with pytest.raises(Interrupted):  # at an epoch's end
        train(run, output=run, resume=True, quiet=True, stop_after=per_epoch - 2)
    assert len(log(run)) == 2
    finish_and_compare(run, whole)


def test_ctrl_c_saves_and_says_how_to_go_on(toy_config, tmp_path, unbroken):
    whole = unbroken(toy_config(**NOISY))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_config(**NOISY)))
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "seqgraph", "-p", str(TOY), "train", str(tmp_path / "toy.yaml"), "-o", str(run)],
        capture_output=True,
        text=True,
        timeout=120,
        # The ninth batch is the first half of the fifth step: the step is finished first.
        env={**os.environ, "TOY_INTERRUPT_AT": "9", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 130, done.stderr
    assert f"seqgraph train {run} --resume" in done.stderr and "Traceback" not in done.stderr
    state = checkpoint.load_trainer(run / "last")
    assert state["progress"][0]["step"] == 5
    finish_and_compare(run, whole)


def test_interrupt_twice_stops_at_once(toy_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_INTERRUPT_AT", "3")
    monkeypatch.setenv("TOY_INTERRUPT_TIMES", "2")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(toy_config(), output=tmp_path / "run", quiet=True)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "run" / "last").exists()


def test_a_file_is_no_run(toy_config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        train(toy_config(), output=tmp_path / "run", quiet=True)


def test_resuming_what_is_finished_changes_nothing(toy_config, tmp_path, unbroken, capsys):
    whole = unbroken(toy_config(**NOISY))
    before = (whole / "metrics.json").read_text(), weights(whole)
    capsys.readouterr()
    result = train(whole, output=whole, resume=True)
    assert "finished already" in capsys.readouterr().out
    assert (whole / "metrics.json").read_text() == before[0] and same(weights(whole), before[1])
    assert result.metrics[0] == json.loads(before[0])["test"]


def test_fewer_epochs_than_are_behind_are_refused(toy_config, unbroken):
    whole = unbroken(toy_config(**NOISY))
    before = (whole / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"epochs behind it; train\.epochs=1 is fewer"):
        train(toy_config(**{**NOISY, "train__epochs": 1}), output=whole, resume=True, quiet=True)
    assert (whole / "config.json").read_text() == before


def test_a_run_from_before_a_setting_was_there_can_be_resumed(toy_config, tmp_path, unbroken):
    whole, run = unbroken(toy_config(**NOISY)), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(toy_config(**NOISY), output=run, quiet=True, stop_after=5)
    for path in run.rglob("config.json"):
        held = json.loads(path.read_text())
        for key in ("ema", "level", "replay"):
            held["run"]["train"].pop(key, None)
        path.write_text(json.dumps(held))
    finish_and_compare(run, whole)


def test_only_the_same_run_can_be_resumed(toy_config, tmp_path, unbroken):
    whole = unbroken(toy_config(**NOISY))
    with pytest.raises(ConfigError, match=r"train\.lr \(0\.01, now 0\.5\)"):
        train(toy_config(**NOISY, train__lr=0.5), output=whole, resume=True, quiet=True)
    with pytest.raises(ConfigError, match="in use"):
        train(toy_config(**NOISY), output=whole, quiet=True)
    with pytest.raises(ConfigError, match="no run to resume"):
        train(toy_config(), output=tmp_path / "nothing", resume=True, quiet=True)


def test_longer_training_goes_on_from_the_end(toy_config, tmp_path):
    flat = {"train__schedule": "constant", "train__warmup": 0}
    train(toy_config(**flat, train__epochs=2), output=tmp_path / "a", quiet=True)
    train(toy_config(**flat), output=tmp_path / "a", resume=True, quiet=True)
    train(toy_config(**flat), output=tmp_path / "b", quiet=True)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b")) and len(log(tmp_path / "a")) == 3


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_early_stopping_and_best(toy_config, tmp_path):
    """The metric worsens from the first evaluation on; every second epoch is evaluated."""
    config = toy_config(task__worsen=True, train__patience=2, train__eval_every=2, train__epochs=20)
    train(config, output=tmp_path / "run", quiet=True)
    rows = log(tmp_path / "run")
    assert [("valid_mse" in row) for row in rows] == [False, True] * 3
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["best_epoch"] == 2 and results["epochs"] == 6 and results["valid"]["mse"] == 1.0
    with open(tmp_path / "run" / "log.csv") as file:
        assert len(file.readlines()) == 7


def test_max_steps_at_the_end_of_an_epoch_is_evaluated(toy_config, tmp_path):
    train(toy_config(train__epochs=1), output=tmp_path / "one", quiet=True)
    steps = log(tmp_path / "one")[0]["step"]
    train(toy_config(train__eval_every=5, train__max_steps=steps), output=tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["best_epoch"] == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("worsen", [False, True])
def test_max_steps_cuts_an_epoch_and_more_steps_go_on_exactly(toy_config, tmp_path, worsen):
    """The cut epoch is evaluated, and may hold the best weights, but leaves no trace in a run that goes on."""
    config = {**NOISY, "train__schedule": "constant", "train__warmup": 0, "task__worsen": worsen}
    train(toy_config(**config), output=tmp_path / "whole", quiet=True)
    per_epoch = log(tmp_path / "whole")[0]["step"]
    run = tmp_path / "run"
    for steps in (2, per_epoch + 2):
        first = not run.exists()
        train(toy_config(**config, train__max_steps=steps), output=run, resume=not first, quiet=True)
        rows = log(run)
        assert rows[-1]["step"] == steps and "valid_mse" in rows[-1] and len(rows) == 1 + (steps > per_epoch)
        assert json.loads((run / "metrics.json").read_text())["steps"] == steps
    train(toy_config(**config), output=run, resume=True, quiet=True)
    assert same(weights(run), weights(tmp_path / "whole"))
    if not worsen:  # that metric counts its evaluations
        assert same(weights(run, "best"), weights(tmp_path / "whole", "best"))
        assert without_times(log(run)) == without_times(log(tmp_path / "whole"))
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_several_seeds(toy_config, tmp_path, capsys):
    run = tmp_path / "run"
    result = train(toy_config(seed=[0, 3], train__epochs=1), output=run)
    values = [m["mse"] for m in result.metrics]
    mean = sum(values) / 2
    assert result.mean["mse"] == pytest.approx(mean)
    assert result.std["mse"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values)))
    assert values[0] != values[1]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seeds"] == [0, 3] and summary["baseline"]["mse"] > 0
    assert f"{mean:.4f} ± {result.std['mse']:.4f}" in capsys.readouterr().out
    assert evaluate(run / "seed-3")["mse"] == pytest.approx(values[1], abs=1e-7)
    again = train(run, output=run, resume=True, quiet=True)
    assert again.metrics == result.metrics
    with pytest.raises(CheckpointError, match="seed-0, seed-3"):
        evaluate(run)


def test_results_beside_the_weights(toy_config, tmp_path, toy):
    result = train(toy_config(train__epochs=8, train__lr=3e-2), output=tmp_path / "run", quiet=True)
    beside = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert beside == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert beside["test"]["mse"] == result.mean["mse"] < beside["baseline"]["mse"] == result.baseline["mse"]
    card = (tmp_path / "run" / "best" / "MODEL_CARD.md").read_text()
    assert "toy-48-0" in card and f"{beside['test']['mse']:.4g}" in card
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.assets == {"words": ["α", "b"]}
    # The model alone, on raw input, gives the metric that is written down.
    data = toy.ToyData()
    batch = data.collate([data.split("test")[i] for i in range(len(data.split("test")))])
    output = loaded(batch.stream).detach() + data.split("train").targets.mean()
    assert float((output - batch.targets).square().mean()) == pytest.approx(result.mean["mse"], abs=1e-6)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(toy_config, tmp_path):
    whole = toy_config(task__fail_at=14)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 2, step 14") as error:
        train(whole, output=tmp_path / "run", quiet=True)
    assert "last" in error.value.hint and "train.lr" in error.value.hint
    assert all(bool(torch.isfinite(v).all()) for v in weights(tmp_path / "run").values())
    assert len(log(tmp_path / "run")) == 1


def test_a_full_disk_keeps_the_checkpoint_before(toy_config, tmp_path, monkeypatch):
    import errno

    run, write, calls = tmp_path / "run", checkpoint.write_tensors, []

    def full_at_the_second_epoch(path, state):
        calls.append(path)
        if "last" in str(path) and sum("last" in str(p) and p.name == "model.safetensors" for p in calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full_at_the_second_epoch)
        with pytest.raises(CheckpointError, match="disk is full"):
            train(toy_config(), output=run, quiet=True)
    assert sorted(p.name for p in run.iterdir()) == ["best", "config.json", "last", "log.csv", "log.jsonl"]
    assert checkpoint.load_trainer(run / "last")["progress"][0]["epoch"] == 1
    train(toy_config(), output=tmp_path / "whole", quiet=True)
    finish_and_compare(run, tmp_path / "whole")


def test_what_the_machine_does_not_have(toy_config, tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="there is no GPU"):
            train(toy_config(train__accelerator="gpu"), output=tmp_path / "a", quiet=True)
    with pytest.raises(ConfigError, match="needs as many processes") as error:
        train(toy_config(train__devices=2), output=tmp_path / "a", quiet=True)
    assert "torchrun --nproc-per-node 2" in error.value.hint
    with pytest.raises(ConfigError, match="fsdp with one process"):
        train(toy_config(train__strategy="fsdp"), output=tmp_path / "a", quiet=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
@pytest.mark.parametrize(("device", "backend"), [("cpu", None), ("cuda", "cpu:gloo,cuda:nccl")])
def test_processes_on_gpus_can_also_gather_what_is_not_there(strategy, device, backend, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fit, "device_type", lambda config: device)
    chosen = fit._trainer_arguments(TrainConfig(strategy=strategy))["strategy"]
    assert chosen.process_group_backend == backend


def test_empty_splits(toy_config, tmp_path):
    with pytest.raises(DataError, match="train split"):
        train(toy_config(data__n=0), output=tmp_path / "a", quiet=True)
    # Two examples leave none to validate and to test on: the last epoch is the best.
    result = train(toy_config(data__n=2), output=tmp_path / "b", quiet=True)
    assert result.metrics == ({},)
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["best_epoch"] == 3


def test_bf16_trains(toy_config, tmp_path):
    result = train(toy_config(train__precision="bf16", train__epochs=1), output=tmp_path / "run", quiet=True)
    assert math.isfinite(result.mean["mse"])
    assert all(v.dtype == torch.float32 for v in weights(tmp_path / "run").values())


def test_learning_rate():
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup=10, schedule="cosine")
    rates = [learning_rate(config, step, 110) for step in range(120)]
    assert rates[:2] == pytest.approx([0.1, 0.2]) and max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[110:] == pytest.approx([0.1] * 10)
    share = TrainConfig(lr=1.0, warmup=0.1, schedule="linear")
    assert learning_rate(share, 9, 100) == 1.0 and learning_rate(share, 55, 100) == pytest.approx(0.5)
    flat = TrainConfig(lr=2.0, warmup=0, schedule="constant")
    assert {learning_rate(flat, step, 7) for step in range(9)} == {2.0}


def test_a_training_by_the_clock(toy_config, tmp_path):
    """The schedule ends when the time does, at an epoch's end that is evaluated; a stop in between costs no time."""
    config = toy_config(train__epochs=100_000, train__seconds=1.5, train__lr=1.0, train__warmup=0, train__eval_every=7)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, output=run, quiet=True, stop_after=4)
    train(config, output=run, resume=True, quiet=True)
    rows = log(run)
    assert sum(row["seconds"] for row in rows) > 1.2 and len(rows) < 100_000
    rates = [row["lr"] for row in rows]
    assert rates[0] > 0.9 and rates == sorted(rates, reverse=True) and rates[-1] < 0.05
    assert "valid_mse" in rows[-1] and (run / "metrics.json").is_file()
    half = TrainConfig(lr=1.0, warmup=0.5, schedule="linear")
    assert [timed_learning_rate(half, x) for x in (0.25, 0.5, 0.75, 1, 9)] == pytest.approx(
        [0.5, 1, 0.5, 0, 0], abs=1e-5
    )


def test_a_warm_up_in_steps_has_no_place_on_a_clock(toy_config, tmp_path):
    with pytest.raises(ConfigError, match="warm-up in steps"):
        train(toy_config(train__seconds=1.0, train__warmup=5), output=tmp_path / "run", quiet=True)


def test_a_stop_between_evaluations_is_saved(toy_config, tmp_path):
    """``last`` is saved with each evaluation, and when the run is asked to stop."""
    train(toy_config(train__epochs=1), output=tmp_path / "one", quiet=True)
    steps = log(tmp_path / "one")[0]["step"]
    with pytest.raises(Interrupted):
        train(toy_config(train__eval_every=2, train__epochs=5), output=tmp_path / "run", quiet=True, stop_after=steps)
    assert checkpoint.read_json(tmp_path / "run" / "last" / "metrics.json")["epoch"] == 1


def test_what_has_no_weight_decay(toy):
    assert undecayed(toy.ToyModel(4)) == {"inner.bias", "norm.weight", "norm.bias", "head.bias", "scale"}
