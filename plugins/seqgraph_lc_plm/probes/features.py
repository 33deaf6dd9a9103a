"""What a probe sees of a protein: a model's embeddings, kept on disk, or features that need no model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph.tokenize.protein import RESIDUE
from seqgraph_lc_plm.base import ProteinLM, cut_batches

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


class Source(Protocol):
    """Features of proteins.

    Attributes:
        name: what the tables call it.
    """

    name: str

    def means(self, sequences: Sequence[str]) -> np.ndarray:
        """One row a protein, (N, D) float32."""

    def residues(self, sequences: Sequence[str]) -> np.ndarray:
        """One row a residue, the proteins' one after another, (sum of lengths, D), float16 or memory-mapped."""


class Embeddings:
    """A model's embeddings, computed once for the same weights, layer and sequences.

    Args:
        model: in evaluation mode, on its device.
        name: what the tables call it.
        cache: folder of what has been computed; None keeps nothing.
        layer: 0 to n, or from the end.
        max_tokens: tokens in one forward pass.
        bf16: compute under bfloat16 autocast.
        progress: called with the residues done since the last call.
    """

    def __init__(
        self,
        model: ProteinLM,
        name: str,
        *,
        cache: Path | None = None,
        layer: int = -1,
        max_tokens: int = 16384,
        bf16: bool = False,
        progress: Callable[[int], Any] = lambda residues: None,
    ) -> None:
        model.check_layers([layer])
        self.model, self.name, self.cache = model, name, cache
        self.layer, self.max_tokens, self.bf16, self.progress = layer, max_tokens, bf16, progress
        self._weights: str | None = None

    def means(self, sequences: Sequence[str]) -> np.ndarray:
        """Means over the residues, (N, D) float32."""
        out = self._array("mean", sequences, len(sequences), np.float32)
        if not isinstance(out, tuple):
            return out
        values, done = out
        for batch, states, lengths in self._states(sequences):
            # a sum in float64 in a fixed order, the same on every run
            for i, rows in zip(batch, states.split(lengths), strict=True):
                values[i] = rows.double().mean(0).cpu().numpy()
        return done()

    def residues(self, sequences: Sequence[str]) -> np.ndarray:
        """Hidden states of the residues, (sum of lengths, D) float16, memory-mapped where there is a cache."""
        ends = np.cumsum([len(text) for text in sequences])
        out = self._array("residue", sequences, int(ends[-1]) if len(ends) else 0, np.float16)
        if not isinstance(out, tuple):
            return out
        values, done = out
        for batch, states, lengths in self._states(sequences):
            for i, rows in zip(batch, states.split(lengths), strict=True):
                # far outside float16's range nothing is lost that a probe on standardised columns would see
                values[ends[i] - len(rows) : ends[i]] = rows.clamp(-6e4, 6e4).half().cpu().numpy()
        return done()

    def sites(self, sequences: Sequence[str], places: Sequence[int]) -> np.ndarray:
        """The residues at some places (from 0) of proteins of one length, joined, (N, K * D) float32."""
        kind = "sites-" + "-".join(map(str, places))
        out = self._array(kind, sequences, len(sequences), np.float32, len(places) * self.model.d_model)
        if not isinstance(out, tuple):
            return out
        values, done = out
        for batch, states, lengths in self._states(sequences):
            for i, rows in zip(batch, states.split(lengths), strict=True):
                values[i] = rows[list(places)].flatten().cpu().numpy()
        return done()

    def _states(self, sequences: Sequence[str]) -> Any:
        """Yield (places, hidden states of their residues (R, D), lengths)."""
        device = self.model.device
        context = torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()
        for batch in cut_batches([len(text) + 2 for text in sequences], self.max_tokens):
            stream = self.model.alphabet.encode([sequences[i] for i in batch], unknown="unk")
            assert stream.role is not None
            keep = (stream.role == RESIDUE).nonzero()[:, 0]
            with context:
                states = self.model.represent(stream, [self.layer])[self.layer].values
            lengths = [len(sequences[i]) for i in batch]
            yield batch, states[keep.to(device)], lengths
            self.progress(sum(lengths))

    def _array(self, kind: str, sequences: Sequence[str], rows: int, dtype: Any, width: int | None = None) -> Any:
        """What has been computed; else an array to fill and what to call afterwards."""
        shape = (rows, width or self.model.d_model)
        if self.cache is None:
            values = np.empty(shape, dtype)
            return values, lambda: values
        if self._weights is None:
            self._weights = weights_hash(self.model)
        digest = hashlib.sha256(f"{self._weights} {self.layer} {self.bf16} {kind}\n".encode())
        digest.update("\n".join(sequences).encode())
        path = self.cache / f"{digest.hexdigest()[:32]}.npy"
        if path.is_file():
            return np.load(path, mmap_mode="r")
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.new")
        values = open_memmap(temporary, "w+", dtype, shape) if rows else np.empty(shape, dtype)

        def done() -> np.ndarray:
            if not isinstance(values, np.memmap):
                return values
            values.flush()
            os.replace(temporary, path)
            return np.load(path, mmap_mode="r")

        return values, done


