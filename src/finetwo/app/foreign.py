"""Names that users bring from other tools, with ours, or with the reason why there is none.

There are no aliases: two names for one thing would have to be explained for ever. Its one invariant: an answer names
only options that the verb at hand has.
"""

from __future__ import annotations

from difflib import get_close_matches

OURS: dict[str, str] = {
    "learning_rate": "--lr",
    "per_device_train_batch_size": "--batch_size",
    "train_batch_size": "--batch_size",
    "micro_batch_size": "--batch_size",
    "per_device_eval_batch_size": "--batch_size",
    "gradient_accumulation_steps": "--grad_accum",
    "accumulate_grad_batches": "--grad_accum",
    "num_train_epochs": "--epochs",
    "num_epochs": "--epochs",
    "max_epochs": "--epochs",
    "steps": "--max_steps",
    "warmup_steps": "--warmup",
    "warmup_ratio": "--warmup",
    "lr_warmup_steps": "--warmup",
    "lr_scheduler_type": "--schedule",
    "lr_scheduler": "--schedule",
    "adam_epsilon": "--adam_eps",
    "eps": "--adam_eps",
    "max_grad_norm": "--clip",
    "gradient_clip_val": "--clip",
    "max_seq_length": "--max_length",
    "max_seq_len": "--max_length",
    "seq_len": "--max_length",
    "cutoff_len": "--max_length",
    "block_size": "--max_length",
    "max_input_length": "--max_length",
    "model_max_length": "--max_length",
    "model_name_or_path": "--model",
    "base_model": "--model",
    "checkpoint_dir": "--model",
    "model_path": "--model",
    "dataset": "--data",
    "dataset_name": "--data hub:OWNER/NAME",
    "dataset_config_name": "--data hub:OWNER/NAME/CONFIGURATION",
    "dataset_config": "--data hub:OWNER/NAME/CONFIGURATION",
    "dataset_revision": "--data hub:OWNER/NAME@REVISION",
    "train_file": "--data",
    "data_path": "--data",
    "output_dir": "--out",
    "out_dir": "--out",
    "check_dir": "--out",
    "save_steps": "--save_every",
    "save_interval": "--save_every",
    "eval_steps": "--eval_every",
    "eval_interval": "--eval_every",
    "eval_strategy": "--eval_every",
    "evaluation_strategy": "--eval_every",
    "save_total_limit": "--keep",
    "resume_from_checkpoint": "--resume",
    "restore_file": "--resume",
    "load_checkpoint": "--resume",
    "report_to": "--track",
    "logger": "--track",
    "dataloader_num_workers": "--workers",
    "num_workers": "--workers",
    "early_stopping_patience": "--patience",
    "gradient_checkpointing": "--recompute",
    "bf16": "--precision bf16",
    "fp16": "--precision fp16",
    "dtype": "--precision",
    "torch_dtype": "--precision",
    "mixed_precision": "--precision",
    "lora_r": "--lora.rank",
    "lora_rank": "--lora.rank",
    "rank_lora": "--lora.rank",
    "r": "--lora.rank",
    "rank": "--lora.rank",
    "lora_alpha": "--lora.alpha",
    "alpha_lora": "--lora.alpha",
    "alpha": "--lora.alpha",
    "lora_dropout": "--lora.dropout",
    "lora_target": "--lora.targets",
    "lora_target_modules": "--lora.targets",
    "target_modules": "--lora.targets",
    "targets_lora": "--lora.targets",
    "use_rslora": "--lora.rslora",
    "do_lora": "--lora.rank",
    "use_peft": "--lora.rank",
    **dict.fromkeys(("load_in_4bit", "qlora", "use_qlora"), "--quantize nf4"),
    "lora": "--lora.rank",
    "load_in_8bit": "--quantize int8",
    "quantization": "--quantize",
    "prompt_style": "--template",
    "chat_template": "--template",
    "prompt_template": "--template",
    "val_size": "--rows.split",
    "val_split_fraction": "--rows.split",
    "train_size": "--rows.split",
    "test_size": "--rows.split",
    "max_samples": "--rows.limit",
    "max_train_samples": "--rows.limit",
    "column_mapping": "--rows.columns.prompt and --rows.columns.completion",
    "dataset_text_field": "--rows.columns.text",
    "column_names": "--rows.names",
    "sep": "--rows.delimiter",
    "separator": "--rows.delimiter",
    "instruction_column": "--rows.columns.prompt",
    "num_return_sequences": "--n",
    "num_samples": "--n",
    "max_tokens": "--max_new_tokens",
    "max_output_length": "--max_new_tokens",
    "do_sample": "--temperature 1",
    "temp": "--temperature",
    "rep_penalty": "--repetition_penalty",
    "stop_sequences": "--stop",
    "use_cpu": "--device cpu",
    "no_cuda": "--device cpu",
    "accelerator": "--device",
    "full_determinism": "--deterministic",
    "verbose": "--debug",
    "cfg": "--config",
    "conf": "--config",
    "dry_run": "--print_config",
}

