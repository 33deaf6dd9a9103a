"""What is said where a GPU's memory does not suffice."""

from __future__ import annotations

from seqgraph.config import TrainConfig
from seqgraph.train.state import Progress
from seqgraph.train.task import Dataset


def no_memory(config: TrainConfig, data: Dataset, progress: Progress, said: str) -> tuple[str, str]:
    """What did not fit, and settings that need less; of training the same steps, where batches can be put together.

    Args:
        config: how it was trained.
        data: what was trained on.
        progress: how far.
        said: torch's message.

    Returns:
        A message and a hint.
    """
    longest, half = max(data.lengths("train"), default=0), max(1, config.max_tokens // 2)
    cures = []
    if longest > half:  # goes alone, whatever the budget
        cures.append(f"a smaller model, as one example alone has {longest} tokens")
    if longest < config.max_tokens:
        together = "" if config.replay else f" train.accumulate={2 * config.accumulate}"
        cures.append(f"train.max_tokens={half}{together}")
    if config.eval_tokens:
        cures.append(f"train.eval_tokens={max(1, config.eval_tokens // 2)} where it was an evaluation")
    if config.replay and not config.level:
        known = data.sizes("train") is not None
        cures.append("train.level=true train.replay=1, which keeps one recording" if known else "train.replay=0")
    where = f"epoch {progress.epoch + 1}, after step {progress.step}"
    batches = f"batches of up to {max(longest, config.max_tokens)} tokens: {said.partition('. GPU ')[0]}"
    return f"out of memory in {where}, with {batches}", f"in a new run: {', or '.join(cures)}"
