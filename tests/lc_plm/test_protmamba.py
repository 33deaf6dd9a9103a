"""ProtMamba's files, against another implementation given the rows of its positions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from mamba_files import D, V, causal, causal_logits, draw, write_folder

import seqgraph as sg
from seqgraph.errors import CheckpointError, ConfigError


@pytest.mark.parametrize("sequences", [0, 3])
@pytest.mark.parametrize("wrapped", [False, True])
def test_protmamba_with_its_positions(tmp_path, sequences, wrapped):
    """Homologs one after another: places count from each <cls>, sequences from 1, both up to their last row."""
    tensors = causal()
    places, parts = 7, (D // 2, D // 4, D // 4) if sequences else (D // 2, D // 2, 0)
    embedding, tables = draw(V, parts[0]), [draw(places, parts[1]), draw(sequences, parts[2])]
    stored = {**tensors, "backbone.embedding.weight": embedding, "lm_head.weight": embedding}
    stored["backbone.position_embedding.weight"] = tables[0]
    if sequences:
        stored["backbone.seq_position_embedding.weight"] = tables[1]
    if wrapped:
        stored = {name.replace(".mixer.", ".mixer.ckpt_layer."): value for name, value in stored.items()}
    model = sg.load(write_folder(tmp_path / "weights", stored, name="pytorch_model.bin", model_type=""))
    assert model.lm_head.weight is model.backbone.embedding.weight and model.assets["weights"]["head"] == "tied"
    assert len(model.assets["alphabet"]) == 38 and model.assets["alphabet"][32:34] == ["<mask>", "<mask-1>"]
    texts = [[[0, *range(4, 14)], [0, 4, 5], [0, 7, 8], [0, 9]], [[0, 21, 22], [0, 5]], [[5, 6], [0, 7]]]
    ids = [torch.tensor([token for sequence in text for token in sequence]) for text in texts]
    stream = sg.TokenStream.from_ragged(ids)
    logits = model(stream).split(stream.lengths.tolist())
    state = model.represent(stream, [0])[0]
    for s, text in enumerate(texts):
        rows = []
        for number, sequence in enumerate(text, start=int(text[0][0] == 0)):
            for place, token in enumerate(sequence):
                row = [embedding[token], tables[0][min(place, places - 1)]]
                rows.append(torch.cat([*row, *([tables[1][min(number, sequences - 1)]] if sequences else [])]))
        torch.testing.assert_close(state[s].values, torch.stack(rows))
        given = {**tensors, "backbone.embedding.weight": torch.stack(rows), "lm_head.weight": torch.eye(D)}
        hidden = causal_logits(given, "embedding.weight", torch.arange(len(rows)))
        torch.testing.assert_close(logits[s], hidden[:, : parts[0]] @ embedding.T, atol=1e-5, rtol=1e-5)
    given = torch.randint(places, stream.values.shape)
    assert not torch.allclose(model(stream, positions=given), model(stream))
    tables[0].copy_(tables[0][torch.zeros(places, dtype=torch.long)])  # places that are all alike do not count
    with torch.no_grad():
        model.backbone.position_embedding.weight.copy_(tables[0])
    torch.testing.assert_close(model(stream, positions=given), model(stream))
    with pytest.raises(ConfigError, match="positions are"):
        model(stream, positions=given[1:])


def test_parts_that_do_not_make_a_token_are_refused(tmp_path):
    tensors = {**causal(), "backbone.position_embedding.weight": draw(9, 9)}
    with pytest.raises(CheckpointError, match=f"parts of {D} \\+ 9 \\+ 0 do not make tokens of width {D}"):
        sg.load(write_folder(tmp_path / "weights", tensors, model_type="mamba"))