REASONS: dict[str, str] = {
    "load_best_model_at_end": "not needed: best/ is always kept",
    **dict.fromkeys(("logging_steps", "log_interval", "log_every"), "not needed: every step is in metrics.jsonl"),
    **dict.fromkeys(
        ("completion_only_loss", "mask_prompt", "train_on_inputs", "mask_inputs"),
        "not needed: loss is on the answer only",
    ),
    "num_beams": "not there: sampling and greedy only",
    **dict.fromkeys(("dataset_num_proc", "preprocessing_num_workers"), "not needed: one pass reads the data"),
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "nothing leaves your machine; export writes a folder"),
    "trust_remote_code": "not there: programs that come with a model or a data set are never run",
    "hub_token": "nothing leaves your machine; to read a private model set HF_TOKEN",
}
"""Names of other tools that have no option here, and why."""
_CUTOFF, _FOREIGN_CUTOFF = 0.7, 0.8
"""Likeness from which a name is taken for a misspelling of ours, and of another tool's."""


def remedy(name: str, known: list[str], dashes: str = "--") -> str:
    """What to say for the unknown option `name` (without dashes), or the empty string.

    The reason why it is not here, else our name for it, else the nearest of `known`; our names are written with
    `dashes` before them.
    """
    plain = name.replace("-", "_").lower()
    last = plain.rsplit(".", 1)[-1]
    near = _nearest(plain, last, known)
    answers = [
        f"did you mean --{plain}?" if plain in known else "",
        REASONS.get(plain) or REASONS.get(last, ""),
        *(_said("here it is called {}", OURS.get(foreign), known) for foreign in (plain, last)),
        f"did you mean --{near}?" if near and near.rsplit(".", 1)[-1] == last else "",
        *(
            _said("did you mean {}?", OURS[m], known)
            for m in get_close_matches(plain, OURS, n=1, cutoff=_FOREIGN_CUTOFF)
        ),
        f"did you mean --{near}?" if near else "",
    ]
    return next((answer for answer in answers if answer), "").replace("--", dashes)


def _nearest(plain: str, last: str, known: list[str]) -> str | None:
    """The option of a group that ends so, the first option of the group of that name, or the most similar one."""
    candidates = [
        *(k for k in known if k.rsplit(".", 1)[-1] == last),
        *(k for k in known if k.startswith(f"{plain}.")),
        *get_close_matches(plain, known, n=1, cutoff=_CUTOFF),
    ]
    return candidates[0] if candidates else None


def _said(text: str, ours: str | None, known: list[str]) -> str:
    """`text` with our option in it, wherever the verb has it (`--n` may be `--sampling.n`); empty where it has not."""
    if ours is None:
        return ""
    option, space, rest = ours.removeprefix("--").partition(" ")
    place = next((k for k in known if k == option), next((k for k in known if k.endswith(f".{option}")), None))
    return text.format(f"--{place}{space}{rest}") if place else ""
