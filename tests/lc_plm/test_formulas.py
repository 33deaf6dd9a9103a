"""The model against loops over positions."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from lc_plm_reference import lc_plm


def test_logits_and_every_layer_are_those_of_the_formulas(tiny, proteins):
    weights = {name.removeprefix("backbone."): value for name, value in tiny.state_dict().items()}
    sequences = proteins(1, 2, 5, 33, 80)
    stream = tiny.alphabet.encode(sequences)
    found_logits = tiny(stream).split(stream.lengths.tolist())
    found = tiny.represent(stream, [0, 1, 2])
    for i, ids in enumerate(stream.values.split(stream.lengths.tolist())):
        logits, states = lc_plm(weights, ids)
        torch.testing.assert_close(found_logits[i].double(), logits, atol=1e-5, rtol=1e-5)
        for layer, state in enumerate(states):
            torch.testing.assert_close(found[layer][i].values.double(), state, atol=1e-5, rtol=1e-5)
