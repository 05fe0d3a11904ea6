"""The model that comes with the package: small enough, whole, and what its card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from finetwo.app.cli import main
from finetwo.store.local import embedded_folder
from finetwo.store.models import open_model
from finetwo.store.tensors import read_header

SENTENCE = "She opened the door of the little room, and saw that the fire had gone out."


def card() -> str:
    return (embedded_folder() / "README.md").read_text(encoding="utf-8")


def test_it_is_small_and_in_bf16() -> None:
    folder = embedded_folder()
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 16_000_000
    header = read_header(folder / "model.safetensors")
    assert {e.dtype for e in header.entries.values()} == {torch.bfloat16}


def test_it_reads_english() -> None:
    """A model of 8,192 ids that knows nothing has a loss of 9.0 nats a token."""
    opened = open_model("tiny")
    assert opened.network.config.n_positions == 512
    ids = torch.tensor([[opened.tokenizer.eot, *opened.tokenizer.encode(SENTENCE)]])
    with torch.no_grad():
        logits = opened.network(ids)
    assert float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])) < 5.0


def test_the_card_says_where_it_comes_from() -> None:
    text = card()
    for part in ("public domain", "bits per byte", "finetwo train", "finetwo tokenizer train", "tokens", "license:"):
        assert part in text


@pytest.mark.slow
def test_the_card_figure_holds(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    novels = shared_data / "pretrain" / "novels" / "valid.jsonl.xz"
    assert main(["evaluate", "tiny", str(novels), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["bits_per_byte"]
    said = re.search(r"\*\*(\d\.\d{3}) bits per byte\*\*", card())
    assert said is not None
    assert found == pytest.approx(float(said[1]), abs=0.002)