class OneHotWindow:
    """Which letters stand up to ``reach`` places before and behind a residue.

    Args:
        reach: places on either side.
    """

    def __init__(self, reach: int = 7) -> None:
        self.reach = reach
        self.name = f"one-hot, window {2 * reach + 1}"

    def residues(self, sequences: Sequence[str]) -> np.ndarray:
        """(sum of lengths, (2 reach + 1) * 21) float16 of 0 and 1; the 21st letter is any other, none the end."""
        parts = []
        for text in sequences:
            letters = _letters(text)
            padded = np.concatenate([np.full(self.reach, -1), letters, np.full(self.reach, -1)])
            window = np.lib.stride_tricks.sliding_window_view(padded, 2 * self.reach + 1)
            parts.append((window[..., None] == np.arange(21)).reshape(len(letters), -1))
        return np.concatenate(parts).astype(np.float16)

    def means(self, sequences: Sequence[str]) -> np.ndarray:
        """Every place of proteins of one length, (N, L * 20) float32.

        Raises:
            ConfigError: for proteins of several lengths.
        """
        if len({len(text) for text in sequences}) > 1:
            raise ConfigError("one-hot codes of whole proteins need proteins of one length")
        codes = np.stack([_letters(text) for text in sequences])
        return (codes[..., None] == np.arange(20)).reshape(len(codes), -1).astype(np.float32)


class KMers:
    """Shares of the words of k letters in a protein.

    Args:
        k: 1, 2 or 3.
    """

    def __init__(self, k: int = 3) -> None:
        self.k, self.name = k, f"{k}-mers"

    def means(self, sequences: Sequence[str]) -> np.ndarray:
        """(N, 20^k) float32; words with another letter do not count."""
        found = np.zeros((len(sequences), 20**self.k), np.float32)
        for row, text in zip(found, sequences, strict=True):
            letters = _letters(text)
            if len(letters) < self.k:
                continue
            words = np.lib.stride_tricks.sliding_window_view(letters, self.k)
            words = words[(words < 20).all(1)] @ 20 ** np.arange(self.k)[::-1]
            row[:] = np.bincount(words, minlength=len(row)) / max(len(words), 1)
        return found

    def residues(self, sequences: Sequence[str]) -> np.ndarray:
        """There is none."""
        raise ConfigError("k-mers are of whole proteins")


def random_twin(model: ProteinLM, seed: int = 0) -> ProteinLM:
    """A model of the same kind and shape with the weights that training would begin with.

    Raises:
        ConfigError: for a kind of model that this does not know.
    """
    from seqgraph_lc_plm.esm2 import Esm2
    from seqgraph_lc_plm.esm2_training import TrainableEsm2
    from seqgraph_lc_plm.model import LcPlm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(model, Esm2):
            network = model.network
            twin: ProteinLM = TrainableEsm2(
                d_model=network.embed_dim, n_layers=network.num_layers, heads=network.attention_heads
            )
        elif isinstance(model, LcPlm):
            twin = LcPlm(**_shape(model))
        else:
            raise ConfigError(f"a {type(model).__name__} has no random twin here")
    ours = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in twin.state_dict().items()} != ours and not isinstance(model, Esm2):
        raise ConfigError(f"the random twin of {type(model).__name__} would have another shape")
    return twin.to(model.device).eval()


def _shape(model: Any) -> dict[str, Any]:
    """The constructor's arguments, read off the tensors."""
    state = model.state_dict()
    mixer = model.backbone.layers[0].mixer
    first = getattr(mixer, "mamba_fwd", mixer)
    ssd = state["backbone.layers.0.mixer.mamba_fwd.A_log"].dim() == 1
    found = {
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "vocab_size": model.vocab_size,
        "d_state": first.d_state,
        "d_conv": state["backbone.layers.0.mixer.mamba_fwd.conv1d.weight"].shape[-1],
        "expand": first.d_inner // model.d_model,
        "tie_head": model.lm_head.weight is model.backbone.embedding.weight,
        "share": "projections" if _tied(mixer) else "none",
    }
    return found | ({"mixer": "ssd", "headdim": first.headdim} if ssd else {})


def _tied(mixer: Any) -> bool:
    names = dict(mixer.named_parameters(remove_duplicate=False))
    rev = names.get("mamba_rev.in_proj.weight")
    return rev is None or rev is names["mamba_fwd.in_proj.weight"]


def weights_hash(model: torch.nn.Module) -> str:
    """A hash of every tensor's name, shape and content."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, value in sorted(model.state_dict().items()):
        flat: Tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(flat.shape)} {flat.dtype}\n".encode())
        if flat.numel():
            digest.update(flat.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def split_rows(values: np.ndarray, sequences: Sequence[str]) -> list[np.ndarray]:
    """Rows of residues as one array a protein."""
    ends = np.cumsum([0, *(len(text) for text in sequences)]).tolist()
    return [values[start:end] for start, end in pairwise(ends)]


_CODE = np.full(256, 20, np.int64)
_CODE[[ord(letter) for letter in AMINO_ACIDS]] = np.arange(20)


def _letters(text: str) -> np.ndarray:
    """0 to 19 for the amino acids, 20 for any other letter."""
    return _CODE[np.frombuffer(text.upper().encode("latin-1", "replace"), np.uint8)]
