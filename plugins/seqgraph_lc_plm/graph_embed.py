"""Embeds proteins beside their neighbours in an interaction graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import RESIDUE, ProteinAlphabet
from seqgraph_lc_plm.base import ProteinLM, cut_batches
from seqgraph_lc_plm.graph import InteractionGraph
from seqgraph_lc_plm.graph_data import Contexts, join, walk
from seqgraph_lc_plm.graph_task import LINKED, first_proteins
from seqgraph_lc_plm.memory import attempt


def embed_in_graph(
    model: ProteinLM,
    graph: InteractionGraph,
    names: Sequence[str] | None = None,
    *,
    proteins: int = 3,
    walks: int = 4,
    p: float = 4.0,
    q: float = 1.0,
    layer: int = -1,
    pooling: Literal["mean", "bos"] = "mean",
    edge_index: Tensor | None = None,
    max_tokens: int = 16384,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda residues: None,
    on_halved: Callable[[int], Any] = lambda tokens: None,
) -> Tensor:
    """Embed proteins, each at the beginning of several walks.

    Only the protein's own tokens are pooled, and the walks' results averaged. Without an interaction, or with
    ``proteins=1``, it is what :meth:`ProteinLM.embed` gives.

    Args:
        model: trained on such contexts; its embedding has rows for the links.
        graph: the proteins and their interactions.
        names: of the proteins to embed, N; all by default.
        proteins: of a context at most, the protein itself included.
        walks: contexts that begin at each protein.
        p: node2vec's return parameter.
        q: node2vec's in-out parameter.
        layer: see :meth:`TokenModel.represent`.
        pooling: "mean" over the protein's residues, or "bos", its <cls>.
        edge_index: other interactions to walk over than the graph's, (2, M), such as those of a training set.
        max_tokens: tokens in one forward pass; a longer context is one by itself; halved when memory does not suffice.
        seed: of the walks.
        progress: called with the residues done since the last call, neighbours not counted.
        on_halved: called with the new number of tokens.

    Returns:
        (N, D) float32 on the CPU.

    Raises:
        DataError: for a name that the graph does not have, or a context that memory does not suffice for.
        ConfigError: for a model without rows for the links, or options out of range.
    """
    if getattr(model, "vocab_size", 33) < LINKED:
        raise ConfigError(
            f"the model has no rows for <edge> and <no_edge>: it has {getattr(model, 'vocab_size', 33)} tokens",
            "train the second stage first: seqgraph train lc-plm-g-sample train.weights=RUN; or embed proteins alone",
        )
    if walks < 1 or proteins < 1:
        raise ConfigError(f"walks {walks}, proteins {proteins}", "both must be at least 1")
    if missing := [name for name in names or () if name not in graph.index]:
        raise DataError(f"the graph has no {', '.join(missing[:10])}", "names are those of the sequences' file")
    wanted = list(range(len(graph.names))) if names is None else [graph.index[name] for name in names]
    edges = graph.edge_index if edge_index is None else edge_index
    walks = 1 if proteins == 1 else walks
    starts = torch.tensor(wanted, dtype=torch.int64).repeat_interleave(walks)
    generator = torch.Generator().manual_seed(seed)
    paths = walk(edges, len(graph.names), starts, proteins=proteins, p=p, q=q, generator=generator)
    contexts = Contexts(graph.sequences, paths, torch.zeros(len(paths), dtype=torch.bool), None)
    alphabet = ProteinAlphabet(links=True)
    found = torch.zeros(len(paths), model.d_model, dtype=torch.float64)
    lengths = contexts.lengths().tolist()
    todo = cut_batches(lengths, max_tokens)[::-1]
    while todo:
        batch = todo.pop()
        stream = join(alphabet, [contexts[i] for i in batch])
        states = attempt(partial(_read, model, stream, layer), model.device)
        if states is None:
            if len(batch) == 1:
                name = graph.names[int(starts[batch[0]])]
                raise DataError(
                    f"memory on {model.device} does not suffice for {name} and its neighbours, "
                    f"{lengths[batch[0]]:,} tokens",
                    "fewer --proteins, or --nogpu",
                )
            max_tokens = min(max_tokens, sum(lengths[i] for i in batch)) // 2
            on_halved(max_tokens)
            left = sorted(i for group in [batch, *todo] for i in group)
            todo = [[left[i] for i in group] for group in cut_batches([lengths[i] for i in left], max_tokens)][::-1]
            continue
        found[batch] = _pool(states, pooling).double().cpu()
        progress(states.num_tokens - 2 * len(batch))
    return found.view(len(wanted), walks, -1).mean(1).float()


def _read(model: ProteinLM, stream: TokenStream, layer: int) -> TokenStream:
    return first_proteins(model.represent(stream, [layer])[layer])


def _pool(states: TokenStream, pooling: str) -> Tensor:
    if pooling == "bos":
        return states.pool("first")
    assert states.role is not None
    keep = states.role == RESIDUE
    lengths = torch.bincount(states.segment[keep], minlength=states.num_segments)
    return TokenStream.from_lengths(states.values[keep], lengths).pool("mean")
