"""Evaluation needs no more memory than training on the same records: measured, each in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.standins.models import TEXT

from finetwo.model.config import GPT2Config
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

PROGRAM = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from finetwo.app.cli import main
code = main(json.loads(sys.argv[1]))
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak(*words: str) -> int:
    """The most memory that a command had, in the unit of `ru_maxrss`."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(words)], capture_output=True, text=True, timeout=300, check=False
    )
    code, size = done.stderr.split()[-2:]
    assert code == "0", done.stderr
    return int(size)


@pytest.mark.slow
def test_evaluation_needs_no_more_memory_than_training(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resource.RUSAGE_SELF == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    shape = GPT2Config(vocab_size=400, n_positions=256, n_embd=384, n_layer=6, n_head=6, eos_token_id=399)
    save_model(tmp_path / "model", Network.fresh(shape, 0), tiny_tokenizer, Extras())
    rows = [{"prompt": f"{i}", "completion": TEXT} for i in range(48)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (tmp_path / "t.txt").write_text(TEXT * 40, encoding="utf-8")
    low = ["--model", "model", "--batch_size", "8", "--max_steps", "2", "--eval_every", "0", "--lora.rank", "2"]
    answering = ["--metrics", "exact_match,distinct,repetition", "--predictions", "p.jsonl", "--max_new_tokens", "16"]
    trained = peak("train", "d.jsonl", *low, "--out", "run")
    assert peak("evaluate", "model", "d.jsonl", "--batch_size", "8", *answering) <= trained
    trained = peak("train", "t.txt", *low, "--out", "run-text")
    assert peak("evaluate", "model", "t.txt", "--batch_size", "8", "--stride", "64") <= trained
