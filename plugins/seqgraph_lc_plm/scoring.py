"""What a model thinks of letters: log-probabilities at masked positions, variants' scores, pseudo-perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph_lc_plm.base import ProteinLM
from seqgraph_lc_plm.memory import attempt

Method = Literal["masked-marginals", "wt-marginals"]


def log_probabilities(
    model: ProteinLM,
    sequence: str,
    positions: Sequence[int] | None = None,
    *,
    method: Method = "masked-marginals",
    max_tokens: int = 16384,
    progress: Callable[[int], Any] = lambda positions: None,
    on_halved: Callable[[int], Any] = lambda tokens: None,
) -> Tensor:
    """Log-probabilities of the 33 tokens at some positions of a protein.

    Args:
        model: LC-PLM or ESM-2.
        sequence: L residues.
        positions: from 0, (K,); all by default.
        method: "masked-marginals": each position by itself reads <mask>, one copy of the protein each, so the cost is
            K times L tokens; "wt-marginals": one pass over the protein as it is.
        max_tokens: tokens in one forward pass; halved when memory does not suffice.
        progress: called with the positions done since the last call.
        on_halved: called with the new number of tokens.

    Returns:
        (K, 33) float32 on the CPU.

    Raises:
        DataError: as :meth:`ProteinAlphabet.encode`, and when memory does not suffice for one copy.
    """
    ids = model.alphabet.encode([sequence]).values
    wanted = torch.arange(len(ids) - 2) if positions is None else torch.as_tensor(positions, dtype=torch.int64)
    if not len(wanted):
        return torch.empty(0, len(model.alphabet))
    if method == "wt-marginals":
        found = attempt(partial(_logits, model, ids[None], wanted + 1), model.device)
        if found is None:
            raise _too_long(sequence)
        progress(len(wanted))
        return found.log_softmax(-1)
    parts: list[Tensor] = []
    done, copies = 0, max(1, max_tokens // len(ids))
    while done < len(wanted):
        places = wanted[done : done + copies] + 1
        texts = ids.repeat(len(places), 1)
        row = torch.arange(len(places))
        texts[row, places] = model.alphabet.mask_id
        part = attempt(partial(_logits, model, texts, row * len(ids) + places), model.device)
        if part is None:
            if copies == 1:
                raise _too_long(sequence)
            copies //= 2
            on_halved(copies * len(ids))
            continue
        parts.append(part)
        done += len(places)
        progress(len(places))
    return torch.cat(parts).log_softmax(-1)


def _too_long(sequence: str) -> DataError:
    return DataError(f"memory does not suffice for one pass over {len(sequence):,} residues", "try --nogpu")


def _logits(model: ProteinLM, texts: Tensor, where: Tensor) -> Tensor:
    """Ids (B, L) and flat places (K,) -> (K, 33) float32 on the CPU."""
    device = model.device
    stream = TokenStream.from_lengths(texts.flatten(), [texts.shape[1]] * len(texts)).to(device)
    with torch.no_grad():
        return model(stream, where.to(device))[:, : len(model.alphabet)].float().cpu()


def pseudo_perplexity(
    model: ProteinLM,
    sequence: str,
    *,
    method: Method = "masked-marginals",
    max_tokens: int = 16384,
    progress: Callable[[int], Any] = lambda positions: None,
    on_halved: Callable[[int], Any] = lambda tokens: None,
) -> float:
    """exp of the mean negative log-likelihood of the residues, each masked by itself (Salazar et al. 2020).

    With "wt-marginals" nothing is masked: one pass, and a lower number, since the model sees what it is asked for.

    Raises:
        DataError: as :func:`log_probabilities`.
    """
    found = log_probabilities(
        model, sequence, method=method, max_tokens=max_tokens, progress=progress, on_halved=on_halved
    )
    ids = model.alphabet.encode([sequence], cls=False, eos=False).values
    return math.exp(float(F.nll_loss(found.double(), ids)))
