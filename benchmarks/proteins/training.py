"""One process of ``pretrain_gpu.py``: a training, timed before it begins, tested after it, and kept in fp16."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.processes import say, wait


def one(folder: Path) -> None:
    """The training that FOLDER/job.json describes: its speed, the number of steps from the runner, and the result."""
    import torch

    from seqgraph.config import load_config
    from seqgraph.errors import UserError
    from seqgraph.train import run as training
    from seqgraph.train.state import Interrupted

    # The trainer stops at the runner's signal; the tests that follow a training go on to their end.
    signal.signal(signal.SIGINT, lambda *_: None)
    # cuDNN makes a plan for each shape of a batch, and no two batches are alike.
    torch.backends.cuda.enable_cudnn_sdp(False)
    job = json.loads((folder / "job.json").read_text())
    tables = folder.parent.parent
    while not (tables / f"{job['stage']}.tsv").is_file():
        time.sleep(0.05)
    build = training.build_data
    # Read once: the training, its tests and the count of tokens would each read the table, seconds at a time.
    data = build(load_config(job["preset"], job["overrides"]))
    training.build_data = lambda config: data
    # The rates of a search that may still be going on.
    rate = job["lr"] if job["lr"] is not None else wait(folder.parent / "rates.json")[job["preset"]]
    words = [*job["overrides"], f"train.lr={rate}"]
    if not (folder.parent / "plan.json").is_file():
        measure(load_config(job["preset"], words), folder)
    steps = wait(folder.parent / "plan.json")["steps"][job["size"]]
    config, run = load_config(job["preset"], [*words, f"train.max_steps={steps}"]), folder / "run"
    again = (run / "last").is_dir()
    if not again:
        shutil.rmtree(run, ignore_errors=True)
    began, complete, failed = time.monotonic(), True, ""
    try:
        for number, share in enumerate(job["settle"]):
            settle(config, folder, number, min(steps - 1, math.ceil(share * steps)))
            steps, again = wait(folder.parent / f"replan-{number}.json")["steps"][job["size"]], True
            config = load_config(job["preset"], [*words, f"train.max_steps={steps}"])
        training.train(config, output=run, resume=again, quiet=True)
    except Interrupted:
        complete = False
    except UserError as error:  # a rate too large: the loss is not finite
        complete, failed = False, str(error)
    trained = round(time.monotonic() - began, 1)
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").is_file() else []
    log = [json.loads(line) for line in lines]
    found: dict[str, Any] = {"valid": {}, "test": {}, "long": {}, "baseline": {}}
    if (run / "metrics.json").is_file():
        found |= json.loads((run / "metrics.json").read_text())
    cuda = torch.cuda.is_available()
    taken = found.get("steps", steps_of(run))
    tokens = tokens_of(config, data, taken)
    facts = json.loads((run / "config.json").read_text())["facts"]

    def tell() -> None:
        say(folder / "result.json", {
            **{key: job[key] for key in ("preset", "size", "seed")}, "name": folder.name, "lr": rate, "steps": taken,
            "planned": steps, "complete": complete, "failed": failed, "seconds": trained,
            "tokens_per_second": log[-1].get("tokens_per_second") if log else round(tokens / max(trained, 0.1), 1),
            "tflop_per_second": log[-1].get("tflop_per_second") if log else None,
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "parameters": facts["parameters"], "proteins": facts["splits"]["train"],
            **{split: found[split] for split in ("valid", "test", "long")}, "unigram": found["baseline"].get("loss"),
            "curve": [[row["step"], round(row["train_loss"], 4), round(row.get("valid_loss", 0), 4)] for row in log],
            "tokens": tokens,
        })  # fmt: skip

    tell()
    if not (run / "last").is_dir() or failed:
        return
    if job["stage"] == "final":  # before the tests of one that was stopped, which may not end in time
        keep(run, folder / "half", complete)
    if not found["valid"]:  # stopped: tested where it stands, and told after each split
        for split in ("valid",) if job["stage"] == "tune" else ("valid", "test"):
            found[split] = training.evaluate(run / "last", split)
            tell()
    if job["stage"] == "final":
        long = [word.replace(f"{job['stage']}.tsv", "long.tsv") for word in words]
        training.build_data = lambda config: build(load_config(job["preset"], long))
        found["long"] = training.evaluate(weights(run, complete), "test")
        tell()


def settle(config: Any, folder: Path, number: int, steps: int) -> None:
    """Train until so many steps are done, if they are not yet, and say how long the last ones took."""
    from seqgraph.train.run import train
    from seqgraph.train.state import Interrupted

    note = folder / f"settled-{number}.json"
    if note.is_file():
        return
    began, done = time.monotonic(), steps_of(folder / "run")
    if done < steps:
        try:
            train(config, output=folder / "run", resume=done > 0, quiet=True, stop_after=steps - done)
        except Interrupted as stop:
            if stop.step < steps:  # the runner's signal
                raise
    say(note, {"steps": max(done, steps), "taken": max(0, steps - done), "seconds": time.monotonic() - began})


def steps_of(run: Path) -> int:
    """Steps that a run has behind it."""
    last = run / "last" / "metrics.json"
    return json.loads(last.read_text()).get("steps", 0) if last.is_file() else 0


def measure(config: Any, folder: Path) -> None:
    """Take training steps until the runner has a plan, and say how many tokens a second in each of its windows."""
    import torch

    from seqgraph.train.batching import token_batches
    from seqgraph.train.fit import device_type
    from seqgraph.train.optimize import parameter_groups, undecayed
    from seqgraph.train.run import build_data, build_task

    data = build_data(config)
    device = torch.device(device_type(config.train))
    task = build_task(config, data)[0].to(device).train()
    loader = token_batches(data, "train", config.train.max_tokens, shuffle=True, seed=config.seed[0])
    batches = [batch.to(device) for batch in islice(loader, 8)]
    mean = sum(batch.num_tokens for batch in batches) / len(batches)
    fused = device.type == "cuda" or None
    optimizer = torch.optim.AdamW(parameter_groups(task, 0.01, undecayed(task)), lr=1e-5, fused=fused)
    endless = cycle(batches)

    def step() -> int:
        batch = next(endless)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            loss = task.training_step(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch.num_tokens

    for _ in range(len(batches)):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    say(folder / "warm.json", {"tokens": mean})
    plan, window = folder.parent / "plan.json", 0
    while not plan.is_file():
        asked = folder.parent / f"window-{window}.json"
        if not asked.is_file():
            time.sleep(0.02)
            continue
        told = json.loads(asked.read_text())
        if folder.name in told["who"]:
            began, done = time.monotonic(), 0
            while time.monotonic() < told["until"]:
                done += step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            say(folder / f"rate-{window}.json", {"rate": done / (time.monotonic() - began)})
        window += 1


def tokens_of(config: Any, data: Any, steps: int) -> int:
    """Tokens in the first so many steps."""
    from seqgraph.train.batching import token_batches

    sampler: Any = token_batches(data, "train", config.train.max_tokens, shuffle=True, seed=config.seed[0]).sampler
    total, epoch = 0, 0
    while steps > 0:
        sampler.seek(epoch)
        many = min(steps, sampler.total())
        total += sum(sampler.tokens(i) for i in range(many))
        steps, epoch = steps - many, epoch + 1
    return total


def weights(run: Path, complete: bool) -> Path:
    """The checkpoint that a training's losses are of: the best one, or the last of a training that was stopped."""
    return run / "best" if complete and (run / "best").is_dir() else run / "last"


def keep(run: Path, target: Path, complete: bool) -> int:
    """The weights in fp16 and what is needed to load them, as a folder; its bytes of tensors."""
    from seqgraph.train.checkpoint import read_tensors, write_tensors

    best = weights(run, complete)
    whole = read_tensors(best / "model.safetensors")
    # A tied head is one tensor, and stays one.
    half = {id(value): value.half() if value.is_floating_point() else value for value in whole.values()}
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / "model.safetensors", {name: half[id(value)] for name, value in whole.items()})
    for name in ("config.json", "assets.json", "metrics.json", "MODEL_CARD.md"):
        shutil.copy(best / name, target / name)
    if (run / "metrics.json").is_file():  # with the test
        shutil.copy(run / "metrics.json", target / "metrics.json")
    return sum(value.nbytes for value in half.values())
