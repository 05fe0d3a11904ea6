"""The weights that a run passed through: its checkpoints, its best and its final model.

It knows run folders and networks. Its one invariant: once the stages have been gone through, the network has the
weights that it had before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from finetwo.model.network import Network
from finetwo.store.checkpoint import list_checkpoints, open_checkpoint, step_of
from finetwo.store.models import open_model
from finetwo.store.run import is_model_folder, is_run_folder


def stages(name: str, network: Network, base: str | None) -> Iterator[tuple[str, bool]]:
    """Put each of a run's saved weights on `network`, the model of the run `name`; yield what they are called.

    With the name comes whether they are the weights that `network` had. Weights that are there twice come once, under
    the first name; nothing of what is no run folder.
    """
    folder = Path(name)
    if not is_run_folder(folder):
        return
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    seen: set[str] = set()
    own = _digest(network)
    try:
        for label, weights in _saved(folder, base):
            _place(network, before | dict(weights))
            digest = _digest(network)
            if digest not in seen:
                seen.add(digest)
                yield label, digest == own
    finally:
        _place(network, before)


def _saved(folder: Path, base: str | None) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    for path in sorted(list_checkpoints(folder), key=step_of):
        yield f"step {step_of(path):,}", open_checkpoint(path).tensors("weights")
    for label in ("best", "final"):
        if is_model_folder(folder / label):
            yield label, dict(open_model(str(folder / label), base).network.named_parameters())


@torch.no_grad()
def _place(network: Network, weights: Mapping[str, Tensor]) -> None:
    for name, p in network.named_parameters():
        p.copy_(weights[name])


def _digest(network: Network) -> str:
    found = hashlib.sha256()
    for _, p in network.named_parameters():
        found.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
