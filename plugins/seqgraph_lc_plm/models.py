"""Opens what the commands are given as MODEL."""

from __future__ import annotations

from pathlib import Path

from seqgraph.errors import CheckpointError
from seqgraph_lc_plm.base import ProteinLM


def open_model(name: str, device: str = "cpu") -> ProteinLM:
    """A model of proteins, in evaluation mode.

    Args:
        name: a run, a checkpoint folder, or whatever ``seqgraph.load`` takes; or an ESM-2: fair-esm's ``.pt`` file, or
            a name such as esm2_t6_8M_UR50D.
        device: where it goes.

    Raises:
        CheckpointError: when it is not there, damaged, or no model of proteins.
        PluginError: for an ESM-2 without fair-esm.
    """
    from seqgraph_lc_plm import esm2

    if Path(name).suffix == ".pt" or esm2.is_name(name):
        return esm2.load(name).to(device).eval()
    from seqgraph import load

    network = load(name, device=device)
    if not isinstance(network, ProteinLM):
        raise CheckpointError(f"{name} holds a {type(network).__name__}, no model of proteins", "give an lc-plm run")
    return network
