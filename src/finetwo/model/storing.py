"""The kinds of storage by name, and a network's block matrices put into one of them.

It knows no file and no training. Its one invariant: names, biases, norms, embeddings, heads and adapters stay as they
were; only the matrices of the blocks change their form.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from finetwo.core.errors import InputError
from finetwo.model.int8_base import Int8Linear
from finetwo.model.linear import Linear
from finetwo.model.lora import linears
from finetwo.model.nf4 import NF4Linear
from finetwo.model.stored import StoredLinear, stored_linears

KINDS: Final[dict[str, type[StoredLinear]]] = {c.kind: c for c in (NF4Linear, Int8Linear)}
"""Every kind of storage by the name users call it by; tests/model/test_stored.py holds each to the contract."""


def store_blocks(network: nn.Module, kind: str) -> int:
    """Store every block matrix of `network` as `kind`, one after the other; return how many there are.

    Raises InputError for an unknown kind, and for a network that is stored in another form already.
    """
    if kind not in KINDS:
        raise InputError("--quantize", "no such kind of storage", kind, f"use {', '.join(KINDS)}")
    there = {m.kind for m in stored_linears(network).values()}
    if there:
        raise InputError("--quantize", f"the base is stored as {', '.join(there)} already", kind, "load the base anew")
    names = list(linears(network))  # names only: a full weight goes as soon as it is stored
    for name in names:
        parent, _, last = name.rpartition(".")
        linear = network.get_submodule(name)
        assert isinstance(linear, Linear)
        setattr(network.get_submodule(parent), last, KINDS[kind].of(linear))
    return len(names)
