"""The cards in docs/models: every model has one, with the parameters of its presets and commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seqgraph.config import arguments, build_part, load_config
from seqgraph.plugin import manager

CARDS = Path(__file__).resolve().parents[2] / "docs" / "models"
SECTIONS = ("## What it computes", "## Use", "## Limits")
ROW = re.compile(r"^\| `([\w-]+)` \| ([\d,]+) \|", re.MULTILINE)
COMMAND = re.compile(r"^seqgraph (train|baseline) ([\w-]+)(.*)$", re.MULTILINE)
PICTURES = {"level": "node", "node_features": "linear", "d_node": 14, "edge_features": "linear", "d_edge": 2}
# What a model is told by the data.
FACTS = {
    "peptides-func": {"d_out": 10},
    "peptides-struct": {"d_out": 11},
    "zinc-12k": {"node_features": "codes", "node_sizes": (28,), "edge_features": "codes", "edge_sizes": (4,)},
    "pascalvoc-sp": {**PICTURES, "d_out": 21},
    "coco-sp": {**PICTURES, "d_out": 81},
    "heterophilous": {
        "level": "node",
        "node_features": "linear",
        "d_node": 7,
        "edge_features": "none",
        "d_out": 2,
    },
}


def _names() -> list[str]:
    return [e.descriptor.name for e in manager.entries("models") if e.descriptor.domain == "graph"]


@pytest.mark.parametrize("name", [*_names(), "ecfp"])
def test_every_model_has_a_card(name):
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert all(section in text for section in SECTIONS)
    assert f"({name}.md)" in (CARDS / "README.md").read_text(encoding="utf-8")
    if name == "ecfp":
        return
    descriptor = manager.get("models", name)
    assert f"`{descriptor.target}`" in text
    cited = re.search(r"arXiv:[\d.]+", getattr(descriptor, "paper", None) or "")
    assert cited is None or cited[0] in text


def _rows() -> list[tuple[str, str, str]]:
    return [(card.stem, *row) for card in sorted(CARDS.glob("*.md")) for row in ROW.findall(card.read_text("utf-8"))]


@pytest.mark.parametrize(("card", "preset", "parameters"), _rows())
def test_parameters_are_those_of_the_presets(card, preset, parameters):
    config = load_config(preset)
    assert config.model.name == card
    fields = arguments(build_part(config, "model", FACTS.get(config.data.name, {})))
    model = manager.resolve(manager.get("models", card))(**fields)
    assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters


def test_commands_name_what_there_is():
    found = [found for card in CARDS.glob("*.md") for found in COMMAND.findall(card.read_text(encoding="utf-8"))]
    assert len(found) >= len(_names())
    for _, preset, rest in found:
        load_config(preset, re.findall(r"\S+=\S+", rest))


def test_links_lead_somewhere():
    for card in CARDS.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", card.read_text(encoding="utf-8")):
            assert (card.parent / target).exists(), (card.name, target)
