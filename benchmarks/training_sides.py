"""Sides that train and decode, ours and the peers; the rate of matrix products, and the check before them all.

Each is one process that ends by handing over its figure. Its one invariant: both sides of a pair get the same shape of
random weights, the same records, batches, precision and number of steps.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, emit
from limits import matrix_rate
from workloads import SHAPES, hub_config, some

EMBEDDED = ROOT / "src" / "finetwo" / "assets" / "tiny"
BOUNDS = {"float32": 2e-4, "bf16": 0.05}
"""The largest difference of logits, losses and gradients that passes, as a share of the largest value."""


class Enough(BaseException):
    """Ends a run of ours after its last timed step, before anything is written."""


def settle(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def gpu_peak(device: str) -> dict[str, float]:
    """The most memory that tensors took on the device, in MB."""
    return {"gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)} if device == "cuda" else {}


def flops_per_token(shape: dict[str, int], length: int) -> float:
    """Floating-point operations that training a token of a dense row takes, counted as nanoGPT counts them."""
    width, layers = shape["n_embd"], shape["n_layer"]
    parameters = 12 * layers * width * width + shape["vocab_size"] * width
    return 6.0 * parameters + 12.0 * layers * width * length


def told(marks: list[tuple[float, int]], warm: int, device: str, **more: Any) -> None:
    """Hand over tokens a second by the moments after each step and the tokens until then; the first steps warm up."""
    pairs = list(zip(marks[warm:], marks[warm + 1 :], strict=False))
    rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs]
    emit({"value": statistics.median(rates), "steps": len(rates), **gpu_peak(device), **more})


# --- training --------------------------------------------------------------------------------------------------------


def network_of(job: dict[str, Any], seed: int = 0) -> Any:
    """Our network of a job's shape, with random weights."""
    from finetwo.model.config import GPT2Config
    from finetwo.model.network import Network

    return Network.fresh(GPT2Config(**SHAPES[job["shape"]]), seed)


