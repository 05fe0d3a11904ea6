"""What a training job is made of, for every side alike: settings, records, the sequences of each step, start weights.

It must not know who trains. Its one invariant: a job gives the same steps and the same weights to every side; what
FineTwo's own loader draws is what the peers get, in the same order.

A job is a dictionary: kind ("short" instructions, "classes" or "dense" rows), shape, length, batch, steps, warm, rank
(0: every weight learns), precision, dropout, device, and files of its own if it has any (tokenizer, records).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from surroundings import ROOT
from workloads import CLASSES, SHAPES, hub_config, labelled, some

from finetwo.core.config import LoraConfig, RowsConfig, TrainConfig
from finetwo.data.loader import Loader
from finetwo.data.sequences import Sequence
from finetwo.model.config import GPT2Config
from finetwo.model.network import Network
from finetwo.tasks.registry import find_task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer, train_vocabulary
from finetwo.train.parts import prepared_data
from finetwo.train.prepared import Wanted
from finetwo.train.start import decide, settle

EMBEDDED = ROOT / "src" / "finetwo" / "assets" / "tiny"
TASKS = {"short": "instruct", "classes": "classify", "dense": "style"}


def steps_of(job: dict[str, Any]) -> int:
    """The steps of a side, those that warm up included."""
    return int(job["steps"] + job["warm"])


def tokenizer_of(job: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a job, or the embedded one."""
    return Tokenizer.load(Path(job.get("tokenizer") or EMBEDDED))


def fields_of(record: dict[str, str]) -> dict[str, str]:
    """A record with its input behind its instruction, so that all prompts have one beginning of some 20 tokens."""
    more = f"\n\n### Input:\n{record['input']}" if record.get("input") else ""
    return {"instruction": record["instruction"] + more, "output": record["output"]}


def write_tokenizer(folder: Path, size: int = 5000) -> Path:
    """Write a vocabulary learned on records as they are made here, so that these have GPT-2's count of tokens."""
    template = Template.named("alpaca")
    fields = map(fields_of, some(6000, seed=5))
    texts = (text for row in fields for text in (template.prompt({"prompt": row["instruction"]}), row["output"]))
    Tokenizer(train_vocabulary(texts, size)).save(folder)
    return folder


def rows_of(job: dict[str, Any]) -> list[dict[str, str]]:
    """The records of a job: instructions, labelled texts, or texts long enough for its steps."""
    count = steps_of(job) * job["batch"]
    if job["kind"] == "classes":
        return labelled(count)
    if job["kind"] == "short":
        found = some(count)
        if job.get("records"):
            found = json.loads(Path(job["records"]).read_text(encoding="utf-8"))[:count]
        return [fields_of(row) for row in found]
    words = " ".join(r["output"] for r in some(count * job["length"] // 8))
    return [{"text": words[at : at + 20_000]} for at in range(0, len(words), 20_000)]


def config_of(job: dict[str, Any], out: str) -> TrainConfig:
    """The settings of FineTwo's job."""
    rank = job["rank"]
    return TrainConfig(
        task=TASKS[job["kind"]], out=out, device=job["device"], precision=job["precision"], batch_size=job["batch"],
        max_length=job["length"], max_steps=steps_of(job), lr=1e-4, warmup=0.0, schedule="constant", eval_every="0",
        save_every="0", sample_every="0", rows=RowsConfig(split="train:1.0"), dropout=job.get("dropout", 0.0),
        template="alpaca" if job["kind"] == "short" else None,
        lora=LoraConfig(rank=rank, targets="attn.c_attn") if rank else LoraConfig(),
    )  # fmt: skip


def network_of(job: dict[str, Any], *, complete: bool = False) -> Network:
    """A network of a job's shape, with random weights; `complete` as training begins with it."""
    network = Network.fresh(GPT2Config(**SHAPES[job["shape"]]), 0)
    if complete and job.get("kind") == "classes":
        network.add_classes(CLASSES)
    if complete and job.get("rank"):
        network.add_lora(config_of(job, "").lora, 0)
    return network


def batches_of(job: dict[str, Any]) -> list[list[Sequence]]:
    """The sequences of each step, in the order in which FineTwo's job takes them."""

    def say(_: str) -> None:
        return None

    rows, task = rows_of(job), find_task(TASKS[job["kind"]])
    with tempfile.TemporaryDirectory() as folder:
        config = decide(config_of(job, f"{folder}/run"), task, rows, say)
        config = settle(config, Network(GPT2Config(**(SHAPES[job["shape"]] | {"n_layer": 1}))), task)
        wanted = Wanted(config, rows, task, tokenizer_of(job))
        data = prepared_data(wanted, Path(folder) / "cache", Path(folder) / "made", say).train
        loader = Loader(data, job["batch"], 1, None, config.seed)
        steps = range(steps_of(job))
        return [[data.get(i, s // loader.steps_per_epoch) for i in loader.indices(s)] for s in steps]


def hub_model(job: dict[str, Any]) -> Any:
    """The same network as transformers has it, with the same weights; PEFT's adapter on it if the job has one."""
    from transformers import GPT2Config as HubConfig
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

    drop = job.get("dropout", 0.0)
    rates = {"resid_pdrop": drop, "embd_pdrop": drop, "attn_pdrop": drop}
    settings = hub_config(job["shape"]) | rates
    network = network_of(job, complete=True)
    state = {name: tensor for name, tensor in network.state().items() if ".adapter." not in name}
    classes = job.get("kind") == "classes"
    if classes:  # it reads the last place whose id is not that of padding, which no text has
        config = HubConfig(**settings, num_labels=len(CLASSES), pad_token_id=settings["eos_token_id"])
        model = GPT2ForSequenceClassification(config)
    else:
        model = GPT2LMHeadModel(HubConfig(**settings))
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, strict=True)
    return adapted(model, job, network) if job.get("rank") else model


def adapted(model: Any, job: dict[str, Any], network: Network) -> Any:
    """The model under PEFT's adapter with the start weights of ours."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    wanted = PeftConfig(
        r=job["rank"], lora_alpha=2 * job["rank"], lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    found = get_peft_model(model, wanted)
    start = network.adapter_state()
    with torch.no_grad():
        for name, p in found.named_parameters():
            if ".lora_" in name:
                own = name.removeprefix("base_model.model.").replace(".lora_", ".adapter.lora_").replace(".default", "")
                p.copy_(start[own])
    return found
