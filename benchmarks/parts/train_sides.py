"""The two sides of each training workload: FineTwo's step, and the peer's on the same records from the same weights.

A side is a function from a step's number to its loss. Run as a program it is one side in a process of its own: it
makes a step for each line that it reads and answers with a line of JSON, so that whoever asks can take turns.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from finetwo.core.allocator import keep_large_blocks

if __name__ == "__main__":  # both sides get the allocator's settings, before torch is there
    keep_large_blocks()

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from finetwo.core.config import LoraConfig, TrainConfig
from finetwo.data.batch import pad
from finetwo.data.loader import InMemory, Loader
from finetwo.data.sequences import Sequence
from finetwo.model.config import GPT2Config
from finetwo.model.network import Network
from finetwo.train.optimizer import Optimizer, trainable
from finetwo.train.step import backward, gradient_norm, shrinking

LR, CLIP = 5e-5, 1.0
Step = Callable[[int], float]


@dataclass(frozen=True)
class Workload:
    """What is trained: the model's shape, the records, and how."""

    name: str
    data: str
    """instruct, classes or dense: the shape of the records."""
    precision: str
    peer: str
    """transformers, peft or nano."""
    shape: tuple[int, int, int, int, int]
    """Layers, width, heads, vocabulary, context."""
    batch: int = 8
    lora: bool = False
    file: str | None = None
    """Token ids of real instruction records (a JSON list of [tokens, targets]) in place of random ones."""

    @property
    def config(self) -> GPT2Config:
        """The network's configuration."""
        layers, width, heads, vocabulary, context = self.shape
        labels = tuple("abcdef") if self.data == "classes" else ()
        settings: dict[str, Any] = {"n_layer": layers, "n_embd": width, "n_head": heads, "labels": labels}
        return GPT2Config(vocab_size=vocabulary, n_positions=context, eos_token_id=vocabulary - 1, **settings)


def records(work: Workload) -> list[Sequence]:
    """Records of the workload's shape, always the same ones."""
    if work.file is not None:
        rows = json.loads(Path(work.file).read_text(encoding="utf-8"))
        return [Sequence(np.array(t, dtype=np.int32), np.array(y, dtype=np.int32)) for t, y in rows]
    rng, (_, _, _, vocabulary, context) = np.random.default_rng(0), work.shape
    found = []
    begin = rng.integers(1, vocabulary - 1, 20)
    for _ in range(256):
        if work.data == "dense":
            row = rng.integers(1, vocabulary - 1, context + 1)
            learn = np.ones(context, dtype=bool)
        elif work.data == "classes":
            row = rng.integers(1, vocabulary - 1, 1 + int(np.clip(rng.lognormal(2.75, 0.5), 3, context - 1)))
            learn = np.zeros(len(row) - 1, dtype=bool)
        else:
            sizes = np.clip(rng.lognormal((3.05, 2.4), 0.5), 2, context // 2 - 12).astype(int)
            row = np.concatenate((begin, rng.integers(1, vocabulary - 1, int(sizes.sum()))))[: context + 1]
            learn = np.arange(1, len(row)) >= 20 + sizes[0]
        targets = np.where(learn, row[1:], -100)
        if work.data == "classes":
            targets[-1] = rng.integers(6)
        found.append(Sequence(row[:-1].astype(np.int32), targets.astype(np.int32)))
    return found


def network_of(work: Workload) -> Network:
    """Fresh weights, the same on both sides."""
    network = Network.fresh(work.config, 0)
    if work.lora:
        network.add_lora(LoraConfig(rank=8, alpha=16.0, targets="attn.c_attn"), seed=0)
        network.freeze_all_but_lora()
    return network


def ours(work: Workload) -> Step:
    """FineTwo's step, by the parts of its loop."""
    network = network_of(work).train()
    config = TrainConfig(precision=work.precision)  # type: ignore[arg-type]
    optimizer = Optimizer(network, config, LR)
    parameters = list(trainable(network).values())
    loader = Loader(InMemory(records(work)), work.batch, 1, None, 0, share=True)

    def step(number: int) -> float:
        batches = loader.batches(number)
        loss = backward(network, batches, work.precision, batches[0].learned)
        optimizer.step(1.0, shrinking(gradient_norm(parameters), CLIP))
        return loss

    return step


def peer(work: Workload) -> Step:
    """The peer's step: padded rows (dense ones need none), AdamW as its library sets it up, the same clipping."""
    model, loss_of = {"transformers": _transformers, "peft": _peft, "nano": _nano}[work.peer](work)
    model.train()
    learn = [p for p in model.parameters() if p.requires_grad]
    matrices, rest = [p for p in learn if p.ndim > 1], [p for p in learn if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=LR, fused=True)
    data = InMemory(records(work))
    loader = Loader(data, work.batch, 1, False, 0)

    def step(number: int) -> float:
        rows = [data.get(i, 0) for i in loader.indices(number)]
        low = torch.autocast("cpu", torch.bfloat16) if work.precision == "bf16" else contextlib.nullcontext()
        with low:
            loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learn, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


Peer = tuple[nn.Module, Callable[[list[Sequence]], Tensor]]


def _transformers(work: Workload) -> Peer:
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

    network, shape = network_of(work), work.config.to_dict()
    known = {k: shape[k] for k in ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions")}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": 0, "bos_token_id": 0}
    config = HFConfig(**known, **off, eos_token_id=0, num_labels=6)
    classes = work.data == "classes"
    model = (GPT2ForSequenceClassification if classes else GPT2LMHeadModel)(config)
    state = {k: v.clone() for k, v in network.state().items() if ".adapter." not in k}
    if not classes:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, strict=True)
    model.config.use_cache = False

    def loss(rows: list[Sequence]) -> Tensor:
        batch = pad(rows)
        tokens = torch.from_numpy(batch.tokens)
        mask = (torch.arange(tokens.shape[1]) < torch.tensor([[len(r)] for r in rows])).long()
        if classes:  # it reads the last place whose id is not the padding's, 0: none of our texts has it
            labels = torch.tensor([int(r.targets[-1]) for r in rows])
            return cast(Tensor, model(input_ids=tokens, attention_mask=mask, labels=labels).loss)
        labels = torch.cat((torch.full((len(rows), 1), -100), torch.from_numpy(batch.targets)), dim=1)
        tokens = torch.cat((tokens, torch.zeros(len(rows), 1, dtype=torch.long)), dim=1)  # it shifts labels itself
        mask = torch.cat((mask, mask[:, :1] * 0), dim=1)
        return cast(Tensor, model(input_ids=tokens, attention_mask=mask, labels=labels).loss)

    return model, loss


