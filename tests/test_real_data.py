"""The 1,100-record instruction file with the embedded base, from the command line to transformers and PEFT.

Slow, and skipped where the shared data is not at hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finetwo.app.cli import main

SPLIT = ["--rows.split", "train:935,test:110,validation:55"]


@pytest.mark.slow
def test_the_book_set(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    data, run = str(shared_data / "instruct" / "instruction-data.json"), tmp_path / "run"
    words = ["train", data, *SPLIT, "--lora.rank", "16", "--lora.targets", "all-linear"]
    words += ["--epochs", "5", "--lr", "2e-3"]
    assert main([*words, "--out", str(run)]) == 0
    said = capsys.readouterr().err
    assert "train 935, validation 55, test 110" in said
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [r["loss"] for r in records if r["event"] == "evaluation"]
    assert losses[-1] < 0.75 * losses[0]
    asked = ["evaluate", str(run), data, *SPLIT, "--part", "validation", "--exact_match", "--json"]
    assert main(asked) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["loss"] == pytest.approx(min(losses), abs=1e-5)  # the run folder stands for its best model
    assert figures["stop_rate"] >= 0.95
    for to in ("adapter", "merged"):
        assert main(["export", str(run), "--to", to, "--out", str(tmp_path / to)]) == 0
    assert main(["export", "tiny", "--out", str(tmp_path / "base")]) == 0
    import finetwo

    tokens = torch.arange(40)[None] + 300
    ours = finetwo.load(str(run)).network(tokens)
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    for theirs in (
        PeftModel.from_pretrained(base, tmp_path / "adapter"),
        GPT2LMHeadModel.from_pretrained(tmp_path / "merged"),
    ):
        torch.testing.assert_close(theirs.eval()(tokens).logits, ours, atol=1e-4, rtol=1e-4)
