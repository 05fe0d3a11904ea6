"""The random states of a process as JSON: python, numpy, torch, CUDA; and torch's promise to be deterministic.

It knows nothing of training. Its one invariant: `restore(capture())` gives the same random numbers from there on.
"""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed every generator of the process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def strictly(wanted: bool) -> Iterator[None]:
    """Refuse operations without a deterministic form for a while, if `wanted`; who refused them before still does."""
    change = wanted and not torch.are_deterministic_algorithms_enabled()
    if change:  # only then: torch's setter imports its compiler, a second before any fault of the data could be told
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # without it cuBLAS refuses, being free to sum anyhow
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if change:
            torch.use_deterministic_algorithms(False)


def capture() -> dict[str, Any]:
    """Return the states; tensors as base64."""
    version, internal, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [
            legacy[0],
            base64.b64encode(legacy[1].tobytes()).decode(),
            int(legacy[2]),
            int(legacy[3]),
            float(legacy[4]),
        ],
        "torch": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [base64.b64encode(s.numpy().tobytes()).decode() for s in torch.cuda.get_rng_state_all()]
    return state


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8).clone()


def restore(state: dict[str, Any]) -> None:
    """Take back what `capture` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.frombuffer(base64.b64decode(keys), dtype=np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(_tensor(state["torch"]))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all([_tensor(s) for s in state["cuda"]])
