"""Quantised weights in a model folder: FineTwo's own format, which other tools refuse by its model_type.

It knows tensors by name, and must not know how codes are made or used. Its one invariant: what is read back has the
codes and scales that were written, all of them and no others.

In model.safetensors a quantised matrix `NAME.weight` (outputs, inputs) stands as `NAME.weight.codes` and
`NAME.weight.scales` (see `model.quantised.Codes`); biases, norms and places as ever. In config.json the entry
quantization_config says quant_method finetwo, format 1, bits 8 or 4 and the model_type that the network has in full.
The model_type itself is of our own: transformers would pass over a quantization it does not know, and draw weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetwo.core.errors import InputError
from finetwo.model.network import Network
from finetwo.model.quantised import KINDS, Codes, Kind, QuantisedEmbedding, QuantisedLinear, block_linears

KEY = "quantization_config"
_METHOD, _FORMAT, _TYPE = "finetwo", 1, "gpt2-codes"
_BITS: Mapping[int, Kind] = {8: "int8", 4: "int4"}
_HEAD = "transformer.wte.weight"


def without_kind(content: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Kind | None]:
    """Return config.json without our entry, and the kind that it names; InputError for a format or width unknown to us.

    Another tool's entry stays, to be refused like everything that changes the arithmetic.
    """
    entry = content.get(KEY)
    if not isinstance(entry, dict) or entry.get("quant_method") != _METHOD:
        return dict(content), None
    bits = entry.get("bits")
    if entry.get("format") != _FORMAT or not isinstance(bits, int) or bits not in _BITS:
        raise InputError(where, f"{KEY} must have format {_FORMAT} and bits 8 or 4", entry, "update FineTwo")
    plain = {k: v for k, v in content.items() if k != KEY} | {"model_type": entry.get("model_type")}
    return plain, _BITS[bits]


def with_kind(content: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    """Return config.json of a network in full as that of the network in codes of `kind`."""
    if kind is None:
        return dict(content)
    bits = next(bits for bits, known in _BITS.items() if known == kind)
    entry = {"quant_method": _METHOD, "format": _FORMAT, "bits": bits, "model_type": content["model_type"]}
    return {**content, "model_type": _TYPE, KEY: entry}


def matrices_by_name(network: Network) -> dict[str, Codes]:
    """The matrices of a quantised network by the name of the weight that each stands for."""
    found = {f"{n}.weight": m.matrix for n, m in network.named_modules() if isinstance(m, QuantisedLinear)}
    embedding = network.transformer.wte
    return found | ({_HEAD: embedding.matrix} if isinstance(embedding, QuantisedEmbedding) else {})


def state_with_codes(network: Network) -> dict[str, Tensor]:
    """Everything that a folder keeps of a quantised network, by name."""
    state = network.state()
    for name, matrix in matrices_by_name(network).items():
        state |= {f"{name}.codes": matrix.plain(), f"{name}.scales": matrix.scales}
    return state


def network_from(network: Network, tensors: Mapping[str, Tensor], kind: Kind, where: str) -> Network:
    """Fill `network`, made on the meta device, with what `state_with_codes` wrote; InputError for what does not fit."""
    left = dict(tensors)
    trunk = network.transformer

    def taken(name: str, outputs: int, inputs: int, kind: Kind) -> Codes:
        codes_shape, scales_shape = Codes.shapes(kind, outputs, inputs)
        int8 = kind == "int8"
        codes = _take(left, f"{name}.codes", codes_shape, torch.int8 if int8 else torch.uint8, where)
        scales = _take(left, f"{name}.scales", scales_shape, torch.float32 if int8 else torch.bfloat16, where)
        return Codes(kind, (outputs, inputs), codes, scales)

    linears = list(block_linears(network))
    places = {id(module): name for name, module in network.named_modules()}
    head = taken(_HEAD, network.config.vocab_size, network.config.n_embd, "int8")
    for part, name in linears:
        linear = getattr(part, name)
        full = places[id(linear)]
        matrix = taken(f"{full}.weight", linear.out_features, linear.in_features, kind)
        bias = _take(left, f"{full}.bias", (linear.out_features,), None, where)
        setattr(part, name, QuantisedLinear(matrix, bias.float()))
    setattr(trunk, "wte", QuantisedEmbedding(head))  # noqa: B010 - a stand-in for the usual embedding
    for name, parameter in list(network.named_parameters()):
        if parameter.is_meta:
            tensor = _take(left, name, tuple(parameter.shape), None, where)
            owner = network.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], nn.Parameter(tensor.float(), requires_grad=False))
    if left:
        raise InputError(where, f"{len(left)} tensors too many", sorted(left)[0], "take the folder as it was written")
    network.quantised = kind
    return network


def _take(left: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype | None, where: str) -> Tensor:
    """Take a tensor of this shape out of `left`; `dtype` None: any float; floats must be finite."""
    if name not in left:
        raise InputError(where, f"tensor {name} is missing", None, "take the folder as it was written")
    tensor = left.pop(name)
    if tuple(tensor.shape) != shape:
        raise InputError(where, f"tensor {name} must have shape {list(shape)}", list(tensor.shape))
    if tensor.dtype != dtype if dtype is not None else not tensor.is_floating_point():
        raise InputError(where, f"tensor {name} must be {dtype or 'floating-point numbers'}", str(tensor.dtype))
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputError(where, f"tensor {name} holds values that are NaN or infinite")
    return tensor


assert set(_BITS.values()) == set(KINDS)
