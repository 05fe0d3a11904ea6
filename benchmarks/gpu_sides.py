"""Sides of bench-gpu that do not train: the check before all, the rate of matrix products, and decoding.

    python benchmarks/gpu_sides.py SIDE JOB

It must not know who is compared with whom. Its one invariant: both sides of a pair compute with the same weights, the
same prompts and the same number of tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
from limits import matrix_rate
from running import emit, turn
from training_data import hub_model, network_of, tokenizer_of
from workloads import SHAPES

BOUNDS = {"float32": 2e-4, "bf16": 0.05}
"""The largest difference of logits, losses and gradients that passes, as a share of the largest value."""


def settle(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


# --- decoding --------------------------------------------------------------------------------------------------------


def prompts_of(job: dict[str, Any]) -> list[list[int]]:
    """Prompts of 64 ids, one for each answer."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 400, (job["batch"], job["prompt"]), generator=generator).tolist()


def finetwo_decoding(job: dict[str, Any]) -> None:
    """Our engine, greedy, by what its stream tells after the first token of every answer."""
    from finetwo.core.config import SamplingConfig
    from finetwo.generate.engine import Engine, Request

    network = network_of(job).to(job["device"], torch.bfloat16 if job["precision"] == "bf16" else torch.float32)
    engine = Engine(network, tokenizer_of(job), max_slots=max(32, job["batch"]))
    requests = [Request(p, SamplingConfig(max_new_tokens=job["new"], temperature=0.0)) for p in prompts_of(job)]

    def rate() -> float:
        waiting, started, tokens = set(range(len(requests))), 0.0, 0
        for event in engine.stream(requests):
            if waiting:
                waiting.discard(event.request)
                settle(job["device"])
                started = time.perf_counter()
            else:
                tokens += 1
        settle(job["device"])
        return tokens / max(time.perf_counter() - started, 1e-9)

    rate()
    turn()
    emit({"value": statistics.median(rate() for _ in range(job["repeat"])), "precision": job["precision"]})


def peer_decoding(job: dict[str, Any]) -> None:
    """Their generate, greedy, less the time of its first token."""
    model = hub_model(job).to(job["device"], torch.bfloat16 if job["precision"] == "bf16" else torch.float32).eval()
    ids = torch.tensor(prompts_of(job), device=job["device"])

    def seconds(new: int) -> float:
        settle(job["device"])
        started = time.perf_counter()
        mask = torch.ones_like(ids)
        model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        settle(job["device"])
        return time.perf_counter() - started

    seconds(2)
    turn()
    rates = []
    for _ in range(job["repeat"]):
        first, whole = seconds(1), seconds(job["new"])
        rates.append(len(ids) * (job["new"] - 1) / max(whole - first, 1e-9))
    emit({"value": statistics.median(rates), "precision": job["precision"]})


# --- first of all ----------------------------------------------------------------------------------------------------


def measured(network: Any, tokens: torch.Tensor, precision: str) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Logits, loss and the gradient of the embedding, as float32 on the CPU; any network that gives logits."""
    network.zero_grad(set_to_none=True)
    device = tokens.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        found = network(tokens)
        logits = getattr(found, "logits", found)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    weight = network.transformer.wte.weight
    return logits.detach().float().cpu(), float(loss.detach()), weight.grad.detach().float().cpu()


def apart(a: Any, b: Any) -> float:
    """The largest difference of what two networks gave, as a share of the largest value."""
    (la, xa, ga), (lb, xb, gb) = a, b
    logits, gradients = (float((x - y).abs().max() / y.abs().max()) for x, y in ((la, lb), (ga, gb)))
    return max(logits, abs(xa - xb) / abs(xb), gradients)


def check(job: dict[str, Any]) -> None:
    """Compare with the float32 result on the CPU, and with transformers; fail beyond the bounds."""
    torch.backends.cuda.matmul.allow_tf32 = False
    shape = job["shape"]
    tokens = torch.randint(0, SHAPES[shape]["vocab_size"], (2, 48), generator=torch.Generator().manual_seed(2))
    wanted = measured(network_of(job), tokens, "float32")
    device = job["device"]
    found: dict[str, float] = {}
    for precision in BOUNDS:
        network = network_of(job).to(device)
        found[precision] = apart(measured(network, tokens.to(device), precision), wanted)
    try:
        theirs = hub_model(job).to(device)
    except ImportError:
        print("transformers is not installed: compared with the CPU alone", file=sys.stderr)
    else:
        found["float32, transformers"] = apart(measured(theirs, tokens.to(device), "float32"), wanted)
    for name, value in found.items():
        if not value <= BOUNDS[name.partition(",")[0]]:
            raise SystemExit(f"Error: {name} differs from float32 on the CPU by {value:.2g} of the largest value")
    emit({"value": found["float32"], "differences": found})


def rate(job: dict[str, Any]) -> None:
    """The rate of a large matrix product, in FLOP/s."""
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    emit({"value": matrix_rate(job["size"], job["size"], job["size"], dtype, job["device"])})


SIDES = {"check": check, "rate": rate, "finetwo decoding": finetwo_decoding, "peer decoding": peer_decoding}

if __name__ == "__main__":
    SIDES[sys.argv[1]](json.loads(sys.argv[2]))
