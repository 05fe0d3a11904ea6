"""Sides that train: FineTwo, transformers' Trainer, TRL, a plain loop, LitGPT; each hands over its rate and its losses.

    python benchmarks/training_sides.py SIDE JOB

Each is one process, which waits for its turn before every step where it stands among others. Its one invariant: a step
is timed from its turn to its end, reading its batch included, and counts the real tokens that all sides count.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plain import Plain
from running import emit, in_turn, turn
from training_data import batches_of, config_of, hub_model, network_of, rows_of, steps_of, tokenizer_of
from workloads import SHAPES

from finetwo.data.batch import pad
from finetwo.data.sequences import IGNORE, Sequence
from finetwo.generate.pipeline import Model
from finetwo.train import start
from finetwo.train.job import train

DECAY = 0.01
"""The weight decay of every side, on matrices."""


class Enough(BaseException):
    """Ends a run of ours after its last timed step, before anything is written."""


def block_of(job: dict[str, Any]) -> int:
    """How many steps are told of at once."""
    return int(job.get("block", 1))


def flops_per_token(shape: dict[str, int], length: int) -> float:
    """Floating-point operations that training a token of a dense row takes, counted as nanoGPT counts them."""
    width, layers = shape["n_embd"], shape["n_layer"]
    parameters = 12 * layers * width * width + shape["vocab_size"] * width
    return 6.0 * parameters + 12.0 * layers * width * length


class Steps:
    """Counts and times the steps of a side.

    On a CPU each step waits for its turn. On a GPU the steps after those that warm up are one turn, and are told of in
    blocks: to wait for each would keep a GPU from what it does meanwhile.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.losses = job, list[float]()
        self.tokens, self.wall, self.cpu = list[int](), list[float](), list[float]()
        self.block = block_of(job)
        self._open: list[tuple[int, float]] = []

    def ready(self) -> None:
        """All is there for the next step: wait for its turn."""
        if self.block == 1 or len(self.wall) * self.block == self.job["warm"]:
            turn()
        self.began = time.perf_counter(), time.process_time()

    def made(self, tokens: int, loss: float) -> None:
        """A step has ended."""
        self._open.append((tokens, loss))
        if len(self._open) == self.block:
            self.made_block(sum(n for n, _ in self._open), statistics.mean(x for _, x in self._open))
            self._open.clear()

    def made_block(self, tokens: int, loss: float) -> None:
        """A block has ended; the first warm up, and after the last there is no turn to wait for."""
        self.wall.append(time.perf_counter() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])
        self.tokens.append(tokens)
        self.losses.append(round(loss, 4))
        if not self.enough:
            self.ready()

    @property
    def enough(self) -> bool:
        """Whether this was the last step."""
        return len(self.wall) * self.block == steps_of(self.job)

    def tell(self) -> None:
        """Hand over what was found: tokens a second, of the median step and where turns were taken of each.

        The first block of a GPU's turn is not counted: a step of it may have been under way before.
        """
        first, device = self.job["warm"] // self.block + (self.block > 1), self.job["device"]
        rates = [n / t for n, t in zip(self.tokens[first:], self.wall[first:], strict=True)]
        calm = [n / max(t, 1e-9) for n, t in zip(self.tokens[first:], self.cpu[first:], strict=True)]
        found: dict[str, Any] = {
            "value": statistics.median(rates), "per_cpu_second": statistics.median(calm), "losses": self.losses,
            "steps": len(rates) * self.block, "tokens": sum(self.tokens),
            "first_step_s": round(self.wall[0], 2), "precision": self.job["precision"],
        }  # fmt: skip
        if in_turn():
            found["values"] = rates
        if device == "cuda":
            found["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
        if self.job["kind"] == "dense" and not self.job["rank"]:
            found["flops"] = flops_per_token(SHAPES[self.job["shape"]], self.job["length"])
        emit(found)


# --- ours ------------------------------------------------------------------------------------------------------------


def ours(job: dict[str, Any]) -> None:
    """A job of ours by the function that `finetwo train` calls."""
    steps, before = Steps(job), [0]
    if job.get("emulated"):
        start.only_imitates_bf16 = lambda device: False

    class Watch:
        def hear(self, event: Any) -> None:
            if event["event"] == "start":
                steps.ready()
            elif event["event"] == "step":
                steps.made(int(event["tokens"]) - before[0], float(event["loss"]))
                before[0] = int(event["tokens"])
                if steps.enough:
                    raise Enough

        def close(self) -> None:
            return None

    shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as out, suppress(Enough):
        model = Model(network_of(job), tokenizer_of(job))
        if job.get("compiled"):
            for block in model.network.transformer.h:  # for any length of row; not the sparse gradient of an embedding
                block.compile(dynamic=True)
        train(config_of(job, f"{out}/run"), rows_of(job), model=model, listeners=[Watch()])
    steps.tell()


# --- transformers and TRL --------------------------------------------------------------------------------------------


def example(sequence: Sequence, kind: str) -> dict[str, Any]:
    """A sequence as the peers' trainers take it: they shift the labels themselves."""
    tokens, targets = sequence.tokens.tolist(), sequence.targets.tolist()
    if kind == "classes":
        return {"input_ids": tokens, "labels": targets[-1]}
    if kind == "dense":  # as long as the context: the token that follows has no place
        return {"input_ids": tokens, "labels": [IGNORE, *targets[:-1]]}
    return {"input_ids": [*tokens, targets[-1]], "labels": [IGNORE, *targets]}


def collate(features: list[dict[str, Any]], filler: int) -> dict[str, torch.Tensor]:
    """Padded rows, as transformers' collators make them."""
    lengths = [len(f["input_ids"]) for f in features]

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([f[name] + [fill] * (max(lengths) - len(f[name])) for f in features])

    rows = isinstance(features[0]["labels"], list)
    labels = padded("labels", IGNORE) if rows else torch.tensor([f["labels"] for f in features])
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return {"input_ids": padded("input_ids", filler), "labels": labels, "attention_mask": mask.long()}


def watching(steps: Steps, counts: list[int]) -> Any:
    """A callback that tells of a trainer's steps; the loss of a step comes with its log."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            steps.ready()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                first, block = len(steps.losses) * steps.block, steps.block
                steps.made_block(sum(counts[first : first + block]), float(logs["loss"]))

    return Watch()


def arguments_of(job: dict[str, Any], out: str) -> dict[str, Any]:
    """What Trainer and TRL are told alike; everything else is their default."""
    return {
        "output_dir": out, "per_device_train_batch_size": job["batch"], "max_steps": steps_of(job),
        "learning_rate": 1e-4, "lr_scheduler_type": "constant", "weight_decay": DECAY, "logging_steps": block_of(job),
        "train_sampling_strategy": "sequential", "use_cpu": job["device"] == "cpu", "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "bf16": job["precision"] == "bf16",
    }  # fmt: skip


def trainer(job: dict[str, Any]) -> None:
    """The same job by transformers' Trainer, under PEFT's adapter if there is one."""
    from transformers import Trainer, TrainingArguments

    steps, batches, model = Steps(job), batches_of(job), hub_model(job)
    model.config.use_cache = False  # a favour: it would keep keys and values that nobody reads
    examples = [example(s, job["kind"]) for batch in batches for s in batch]
    collator = partial(collate, filler=model.config.eos_token_id)
    with tempfile.TemporaryDirectory() as out:
        asked = TrainingArguments(**arguments_of(job, out), torch_compile=bool(job.get("compiled")))
        watch = watching(steps, [sum(map(len, batch)) for batch in batches])
        Trainer(model, asked, train_dataset=examples, data_collator=collator, callbacks=[watch]).train()
    steps.tell()


def trl(job: dict[str, Any]) -> None:
    """The same job by TRL's SFTTrainer with its defaults, among them gradient checkpointing."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    steps, batches, model = Steps(job), batches_of(job), hub_model(job)
    model.config.use_cache = False  # a favour: it would keep keys and values that nobody reads
    examples = Dataset.from_list([example(s, job["kind"]) for batch in batches for s in batch])
    with tempfile.TemporaryDirectory() as out:
        tokenizer_of(job).save(Path(out) / "tokenizer")
        words = AutoTokenizer.from_pretrained(f"{out}/tokenizer")
        words.pad_token = words.pad_token or words.eos_token
        watch = watching(steps, [sum(map(len, batch)) for batch in batches])
        asked = SFTConfig(**arguments_of(job, out))
        SFTTrainer(model, asked, train_dataset=examples, processing_class=words, callbacks=[watch]).train()
    steps.tell()


# --- plain loops -----------------------------------------------------------------------------------------------------


def looped(job: dict[str, Any], model: Any, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The loop that everybody writes: padded rows, fused AdamW, clipping."""
    steps, batches = Steps(job), batches_of(job)
    learn = [p for p in model.parameters() if p.requires_grad]
    decayed, rest = [p for p in learn if p.ndim > 1], [p for p in learn if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-4, fused=True)
    low = job["precision"] == "bf16"
    model.train()
    steps.ready()
    for batch in batches:
        rows = pad(batch)
        tokens, targets = torch.from_numpy(rows.tokens), torch.from_numpy(rows.targets)
        with torch.autocast("cpu", torch.bfloat16) if low else contextlib.nullcontext():
            logits = logits_of(tokens)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learn, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.made(sum(map(len, batch)), float(loss.detach()))
    steps.tell()


def plain(job: dict[str, Any]) -> None:
    """The loop in nanoGPT's manner over the network of plain.py."""
    model = Plain(network_of(job).state(), SHAPES[job["shape"]]["n_head"], job.get("dropout", 0.0))
    looped(job, model, model)


def litgpt(job: dict[str, Any]) -> None:
    """LitGPT's network nearest to GPT-2 (it has no learned positions) and its own way of LoRA, in a plain loop."""
    if job["rank"]:
        from litgpt.lora import GPT, Config, mark_only_lora_as_trainable

        more = {"lora_r": job["rank"], "lora_alpha": 2 * job["rank"], "lora_query": True, "lora_value": True}
        model = GPT(Config.from_name("pythia-160m", **more))
        model.apply(model._init_weights)
        mark_only_lora_as_trainable(model)
    else:
        from litgpt.config import Config as PlainConfig
        from litgpt.model import GPT as PlainGPT

        model = PlainGPT(PlainConfig.from_name("pythia-160m"))
        model.apply(model._init_weights)
    looped(job, model, model)


SIDES = {"finetwo": ours, "trainer": trainer, "trl": trl, "plain": plain, "litgpt": litgpt}

if __name__ == "__main__":
    SIDES[sys.argv[1]](json.loads(sys.argv[2]))
