"""The categorical Jacobian against loops, and on a model that knows two contacts."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph_lc_plm.base import ProteinLM
from seqgraph_lc_plm.contacts import jacobian_contacts


class Paired(ProteinLM):
    """Predicts at each position what its partner reads, and nothing elsewhere."""

    def __init__(self, partner):
        super().__init__()
        self.alphabet, self.n_layers, self.d_model = ProteinAlphabet(), 0, 1
        self.table = nn.Parameter(torch.randn(33, 33, generator=torch.Generator().manual_seed(0)))
        self.partner = partner

    def forward(self, stream, where=None):
        out = torch.zeros(stream.num_tokens, 33)
        for start in stream.cu_seqlens[:-1].tolist():
            for i, j in self.partner.items():
                out[start + 1 + i] = self.table[stream.values[start + 1 + j]]
        return out


def test_contacts_that_a_model_knows_stand_out():
    pairs = {2: 9, 9: 2, 4: 7, 7: 4}
    model = Paired(pairs)
    found = jacobian_contacts(model, model.alphabet.encode(["MKTAYIAKQRQI"]), max_tokens=100)
    assert torch.equal(found, found.T) and not found.diagonal().any()
    rows, columns = torch.triu_indices(12, 12, 1)
    best = found[rows, columns].topk(2).indices
    assert {(int(rows[i]), int(columns[i])) for i in best} == {(2, 9), (4, 7)}


def test_against_loops_in_double_precision(tiny):
    """The definition, without batches or shortcuts: J less the unchanged logits, centred, symmetrised, APC."""
    sequence = "MKTAYIA"
    length = len(sequence)
    letters = [tiny.alphabet.tokens[i] for i in tiny.alphabet.residue_ids[:20]]
    base = tiny.logits([sequence])[0].double().numpy()
    ids = tiny.alphabet.residue_ids[:20].numpy()
    jacobian = np.zeros((length, 20, length, 20))
    for i in range(length):
        for a, letter in enumerate(letters):
            changed = sequence[:i] + letter + sequence[i + 1 :]
            jacobian[i, a] = (tiny.logits([changed])[0].double().numpy() - base)[:, ids]
    for axis in range(4):
        jacobian -= jacobian.mean(axis, keepdims=True)
    jacobian = (jacobian + jacobian.transpose(2, 3, 0, 1)) / 2
    norm = np.sqrt((jacobian**2).sum((1, 3)))
    np.fill_diagonal(norm, 0)
    expected = norm - norm.sum(0, keepdims=True) * norm.sum(1, keepdims=True) / norm.sum()
    np.fill_diagonal(expected, 0)
    for budget in (1, 50, 10_000):
        found = jacobian_contacts(tiny, tiny.alphabet.encode([sequence]), max_tokens=budget)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_a_protein_of_one_residue_has_none(tiny):
    assert jacobian_contacts(tiny, tiny.alphabet.encode(["M"])).tolist() == [[0.0]]
