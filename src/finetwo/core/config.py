"""Every setting a user can give, as dataclasses with the names of the command line.

The dataclasses only remember: parsing is the command line's work, meaning is the job's. Their one invariant
is that `check()` accepts a configuration or raises an `InputError` that names the field and its range.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Final, Literal

from finetwo.core.errors import InputError

COMMA_TEXTS: Final = frozenset(
    {"lora.targets", "freeze", "rows.split", "rows.names", "size", "rows.labels", "class_weights"}
)
"""Text settings that hold a comma-separated list; a list given for one is joined by commas."""


def _range(where: str, value: float | None, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a number outside [low, high] (or (low, high] with `open_low`), NaN included."""
    if value is None:
        return
    inside = low < value <= high if open_low else low <= value <= high
    if not inside or math.isnan(value):
        sign = ">" if open_low else ">="
        top = "" if math.isinf(high) else f" and <= {high:g}"
        raise InputError(where, "out of range", value, f"give a number {sign} {low:g}{top}")


@dataclass
class ColumnsConfig:
    """Which column of a record plays which part; unset parts are detected."""

    prompt: str | None = None
    """Column holding the instruction or question."""
    input: str | None = None
    """Column holding the optional further input or context."""
    completion: str | None = None
    """Column holding the answer."""
    text: str | None = None
    """Column holding plain text (style, pretrain), or the text to classify."""
    first: str | None = None
    """Column holding the first text of a pair (entail)."""
    second: str | None = None
    """Column holding the second text of a pair (entail)."""
    label: str | None = None
    """Column holding the class (classify, entail)."""
    messages: str | None = None
    """Column holding a conversation: a list of messages, or ShareGPT's conversations (instruct)."""


@dataclass
class RowsConfig:
    """How records are read, chosen and split."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    split: str | None = None
    """Fractions by content (train:0.9,validation:0.1) or counts in file order (train:935,test:110,validation:55)."""
    hold_out: str | None = None
    """A folder of texts: the files whose name matches this pattern ('*persuasion*') are for validation."""
    limit: int | None = None
    """Use at most this many records (the first ones, before splitting)."""
    format: Literal["auto", "json", "jsonl", "csv", "tsv", "txt"] = "auto"
    """File format; by default told by the file name and its first bytes."""
    delimiter: str | None = None
    """Field separator of a CSV file, one character."""
    names: str | None = None
    """Names of the columns, comma-separated, of a CSV or TSV file that has no header line."""
    encoding: str = "utf-8"
    """Text encoding of the files."""
    labels: str | None = None
    """Names of the classes, comma-separated, in their order; integers in the data are places in this list."""
    on_empty: Literal["skip", "error"] = "skip"
    """What to do with a record whose prompt, answer or text is empty."""
    on_long: Literal["truncate", "skip", "error"] = "truncate"
    """What to do with a record longer than max_length: cut its end (counted), leave it out, or stop."""
    on_overlap: Literal["warn", "error"] = "warn"
    """What to do when validation or test records stand in train too: say how many and where, or stop."""

    def check(self) -> None:
        """Raise InputError for a setting out of range."""
        if self.limit is not None and self.limit < 1:
            raise InputError("--rows.limit", "must be an integer >= 1", self.limit, "leave it out to use every record")
        if self.delimiter is not None and len(self.delimiter.replace("\\t", "\t")) != 1:
            raise InputError("--rows.delimiter", "must be one character", self.delimiter, "for a tab write '\\t'")
        names = self.column_names
        if not all(names) or len(set(names)) != len(names):
            raise InputError("--rows.names", "must be different names, none empty", self.names, "write text,label")

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names in `names`, () without."""
        return () if self.names is None else tuple(name.strip() for name in self.names.split(","))


@dataclass
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021); on when any of these is given."""

    rank: int | None = None
    """Rank r of the two small matrices (default 8)."""
    alpha: float | None = None
    """Numerator of the scale alpha/r (default: 2 x rank)."""
    dropout: float | None = None
    """Dropout on the adapter's input (default 0)."""
    targets: str | None = None
    """Comma-separated layer names, or 'all-linear' (default attn.c_attn,attn.c_proj)."""
    rslora: bool | None = None
    """Scale by alpha/sqrt(r) instead of alpha/r (Kalajdzievski 2023)."""

    @property
    def enabled(self) -> bool:
        """Whether any LoRA setting was given."""
        return any(getattr(self, f.name) is not None for f in fields(self))

    def resolved(self) -> LoraConfig:
        """Return a copy with every default filled in."""
        rank = 8 if self.rank is None else self.rank
        return LoraConfig(
            rank=rank,
            alpha=2.0 * rank if self.alpha is None else self.alpha,
            dropout=0.0 if self.dropout is None else self.dropout,
            targets=self.targets or "attn.c_attn,attn.c_proj",
            rslora=bool(self.rslora),
        )

    def check(self) -> None:
        """Raise InputError for a setting out of range."""
        if self.rank is not None and not 1 <= self.rank <= 1024:
            raise InputError("--lora.rank", "must be an integer from 1 to 1024", self.rank, "8 is a good start")
        _range("--lora.alpha", self.alpha, 0.0, 1e6, open_low=True)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError("--lora.dropout", "must be >= 0 and < 1", self.dropout, "0.05 is usual")