def rows_of(job: dict[str, Any]) -> list[dict[str, str]]:
    """The records of a job: instructions, or texts long enough for its steps."""
    if job["kind"] == "short":
        found = some(job["batch"] * 4)
        return [{"prompt": r["instruction"], "input": r["input"], "completion": r["output"]} for r in found]
    wanted = (job["steps"] + job["warm"]) * job["batch"] * job["length"]
    words = " ".join(r["output"] for r in some(wanted // 8))
    return [{"text": words[at : at + 20_000]} for at in range(0, len(words), 20_000)]


def finetwo_training(job: dict[str, Any]) -> None:
    """A job of ours by the function that `finetwo train` calls."""
    from finetwo.core.config import LoraConfig, RowsConfig, TrainConfig
    from finetwo.generate.pipeline import Model
    from finetwo.text.tokenizer import Tokenizer
    from finetwo.train.job import train

    device, losses = job["device"], []
    marks: list[tuple[float, int]] = []

    class Watch:
        def hear(self, event: Any) -> None:
            if event["event"] == "step":
                settle(device)
                marks.append((time.perf_counter(), int(event["tokens"])))
                losses.append(round(float(event["loss"]), 4))
                if len(marks) == job["steps"] + job["warm"]:
                    raise Enough

        def close(self) -> None:
            return None

    tokenizer = Tokenizer.load(EMBEDDED)
    shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as out:
        config = TrainConfig(
            task="instruct" if job["kind"] == "short" else "style", out=f"{out}/run", device=device,
            precision=job["precision"], batch_size=job["batch"], max_length=job["length"], eval_every="0",
            max_steps=job["steps"] + job["warm"], lr=1e-4, warmup=0.0, schedule="constant", save_every="0",
            rows=RowsConfig(split="train:1.0"),
            lora=LoraConfig(rank=job["rank"], targets="c_attn") if job["rank"] else LoraConfig(),
        )  # fmt: skip
        with suppress(Enough):
            train(config, rows_of(job), model=Model(network_of(job), tokenizer), listeners=[Watch()])
    dense = {} if job["kind"] == "short" else {"flops": flops_per_token(SHAPES[job["shape"]], job["length"])}
    told(marks, job["warm"], device, losses=losses, precision=job["precision"], **dense)


def examples_of(job: dict[str, Any]) -> list[dict[str, list[int]]]:
    """The same records as token ids and labels, as a peer's trainer takes them."""
    from finetwo.text.template import Template
    from finetwo.text.tokenizer import Tokenizer

    tokenizer, template = Tokenizer.load(EMBEDDED), Template.named("alpaca")
    if job["kind"] != "short":
        ids = [i for row in rows_of(job) for i in tokenizer.encode(row["text"])]
        chunks = [ids[at : at + job["length"]] for at in range(0, len(ids) - job["length"], job["length"])]
        return [{"input_ids": chunk, "labels": chunk} for chunk in chunks]
    found = []
    for row in rows_of(job):
        asked, answer = tokenizer.encode(template.prompt(row)), [*tokenizer.encode(row["completion"]), tokenizer.eot]
        found.append({"input_ids": asked + answer, "labels": [-100] * len(asked) + answer})
    return found


def hub_model(job: dict[str, Any], weights: bool = False) -> Any:
    """A model of transformers of the job's shape; with our random weights, or its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**hub_config(job["shape"])))
    if weights:
        state = {name: tensor.clone() for name, tensor in network_of(job).state().items()}
        missing = model.load_state_dict(state, strict=False)
        wrong = [name for name in missing.missing_keys if name != "lm_head.weight"]
        if wrong or missing.unexpected_keys:
            raise SystemExit(f"Error: the names of the weights differ: {wrong} {missing.unexpected_keys}")
    return model


def peer_training(job: dict[str, Any]) -> None:
    """The same job by transformers' Trainer, with PEFT for an adapter."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model = hub_model(job)
    if job["rank"]:
        from peft import LoraConfig, get_peft_model

        wanted = LoraConfig(
            r=job["rank"], lora_alpha=2 * job["rank"], target_modules=["c_attn"], fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        model = get_peft_model(model, wanted)
    marks: list[tuple[float, int]] = []
    seen = [0]

    def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        lengths = [len(f["input_ids"]) for f in features]
        seen[0] += sum(lengths)
        batch = {
            name: torch.tensor([f[name] + [fill] * (max(lengths) - len(f[name])) for f in features])
            for name, fill in (("input_ids", 0), ("labels", -100))
        }
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        return batch | {"attention_mask": mask.long()}

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            settle(job["device"])
            marks.append((time.perf_counter(), seen[0]))

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, per_device_train_batch_size=job["batch"], max_steps=job["steps"] + job["warm"], learning_rate=1e-4,
            bf16=job["precision"] == "bf16", use_cpu=job["device"] == "cpu", logging_steps=1, save_strategy="no",
            report_to=[], lr_scheduler_type="constant", disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=examples_of(job), data_collator=collate, callbacks=[Watch()])
        trainer.train()
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    told(marks, job["warm"], job["device"], losses=losses, precision=job["precision"])


# --- decoding --------------------------------------------------------------------------------------------------------


def prompts_of(job: dict[str, Any]) -> list[list[int]]:
    """Prompts of 64 ids, one for each answer."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 400, (job["batch"], job["prompt"]), generator=generator).tolist()


def finetwo_decoding(job: dict[str, Any]) -> None:
    """Our engine, greedy, by what its stream tells after the first token of every answer."""
    from finetwo.core.config import SamplingConfig
    from finetwo.generate.engine import Engine, Request
    from finetwo.text.tokenizer import Tokenizer

    network = network_of(job).to(job["device"], torch.bfloat16 if job["precision"] == "bf16" else torch.float32)
    engine = Engine(network, Tokenizer.load(EMBEDDED), max_slots=max(32, job["batch"]))
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
        theirs = hub_model(job, weights=True).to(device)
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


SIDES = {
    "check": check, "rate": rate, "finetwo training": finetwo_training, "peer training": peer_training,
    "finetwo decoding": finetwo_decoding, "peer decoding": peer_decoding,
}  # fmt: skip

if __name__ == "__main__":
    SIDES[sys.argv[1]](json.loads(sys.argv[2]))
