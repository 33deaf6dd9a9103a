"""Contacts of residues from the model alone: the categorical Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph.stream import TokenStream
from seqgraph_lc_plm.base import ProteinLM

AMINO_ACIDS = 20


def jacobian_contacts(model: ProteinLM, stream: TokenStream, max_tokens: int = 16384) -> Tensor:
    """How strongly each residue's letter bears upon the logits at each other one.

    For every position i and amino acid a, ``J[i, a, j, b]`` is the change of the logit of b at j when i reads a. J is
    centred over each of its four axes and made symmetric; a pair's strength is the norm over a and b, less what rows
    and columns have in common. Source: Zhang et al. 2024, Protein language models learn evolutionary statistics of
    interacting sequence motifs (PNAS 121); average product correction: Dunn et al. 2008.

    Costs 20 L forward passes over the protein, and 1,600 L² bytes.

    Args:
        model: with logits.
        stream: one protein of L residues, ids (L + 2,), with <cls> and <eos>.
        max_tokens: tokens in one forward pass.

    Returns:
        (L, L) float32 on the model's device, symmetric, zero on the diagonal; not probabilities: rank by it.
    """
    device = model.device
    ids = stream.values.to(device)
    length = len(ids) - 2
    letters = model.alphabet.residue_ids[:AMINO_ACIDS].to(device)
    copies = max(1, max_tokens // len(ids))
    total = length * AMINO_ACIDS
    jacobian = torch.empty(total, length, AMINO_ACIDS, device=device)
    with torch.no_grad():
        for start in range(0, total, copies):
            which = torch.arange(start, min(start + copies, total), device=device)
            texts = ids.repeat(len(which), 1)
            texts[torch.arange(len(which), device=device), which // AMINO_ACIDS + 1] = letters[which % AMINO_ACIDS]
            logits = model(TokenStream.from_lengths(texts.flatten(), [len(ids)] * len(which)))
            jacobian[start : start + len(which)] = logits.view(len(which), len(ids), -1)[:, 1:-1, letters].float()
        # The unchanged protein's logits need not be subtracted: they depend on neither i nor a, centring removes them.
        return _coupling(jacobian.view(length, AMINO_ACIDS, length, AMINO_ACIDS))


def _coupling(jacobian: Tensor) -> Tensor:
    """J (L, 20, L, 20) -> (L, L)."""
    for axis in range(4):
        jacobian -= jacobian.mean(axis, keepdim=True)
    length = len(jacobian)
    strength = jacobian.new_empty(length, length)
    for i in range(length):  # a row at a time: a second J would not fit
        both = (jacobian[i] + jacobian[:, :, i].permute(2, 0, 1)) / 2  # (20, L, 20)
        strength[i] = both.square().sum((0, 2)).sqrt()
    strength = ((strength + strength.T) / 2).fill_diagonal_(0)  # symmetric to the last bit
    rows = strength.sum(0)
    corrected = strength - rows[:, None] * rows[None] / rows.sum().clamp_min(torch.finfo(strength.dtype).tiny)
    return corrected.fill_diagonal_(0)