@dataclass
class SamplingConfig:
    """How the next token is chosen when generating."""

    max_new_tokens: int = 128
    """Stop after this many new tokens."""
    temperature: float = 0.0
    """0 is greedy; higher is more random."""
    top_k: int = 0
    """Keep only the k most likely tokens (0: all)."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p, the crossing token included."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Divide (positive) or multiply (negative) the logits of tokens already seen (CTRL); 1 is off."""
    stop: list[str] = field(default_factory=list)
    """Strings that end the answer (comma-separated, or a JSON list); they are not part of it."""
    n: int = 1
    """Answers per prompt."""
    seed: int = 0
    """Seed of the sampling; the same seed gives the same text."""

    def check(self, where: str = "--") -> None:
        """Raise InputError for a setting out of range; `where` prefixes the field name."""
        if self.max_new_tokens < 1:
            raise InputError(f"{where}max_new_tokens", "must be an integer >= 1", self.max_new_tokens, "give 1 or more")
        _range(f"{where}temperature", self.temperature, 0.0, 100.0)
        if self.top_k < 0:
            raise InputError(f"{where}top_k", "must be an integer >= 0", self.top_k, "0 keeps every token")
        _range(f"{where}top_p", self.top_p, 0.0, 1.0, open_low=True)
        _range(f"{where}min_p", self.min_p, 0.0, 1.0)
        _range(f"{where}repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        if not 1 <= self.n <= 1024:
            raise InputError(f"{where}n", "must be an integer from 1 to 1024", self.n, "give 1 or more")
        if any(not s for s in self.stop):
            raise InputError(f"{where}stop", "a stop string must not be empty", "", "leave it out, or give a text")
        check_seed(f"{where}seed", self.seed)


def check_seed(where: str, seed: int) -> None:
    """Refuse a seed that the random generators could not take."""
    if not 0 <= seed < 2**63:
        raise InputError(where, "must be an integer from 0 to 2^63 - 1", seed, "any small number will do")


@dataclass
class TrainConfig:
    """One training job: what to tune, on what, and how."""

    data: str | None = None
    """A data file, a folder holding train.*, validation.* and test.*, or hub:OWNER/NAME of the Hugging Face hub."""
    task: str = "auto"
    """instruct, classify, entail, style, pretrain; auto tells by the columns."""
    model: str = "tiny"
    """tiny (embedded), a hub name such as gpt2, or a local folder; for pretrain also a size name."""
    base: str | None = None
    """Where the base of an adapter is, when --model is an adapter."""
    out: str | None = None
    """Run folder (default: runs/<data>-<task>)."""
    epochs: float | None = None
    """Passes over the training data (default 3, pretrain 1); --max_steps wins over it."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; wins over --epochs."""
    batch_size: int = 8
    """Records per micro-batch."""
    batch_tokens: int | None = None
    """Tokens per micro-batch, records of like length together, instead of --batch_size."""
    grad_accum: int = 1
    """Micro-batches per optimizer step; the update equals one large batch."""
    lr: float | None = None
    """Peak learning rate (default: 5e-5 full, 3e-4 LoRA, ten times that for models of width <= 320; 1e-3 pretrain)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the block matrices with AdamW for the rest."""
    muon_lr: float = 0.02
    """Learning rate of the matrices under --optimizer muon."""
    schedule: Literal["constant", "linear", "cosine", "trapezoid"] = "cosine"
    """Shape of the learning rate after warm-up; trapezoid holds, then falls to zero over the last 45 %."""
    warmup: float = 0.03
    """Warm-up: a share of all steps below 1, a number of steps from 1 on."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    adam_eps: float = 1e-8
    """Epsilon of AdamW."""
    clip: float = 1.0
    """Clip the global gradient norm at this value (0: never)."""
    dropout: float = 0.0
    """Dropout on embeddings, attention and residuals while training."""
    max_length: int | None = None
    """Longest sequence in tokens (default: the model's context)."""
    template: str | None = None
    """alpaca, dolly, plain, chat, a text with {field} placeholders, or a file holding one."""
    packing: bool | None = None
    """One row without padding (default where it wins), or --no_packing for padded rows; the loss is the same."""
    share_prefix: bool | None = None
    """Compute what the records of a batch begin with in common once (default where it is exact: no dropout)."""
    recompute: bool = False
    """Keep only what goes into each block and compute the rest again in backward: less memory, about a third slower."""
    precision: Literal["float32", "bf16", "fp16", "bf16-true"] = "float32"
    """float32; bf16 mixed with float32 masters; fp16 the same, for a GPU without bf16; bf16-true for everything."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """With --lora: store the base's block matrices in 4 bits (nf4: QLoRA) or 8 (int8), to save memory."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = 0
    """Seed of shuffling, dropout and initialisation."""
    deterministic: bool = False
    """Refuse operations without a deterministic form."""
    eval_every: str = "1epoch"
    """Evaluate every so many steps ('50') or epochs ('1epoch'); '0' only at start and end."""
    eval_limit: int | None = None
    """Evaluate on at most this many validation records."""
    patience: int = 0
    """Stop early after this many evaluations without a better validation loss, for classes accuracy (0: never)."""
    save_every: str = "1epoch"
    """Write a checkpoint every so many steps or epochs."""
    sample_every: str = "1epoch"
    """Write sample generations every so many steps or epochs."""
    sample_prompts: str | None = None
    """File of prompts to answer during training."""
    keep: int = 2
    """How many checkpoints to keep, the newest ones."""
    workers: int = 0
    """Threads that prepare batches ahead (0: prepared inline)."""
    track: list[str] = field(default_factory=list)
    """Names of further listeners: csv, tensorboard, wandb, or one of a package."""
    resume: str = "auto"
    """auto (newest valid checkpoint), never, or the path of a checkpoint."""
    freeze: str | None = None
    """Comma-separated parts of parameter names that are not trained: 'wte,wpe'; 'transformer' leaves only the head."""
    pooling: Literal["last", "mean"] = "last"
    """Classifiers: the head reads the last real token, or the mean over all of them."""
    head_dropout: float = 0.0
    """Classifiers: dropout on what the head reads, while training."""
    class_weights: str = "none"
    """Classifiers: none, balanced (rare classes count more), or name:weight,name:weight (the others 1)."""
    size: str | None = None
    """Shape for pretrain: layers,width,heads."""
    context: int | None = None
    """Context of the network for pretrain (default: max_length, or the named size's)."""
    tokenizer: str | None = None
    """Tokenizer folder for pretrain with --size."""
    post_norm: bool = False
    """Pretrain with the layer norms after the residual sums (an experiment)."""
    copy_share: float = 0.0
    """Pretrain: share of sequences in which earlier spans are repeated, to teach copying."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=64))

    def check(self) -> None:
        """Raise InputError for any setting out of range or in contradiction."""
        for name, low in (("batch_size", 1), ("grad_accum", 1), ("keep", 1), ("workers", 0), ("patience", 0)):
            if getattr(self, name) < low:
                raise InputError(
                    f"--{name}", f"must be an integer >= {low}", getattr(self, name), f"give {low} or more"
                )
        for name in ("batch_size", "grad_accum"):
            if getattr(self, name) > 1_000_000:
                raise InputError(f"--{name}", "must be at most 1,000,000", getattr(self, name), "give a smaller number")
        for name in ("max_steps", "eval_limit", "batch_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name}", "must be an integer >= 1", getattr(self, name), "give 1 or more")
        if self.batch_tokens is not None and self.batch_size != 8:
            fix = "give one of them"
            raise InputError("--batch_tokens", "is the size of a batch, and so is --batch_size", self.batch_size, fix)
        _range("--epochs", self.epochs, 0.0, 1e6, open_low=True)
        _range("--lr", self.lr, 0.0, 10.0, open_low=True)
        _range("--muon_lr", self.muon_lr, 0.0, 10.0, open_low=True)
        _range("--warmup", self.warmup, 0.0, 1e9)
        _range("--weight_decay", self.weight_decay, 0.0, 10.0)
        _range("--adam_eps", self.adam_eps, 0.0, 1.0, open_low=True)
        _range("--clip", self.clip, 0.0, 1e9)
        _range("--copy_share", self.copy_share, 0.0, 1.0)
        for name in ("dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise InputError(f"--{name}", "must be >= 0 and < 1", value, "0.1 is usual, 0 switches it off")
        if self.max_length is not None and self.max_length < 2:
            fix = "give 2 or more"
            raise InputError("--max_length", "must be >= 2: one token to read, one to learn", self.max_length, fix)
        check_seed("--seed", self.seed)
        for name in ("eval_every", "save_every", "sample_every"):
            parse_every(f"--{name}", getattr(self, name))
        self.lora.check()
        self.rows.check()
        self.sampling.check("--sampling.")


def parse_every(where: str, text: str) -> tuple[float, Literal["steps", "epochs"]]:
    """Read '50' as (50, steps) and '1epoch' or '0.5epoch' as (1, epochs); 0 means never."""
    raw = str(text).strip().lower()
    unit: Literal["steps", "epochs"] = "steps"
    for suffix in ("epochs", "epoch"):
        if raw.endswith(suffix):
            raw, unit = raw.removesuffix(suffix).strip() or "1", "epochs"
            break
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12 or (unit == "steps" and value != int(value)):
        raise InputError(where, "is neither a number of steps nor of epochs", text, "write 50 or 1epoch")
    return value, unit


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as plain nested dictionaries."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"not a configuration: {config!r}")
    return asdict(config)
