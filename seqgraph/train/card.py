"""The model card beside every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CARD = """# {model} on {data}

{summary}

| | |
|---|---|
| model | `{model}`, {parameters:,} parameters |
| data | `{data}`, fingerprint `{fingerprint}`, {splits} |
| task | `{task}` |
| training | {epochs}, seed {seed}, AdamW, learning rate {lr} |
| written with | {versions} |

{results}
## Use

```python
import seqgraph as sg

model = sg.load("RUN")  # this folder, or the run that it is in
```

The whole configuration is in `config.json`; the same command and seed give the same run on the same CPU.
"""


def model_card(config: Mapping[str, Any], facts: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Text of ``MODEL_CARD.md``.

    Args:
        config: the resolved run configuration, as JSON.
        facts: of the data and the model.
        results: what is in ``metrics.json``.
    """
    from seqgraph.plugin import manager
    from seqgraph.train.checkpoint import versions

    descriptor = manager.get("models", config["model"]["name"])
    paper = getattr(descriptor, "paper", None)
    return _CARD.format(
        model=config["model"]["name"],
        data=config["data"]["name"],
        task=config["task"]["name"],
        summary=descriptor.summary + (f"\n\nPaper: {paper}" if paper else ""),
        parameters=facts["parameters"],
        fingerprint=facts["data"] or "none",
        splits=", ".join(f"{size:,} {name}" for name, size in facts["splits"].items()),
        epochs=f"best epoch {results['best_epoch']}" if results.get("best_epoch") else "in progress",
        seed=", ".join(str(seed) for seed in config["seed"]),
        lr=config["train"]["lr"],
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        results=_table(results),
    )


def _table(results: Mapping[str, Any]) -> str:
    kinds = [kind for kind in ("valid", "test", "baseline") if results.get(kind)]
    names = list(dict.fromkeys(name for kind in kinds for name in results[kind]))
    if not names:
        return ""
    head = {"valid": "validation", "test": "test", "baseline": "trivial predictor, test"}
    lines = [f"| metric | {' | '.join(head[kind] for kind in kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name in names:
        cells = [f"{results[kind][name]:.4g}" if name in results[kind] else "" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "## Results\n\n" + "\n".join(lines) + "\n"