def _peft(work: Workload) -> Peer:
    import peft

    model, loss = _transformers(work)
    asked = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(model, asked)  # inside the model that `loss` calls
    start = network_of(work).adapter_state()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if ".lora_" in name:
                own = name.removeprefix("base_model.model.").replace(".lora_", ".adapter.lora_").replace(".default", "")
                p.copy_(start[own])
    return adapted, loss


class Nano(nn.Module):
    """The plain way to write GPT-2 in PyTorch: pre-norm blocks, fused attention, every logit."""

    def __init__(self, state: dict[str, Tensor], heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layers = 1 + max(int(n.split(".")[2]) for n in state if ".h." in n)
        self.weights = nn.ParameterDict({n.replace(".", "_"): nn.Parameter(t.clone()) for n, t in state.items()})

    def _w(self, *name: object) -> tuple[Tensor, Tensor]:
        stem = "transformer_" + "_".join(map(str, name))
        return self.weights[f"{stem}_weight"], self.weights[f"{stem}_bias"]

    def _linear(self, x: Tensor, *name: object) -> Tensor:
        weight, bias = self._w(*name)
        return nn.functional.linear(x, weight.t(), bias)

    def _norm(self, x: Tensor, *name: object) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], *self._w(*name))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        (b, t), table = tokens.shape, self.weights["transformer_wte_weight"]
        x = nn.functional.embedding(tokens, table) + self.weights["transformer_wpe_weight"][:t]
        for i in range(self.layers):
            q, k, v = self._linear(self._norm(x, "h", i, "ln_1"), "h", i, "attn_c_attn").split(x.shape[-1], dim=2)
            q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in (q, k, v))
            seen = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, -1)
            x = x + self._linear(seen, "h", i, "attn_c_proj")
            inner = gelu(self._linear(self._norm(x, "h", i, "ln_2"), "h", i, "mlp_c_fc"), approximate="tanh")
            x = x + self._linear(inner, "h", i, "mlp_c_proj")
        return nn.functional.linear(self._norm(x, "ln_f"), table)


def _nano(work: Workload) -> Peer:
    model = Nano(network_of(work).state(), work.config.n_head)

    def loss(rows: list[Sequence]) -> Tensor:
        batch = pad(rows)
        logits = model(torch.from_numpy(batch.tokens))
        return cross_entropy(logits.flatten(0, 1).float(), torch.from_numpy(batch.targets).flatten(), ignore_index=-100)

    return model, loss


def timed(step: Step, number: int) -> dict[str, float]:
    """Make one step; return its loss, its wall time and its processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step(number)
    return {"loss": loss, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def peak_mib() -> float:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


SIDES: dict[str, Callable[[Workload], Step]] = {"ours": ours, "peer": peer}


def pack_up(work: Workload) -> str:
    """The workload as one word of a command line."""
    return json.dumps(asdict(work))


def main(side: str, work: str, threads: int) -> None:
    """Be one side: a step for each number on standard input."""
    torch.set_num_threads(threads)
    given = json.loads(work)
    step = SIDES[side](Workload(**(given | {"shape": tuple(given["shape"])})))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(step, int(line)) | {"peak_mib": peak_mib()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
