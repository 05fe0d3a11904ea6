"""How a job's sequences are laid out in batches: what is decided when the user left it open, and said aloud.

It knows sequences and what a network reads of them, and no tensors. Its one invariant: a layout that it chooses of
itself changes the work, never the loss or a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.loader import Loader, Sequences
from finetwo.model.network import Network

Say = Callable[[str], None]


def make_loader(config: TrainConfig, data: Sequences, network: Network, say: Say) -> Loader:
    """The order of training, its batches laid out as cheaply as is exact for `network`."""
    why = _unshareable(config, network)
    if why and config.share_prefix:
        raise InputError("--share_prefix", f"cannot be exact: {why}", None, "leave it out")

    def loader(share: bool) -> Loader:
        settings = (config.batch_size, config.grad_accum, config.packing, config.seed)
        return Loader(data, *settings, share=share, batch_tokens=config.batch_tokens)

    if config.share_prefix is False or config.packing is False:
        return loader(False)
    shared = loader(True)
    batches = shared.batches(0)
    saved = sum(b.shared for b in batches) / sum(b.real for b in batches)
    if saved >= 0.01:
        what = (
            f"computed in each record: {why}" if why else f"computed once a batch ({saved:.0%} fewer tokens at first)"
        )
        say(f"shared beginnings: {what}")
    return loader(False) if why else shared


def _unshareable(config: TrainConfig, network: Network) -> str:
    """Why a beginning that several records share is not the same computation in each; empty if it is."""
    if config.packing is False:
        return "--packing is off"
    if config.dropout or (network.lora and network.lora.dropout):
        return "with dropout each record needs its own"
    mean = network.config.labels and network.config.pooling == "mean"
    return "--pooling mean reads every token of a document" if mean else ""
