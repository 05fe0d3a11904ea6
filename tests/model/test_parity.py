"""The network against independent references: transformers, every activation of a trained nano GPT, a few lines."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.standins.models import difference, hf_twin, random_network, random_tokens, tiny_config
from torch import Tensor

from finetwo.model.attend import Causal
from finetwo.model.config import GPT2Config
from finetwo.model.gpt2 import activate
from finetwo.model.network import Network

SHAPES: dict[str, dict[str, Any]] = {
    "as published": {},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "unscaled, by layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "inner width": {"n_inner": 29},
    "one of each": {"n_layer": 1, "n_head": 1, "n_positions": 13, "vocab_size": 7},
    "heads of one": {"n_embd": 6, "n_head": 6, "n_layer": 2},
    "other epsilon": {"layer_norm_epsilon": 0.01},
}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_logits_loss_and_gradients_equal_transformers(settings: dict[str, Any]) -> None:
    config = tiny_config(**settings)
    ours = random_network(config)
    theirs = hf_twin(ours)
    tokens = random_tokens(3, config.n_positions, config.vocab_size)
    labels = tokens.clone()
    labels[0, :4], labels[1, 9:], labels[2, 5] = -100, -100, -100
    told = theirs(tokens, labels=labels)
    assert difference(ours(tokens), told.logits) < 1e-5

    targets = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    total, count = ours.loss(tokens, positions, targets, Causal()), int((targets != -100).sum())
    assert abs(float(total.detach()) / count - float(told.loss.detach())) < 1e-5

    (total / count).backward()
    told.loss.backward()
    wanted = dict(theirs.named_parameters())
    assert wanted.keys() == dict(ours.named_parameters()).keys()
    for name, p in ours.named_parameters():
        assert p.grad is not None and wanted[name].grad is not None
        scale = max(1.0, float(wanted[name].grad.abs().max()))
        assert difference(p.grad, wanted[name].grad) / scale < 1e-5, name


def test_the_settings_above_make_a_difference() -> None:
    tokens = random_tokens(1, 7, 61)
    plain = random_network(tiny_config())(tokens)
    for name in ("gelu", "relu", "scaled by layer", "unscaled", "other epsilon"):
        assert difference(random_network(tiny_config(**SHAPES[name]))(tokens), plain) > 1e-4, name


def test_positions_are_used() -> None:
    network, tokens = random_network(tiny_config()), random_tokens(1, 5, 61)
    shifted = torch.arange(5).expand(1, 5) + 3
    assert difference(network(tokens, shifted), network(tokens)) > 1e-2
    assert difference(network(tokens, shifted), hf_twin(network)(tokens, position_ids=shifted).logits) < 1e-5


def test_a_token_does_not_see_what_follows() -> None:
    network, tokens = random_network(tiny_config()), random_tokens(1, 9, 61)
    other = tokens.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 61
    assert difference(network(tokens)[:, :5], network(other)[:, :5]) < 1e-6
    assert difference(network(tokens)[:, 5:], network(other)[:, 5:]) > 1e-2


# --- a nano GPT trained elsewhere ---------------------------------------------------------------------------------


def decoded(entry: dict[str, Any]) -> Tensor:
    data = np.frombuffer(base64.b64decode(entry["data"]), dtype="<f4").copy()
    return torch.from_numpy(data).reshape(entry["shape"])


@pytest.fixture(scope="module")
def nano(shared_data: Path) -> tuple[Network, dict[str, Tensor]]:
    folder = shared_data / "reference" / "gpt-nano-sort"
    if not (folder / "gpt-nano-sort-model.json").is_file():
        pytest.skip("no nano GPT here")
    model = json.loads((folder / "gpt-nano-sort-model.json").read_text())
    partials = json.loads((folder / "gpt-nano-sort-t0-partials.json").read_text())
    c = model["config"]
    config = GPT2Config(c["vocab_size"], c["block_size"], c["n_embd"], c["n_layer"], c["n_head"], eos_token_id=2)
    state = {n: decoded(e) for n, e in model.items() if n not in ("config", "lm_head.weight")}
    linears = ("c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight")
    network = Network(config).eval()
    network.load_state({n: t.t() if n.endswith(linears) else t for n, t in state.items()}, "nano")
    network.nano_head = decoded(model["lm_head.weight"])  # type: ignore[assignment]  # this one is not tied
    return network, {n: decoded(e) for n, e in partials.items() if n != "config"}


def test_every_activation_of_a_trained_nano_gpt(nano: tuple[Network, dict[str, Tensor]]) -> None:
    network, wanted = nano
    trunk = network.transformer
    tokens = wanted["idx"].round().long()
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    got: dict[str, Tensor] = {"tok_emb": trunk.wte(tokens), "pos_emb": trunk.wpe(positions[:1])}

    def keep(name: str, module: torch.nn.Module, inputs: bool = False) -> None:
        def hear(_: Any, given: Any, out: Any) -> None:  # a block leaves its last sum to whoever comes next
            got[name] = given[0] if inputs else out if isinstance(out, Tensor) else out[0] + out[1]

        module.register_forward_hook(hear)

    first: Any = trunk.h[0]
    keep("x", first.ln_1, inputs=True)
    keep("ln1", first.ln_1)
    keep("qkv", first.attn.c_attn)
    keep("y", first.attn.c_proj, inputs=True)
    keep("yProj", first.attn.c_proj)
    keep("attnResid", first.ln_2, inputs=True)
    keep("ln2", first.ln_2)
    keep("fc", first.mlp.c_fc)
    keep("gelu", first.mlp.c_proj, inputs=True)
    keep("mlp", first.mlp.c_proj)
    for i, block in enumerate(trunk.h):
        keep(f"block{i}", block)
    keep("ln_f", trunk.ln_f)

    class Spy(Causal):
        """Keeps what the first layer hands to attention."""

        def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
            if layer == 0:
                got.update(q=q, k=k, v=v, att=q @ k.transpose(-2, -1) * scale)
            return super().__call__(layer, q, k, v, scale, dropout)

    with torch.no_grad():
        hidden = network.hidden(tokens, positions, Spy())
    got["lm_head"] = hidden @ network.nano_head.t()  # type: ignore[operator]
    got["mlpResid"] = got["block0"]
    got["probs"] = got["lm_head"].softmax(-1)
    seen = torch.tril(torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool))
    for name in ("att", "attSm"):  # compare where the reference is not masked
        wanted[name] = torch.where(seen, wanted[name], 0.0)
    got["attSm"] = torch.where(seen, got["att"], -math.inf).softmax(-1)
    got["att"] = torch.where(seen, got["att"], 0.0)
    assert got.keys() == wanted.keys() - {"idx"}
    for name, value in got.items():
        assert difference(value, wanted[name]) < 2e-5 * max(1.0, float(wanted[name].abs().max())), name


def test_the_nano_gpt_sorts(nano: tuple[Network, dict[str, Tensor]]) -> None:
    network, _ = nano
    for numbers in ([2, 1, 0, 1, 0, 2], [0, 0, 2, 2, 1, 1], [1, 1, 1, 0, 2, 0]):
        row = torch.tensor([numbers])
        for _ in numbers:
            following = (network.hidden(row)[:, -1] @ network.nano_head.t()).argmax(-1)  # type: ignore[operator]
            row = torch.cat([row, following[:, None]], 1)
        assert row[0, 6:].tolist() == sorted(numbers)


# --- post-norm ----------------------------------------------------------------------------------------------------


def post_norm_reference(network: Network, tokens: Tensor) -> Tensor:
    """The original Transformer's order of norms, written out (one row at a time, no fused attention)."""
    s, c = network.state(), network.config

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + c.layer_norm_epsilon).rsqrt()
        return centred * scale * s[f"{name}.weight"] + s[f"{name}.bias"]

    def apply(x: Tensor, name: str) -> Tensor:
        return x @ s[f"{name}.weight"] + s[f"{name}.bias"]

    size, rows = c.n_embd // c.n_head, []
    for row in tokens:
        x = s["transformer.wte.weight"][row] + s["transformer.wpe.weight"][: len(row)]
        for i in range(c.n_layer):
            at = f"transformer.h.{i}"
            q, k, v = apply(x, f"{at}.attn.c_attn").split(c.n_embd, -1)
            heads = []
            for h in range(c.n_head):
                part = slice(h * size, (h + 1) * size)
                scores = q[:, part] @ k[:, part].t() / size**0.5
                scores[torch.triu(torch.ones_like(scores), 1) == 1] = -math.inf
                heads.append(scores.softmax(-1) @ v[:, part])
            x = norm(x + apply(torch.cat(heads, -1), f"{at}.attn.c_proj"), f"{at}.ln_1")
            x = norm(x + apply(activate("gelu_new", apply(x, f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj"), f"{at}.ln_2")
        rows.append(norm(x, "transformer.ln_f") @ s["transformer.wte.weight"].t())
    return torch.stack(rows)


def test_post_norm_equals_its_written_out_form() -> None:
    network, tokens = random_network(tiny_config(post_norm=True)), random_tokens(2, 11, 61)
    assert difference(network(tokens), post_norm_reference(network, tokens)) < 1e-5
    pre = random_network(tiny_config())
    assert difference(network(tokens), pre(tokens)) > 1e-2
