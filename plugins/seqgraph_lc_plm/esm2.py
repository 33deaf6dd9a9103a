"""ESM-2 by fair-esm, behind the interface of LC-PLM, so that the commands take either."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqgraph.errors import CheckpointError, ConfigError, PluginError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph_lc_plm.base import ProteinLM, Semantics

_NAME = re.compile(r"esm2_t\d+_\w+\Z")
_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{}.pt"
_PREFIX = re.compile(r"^encoder\.(sentence_encoder\.)?")
_SIZES = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "token_dropout")
# Regression from attentions to contacts: in a file of its own, and not used here.
_APART = "contact_head."


class Esm2(ProteinLM):
    """fair-esm's ``ESM2`` on packed streams.

    Args:
        network: an ``esm.model.esm2.ESM2``; its alphabet is ESM-1b's, which is ours.

    Attributes:
        n_layers: number of blocks.
        d_model: D, token width.
        alphabet: the 33 tokens.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.n_layers: int = network.num_layers
        self.d_model: int = network.embed_dim
        self.alphabet = ProteinAlphabet()
        self.assets = {}

    def forward(self, stream: TokenStream, where: Tensor | None = None) -> Tensor:
        """Ids (T,) -> logits (T, 33), or (K, 33) of the tokens ``where``."""
        stream = stream.to(self.device)
        parts = [self.network(dense)["logits"][valid] for dense, valid in self._dense(stream)]
        logits = torch.cat(parts)[self._back(stream)]
        return logits if where is None else logits[where.to(logits.device)]

    def hidden_states(
        self, stream: TokenStream, layers: Collection[int], semantics: Semantics = "residual"
    ) -> dict[int, Tensor]:
        """{layer, as asked for: (T, D)} of ids (T,) on the model's device: fair-esm's layers.

        Raises:
            ConfigError: for other semantics than "residual".
        """
        if semantics != "residual":
            raise ConfigError("layers of ESM-2 are the residual stream", "leave out --layer-semantics")
        wanted = {layer: layer % (self.n_layers + 1) for layer in layers}
        parts: dict[int, list[Tensor]] = {layer: [] for layer in wanted.values()}
        for dense, valid in self._dense(stream):
            states = self.network(dense, repr_layers=list(parts))["representations"]
            for layer, found in parts.items():
                found.append(states[layer][valid])
        back = self._back(stream)
        whole = {layer: torch.cat(found)[back] for layer, found in parts.items()}
        return {layer: whole[depth] for layer, depth in wanted.items()}

    def flops(self, lengths: Sequence[int], predicted: float = 1.0) -> float:
        """Floating-point operations of a forward pass over proteins of these lengths, without padding.

        24 D² a token and block for the matrices, 4 L D for attention over L tokens; the head on all tokens, as fair-esm
        computes it (``predicted`` does not matter).
        """
        d, n = self.d_model, self.n_layers
        head = 2 * d * (d + self.network.alphabet_size)
        return float(sum(length * (n * (24 * d * d + 4 * length * d) + head) for length in lengths))

    def _dense(self, stream: TokenStream) -> Iterator[tuple[Tensor, Tensor]]:
        """Padded batches (B, L), and where they are valid, longest first; together few more tokens than the stream."""
        lengths = stream.lengths.tolist()
        for group in self._groups(lengths):
            dense, sizes = stream[group].to_dense(fill=self.alphabet.pad_id)
            yield dense, torch.arange(dense.shape[1], device=dense.device) < sizes[:, None]

    def _back(self, stream: TokenStream) -> Tensor:
        """Where each token of the stream stands among the groups' tokens, (T,)."""
        order = [i for group in self._groups(stream.lengths.tolist()) for i in group]
        place = torch.arange(stream.num_tokens, device=stream.device)
        return stream.with_values(place)[order].values.argsort()

    @staticmethod
    def _groups(lengths: list[int]) -> list[list[int]]:
        """Segments, longest first, in groups that padding makes no larger than the stream."""
        total = sum(lengths)
        groups: list[list[int]] = [[]]
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if groups[-1] and lengths[groups[-1][0]] * (len(groups[-1]) + 1) > total:
                groups.append([])
            groups[-1].append(i)
        return groups


def is_name(text: str) -> bool:
    """Whether it names one of Meta's ESM-2 models instead of a file."""
    return bool(_NAME.match(text)) and not Path(text).exists()


def load(name: str) -> Esm2:
    """An ESM-2 of a file in fair-esm's layout, or by its name (downloaded into torch's hub folder once).

    The file is unpickled with ``weights_only=True``: of classes it may name ``argparse.Namespace``, in which Meta keeps
    the sizes, and no other. fair-esm's own loading of local files fails on torch 2.6 and later for want of that.

    Raises:
        PluginError: without fair-esm, or with the other package of the name esm.
        CheckpointError: for a file that is missing, damaged, unsafe or no ESM-2; names the tensors that do not fit.
    """
    make = _class()
    path = _download(name) if is_name(name) else Path(name)
    content = _unpickle(path)
    try:
        sizes = content["cfg"]["model"]
        values = [sizes[key] if isinstance(sizes, dict) else getattr(sizes, key) for key in _SIZES]
        state = {_PREFIX.sub("", key): value for key, value in content["model"].items()}
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path} is no ESM-2 of fair-esm's layout: it lacks cfg.model or model",
            "ESM-1 and MSA models, and Hugging Face's files, are not read",
        ) from None
    layers, width, heads, token_dropout = values
    network = make(layers, width, heads, token_dropout=token_dropout)
    own = network.state_dict()
    wrong = sorted(
        {key for key in own.keys() ^ state.keys() if not key.startswith(_APART)}
        | {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    )
    if wrong:
        raise CheckpointError(
            f"{path} does not fit an ESM-2 of {layers} x {width}: {', '.join(wrong[:8])}"
            + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""),
            "these tensors are missing, left over or of another shape",
        )
    network.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
    return Esm2(network).eval()


def _class() -> Any:
    try:
        from esm.model.esm2 import ESM2
    except ImportError as error:
        other = getattr(error, "name", None) != "esm"
        why = "the package esm that is installed is not fair-esm" if other else "ESM-2 needs fair-esm"
        raise PluginError(
            why, 'pip install "seqgraph[protein]"' + (" after pip uninstall esm" if other else "")
        ) from None
    return ESM2


def _unpickle(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", "give fair-esm's .pt file, or a name such as esm2_t6_8M_UR50D")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and sizes: {reason.strip()[:200]}",
            "such a file could run any code, and is not opened; get it from its origin",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise CheckpointError(f"{path} is damaged: {reason}", "fetch it again") from None


def _download(name: str) -> Path:
    path = Path(torch.hub.get_dir(), "checkpoints", f"{name}.pt")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(_URL.format(name), str(path), progress=False)
        except OSError as error:
            raise CheckpointError(
                f"cannot fetch {_URL.format(name)}: {error}", f"put the file there yourself: {path}"
            ) from None
    return path
