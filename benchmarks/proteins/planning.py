"""How many steps trainings that share a GPU can take, so that all end together: measured, then counted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import say, tail

FAMILIES = ("lc-plm", "esm2")


def planned(
    sizes: dict[str, str], together: dict[str, float], alone: dict[str, float], seconds: float
) -> dict[str, float]:
    """Tokens of each size, the same for all its models, with which the last of each size ends after so many seconds.

    A training's time for a token falls linearly with the trainings that have ended: from what it is while all run to
    what it is when only those in ``alone`` are left.

    Args:
        sizes: of each training by name.
        together: tokens a second of each while all run.
        alone: of the slower ones, once the faster ones have ended.
        seconds: that there are.
    """
    gain = [alone[name] / together[name] for name in alone]
    gone = max(len(together) - len(alone), 1)
    # Of the time for a token, what each training that ends takes away.
    relief = max(0.0, (1 - len(gain) / sum(gain)) / gone) if gain else 0.0
    target = {size: seconds * min(together[n] for n in together if sizes[n] == size) for size in set(sizes.values())}
    for _ in range(40):
        left, ends, now = {name: target[sizes[name]] for name in together}, {}, 0.0
        while left:
            speed = 1 / (1 - relief * min(len(ends), gone))
            first = min(left, key=lambda name: left[name] / together[name])
            took = left[first] / (together[first] * speed)
            now += took
            left = {name: rest - took * together[name] * speed for name, rest in left.items() if name != first}
            ends[first] = now
        last = {size: max(end for name, end in ends.items() if sizes[name] == size) for size in target}
        target = {size: tokens * (seconds / last[size]) ** 0.7 for size, tokens in target.items()}
    # What is left of the error is not to be late.
    return {size: tokens * min(1.0, seconds / last[size]) for size, tokens in target.items()}


def calibrate(
    folder: Path,
    sizes: dict[str, str],
    processes: dict[str, Any],
    windows: tuple[float, float],
    ready: float,
    until: float,
    margin: float,
    most: dict[str, int] | None = None,
    floor: int = 20,
) -> dict[str, int]:
    """The number of steps of each size, once the processes are warm: those that live and are so by the time ``ready``.

    Args:
        folder: of the stage.
        sizes: of each training by name.
        processes: by name.
        windows: seconds of measuring all, and the slower family of each size.
        ready: who is not warm by then is not measured, and starts with the plan.
        until: the time at which all should have trained.
        margin: share of the time until then that the plan leaves unused.
        most: steps of a size at most.
        floor: steps at least, if that is not more.

    Raises:
        TimeoutError: when none is warm.
    """

    def read(file: str, who: list[str], until: float) -> dict[str, dict[str, Any]]:
        missing = list(who)
        while missing and time.monotonic() < until:
            missing = [n for n in missing if not (folder / n / file).is_file() and processes[n].poll() is None]
            time.sleep(0.02)
        return {n: json.loads((folder / n / file).read_text()) for n in who if (folder / n / file).is_file()}

    def rates(number: int, who: list[str], seconds: float) -> dict[str, float]:
        say(folder / f"window-{number}.json", {"who": who, "until": time.monotonic() + seconds})
        return {name: told["rate"] for name, told in read(f"rate-{number}.json", who, until).items()}

    warmed = read("warm.json", list(processes), ready)
    while not warmed and time.monotonic() < until and any(process.poll() is None for process in processes.values()):
        warmed = read("warm.json", list(processes), min(until, time.monotonic() + 1))
    together = rates(0, list(warmed), windows[0])
    if late := [name for name in processes if name not in together]:
        print(f"not ready in time: {', '.join(late)}\n{tail(folder / late[0] / 'log.txt')}", flush=True)
    if not together:
        raise TimeoutError("no training is ready")
    slow = [
        name for size in set(sizes.values()) for name in slower({n: together[n] for n in together if sizes[n] == size})
    ]
    alone = rates(1, slow, windows[1])
    seconds = (until - time.monotonic()) * (1 - margin)
    tokens = planned({n: sizes[n] for n in together}, together, alone, seconds)
    step = sum(told["tokens"] for told in warmed.values()) / len(warmed)
    # A size of which nothing was ready in time: as many as the others.
    steps = {s: max(floor, int(tokens.get(s, min(tokens.values())) / step)) for s in sorted(set(sizes.values()))}
    steps = {size: min(many, (most or {}).get(size, many)) for size, many in steps.items()}
    say(folder / "plan.json", {"steps": steps, "together": together, "slower alone": alone, "seconds": seconds})
    return steps


def replan(
    folder: Path,
    number: int,
    sizes: dict[str, str],
    processes: dict[str, Any],
    until: float,
    margin: float,
    most: dict[str, int] | None = None,
) -> dict[str, int]:
    """The number of steps of each size once more, from how long those since the last plan took.

    Every model waits at the same step for this plan, so that all of a size keep one schedule and the same tokens: none
    can be past the end of a shorter plan, whichever is the slower one and whatever else has come to the GPU.

    Args:
        folder: of the stage; gets replan-NUMBER.json.
        number: of the pause, from 0.
        sizes: of each training by name.
        processes: by name; each says how long its last steps took, and waits. Who has ended is not waited for.
        until: the time at which all should have trained.
        margin: share of the time until then that the plan leaves unused.
        most: steps of a size at most.
    """
    file = f"settled-{number}.json"

    def told() -> dict[str, dict[str, Any]]:
        return {n: json.loads(f.read_text()) for n in processes if (f := folder / n / file).is_file()}

    while time.monotonic() < until and any(processes[n].poll() is None for n in processes.keys() - told().keys()):
        time.sleep(0.05)
    steps, said = dict(latest(folder)["steps"]), told()
    rates = {name: one["taken"] / one["seconds"] for name, one in said.items() if one["taken"]}
    # The slower one's last steps were taken while the others waited: nothing more is gained by those that end.
    seconds = max(0.0, until - time.monotonic()) * (1 - margin)
    for size, more in (planned({n: sizes[n] for n in rates}, rates, {}, seconds) if rates else {}).items():
        done = max(one["steps"] for name, one in said.items() if sizes[name] == size)
        steps[size] = max(done + 1, min(done + int(more), (most or {}).get(size, done + int(more))))
    say(folder / f"replan-{number}.json", {"steps": steps, "steps a second": rates, "seconds": seconds})
    return steps


def latest(folder: Path) -> dict[str, Any]:
    """The last plan that was made."""
    number = 0
    while (folder / f"replan-{number}.json").is_file():
        number += 1
    return json.loads((folder / (f"replan-{number - 1}.json" if number else "plan.json")).read_text())


def slower(rates: dict[str, float]) -> list[str]:
    """The trainings of the family with the lower mean rate."""
    mean = {f: [rate for name, rate in rates.items() if name.startswith(f)] for f in FAMILIES}
    slowest = min((f for f in FAMILIES if mean[f]), key=lambda f: sum(mean[f]) / len(mean[f]), default="")
    return [name for name in rates if name.startswith(slowest)] if slowest else []
