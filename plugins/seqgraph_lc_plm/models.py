"""Opens what the commands are given as MODEL, and knows the trained models that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from seqgraph.errors import CheckpointError
from seqgraph_lc_plm.base import ProteinLM


def shipped() -> dict[str, Path]:
    """Name -> checkpoint folder of each trained model in the package; its ``MODEL_CARD.md`` says what it is."""
    folder = Path(str(resources.files("seqgraph_lc_plm"))) / "weights"
    return {file.parent.name: file.parent for file in sorted(folder.glob("*/model.safetensors"))}


def open_model(name: str, device: str = "cpu") -> ProteinLM:
    """A model of proteins, in evaluation mode.

    Args:
        name: a run, a checkpoint folder, or whatever ``seqgraph.load`` takes; one of :func:`shipped`, unless a folder
            here has that name; or an ESM-2: fair-esm's ``.pt`` file, or a name such as esm2_t6_8M_UR50D.
        device: where it goes.

    Raises:
        CheckpointError: when it is not there, damaged, or no model of proteins, or of another alphabet.
        PluginError: for an ESM-2 without fair-esm.
    """
    from seqgraph_lc_plm import esm2

    if Path(name).suffix == ".pt" or esm2.is_name(name):
        return esm2.load(name).to(device).eval()
    from seqgraph import load

    ours = {} if Path(name).exists() else shipped()
    if name not in ours and not Path(name).exists():
        raise CheckpointError(
            f"{name}: no such file or folder, and no model of that name",
            f"give a run, a checkpoint, {', '.join(shipped())}, or an ESM-2 (.pt file, or a name as esm2_t6_8M_UR50D)",
        )
    network = load(ours.get(name, name), device=device)
    if not isinstance(network, ProteinLM):
        raise CheckpointError(f"{name} holds a {type(network).__name__}, no model of proteins", "give an lc-plm run")
    tokens = network.alphabet.tokens
    trained = network.assets.get("alphabet", tokens)
    for place, (found, wanted) in enumerate(zip(trained, tokens, strict=False)):  # either may have more
        if found != wanted:
            raise CheckpointError(
                f"{name} was trained with another alphabet: its token {place} is {found!r}, ESM-2's is {wanted!r}",
                "only models of ESM-2's alphabet read proteins here",
            )
    return network
