"""Names that users bring from other tools, with ours: an error for a foreign name says the right one.

There are no aliases: two names for one thing would have to be explained for ever.
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
    "dataset_name": "--data",
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
    "bf16": "--precision bf16",
    "fp16": "--precision bf16",
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
    "instruction_column": "--rows.columns.prompt",
    "num_return_sequences": "--n",
    "num_samples": "--n",
    "num_beams": "--n",
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


def remedy(name: str, known: list[str]) -> str:
    """What to say for the unknown option `name` (without dashes): our name for it, else the nearest of `known`."""
    plain = name.replace("-", "_").lower()
    last = plain.rsplit(".", 1)[-1]
    if plain in known:
        return f"did you mean --{plain}?"
    for candidate in (plain, last):
        ours = OURS.get(candidate)
        if ours and ours.split()[0].lstrip("-") in known:
            return f"here it is called {ours}"
    nested = [k for k in known if k.rsplit(".", 1)[-1] == last]
    near = nested or get_close_matches(plain, known, n=1, cutoff=0.5)
    via = get_close_matches(plain, list(OURS), n=1, cutoff=0.8)
    if via and (not near or plain not in near) and OURS[via[0]].split()[0].lstrip("-") in known and not nested:
        return f"did you mean {OURS[via[0]]}?"
    return f"did you mean --{near[0]}?" if near else "see --help"
