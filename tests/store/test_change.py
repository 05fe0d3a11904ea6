"""By how much logits changed: the figures are those of plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from finetwo.store import change
from finetwo.store.change import Change, neutral_text, probe_tokens
from finetwo.text.tokenizer import Tokenizer


def test_the_figures(tiny_tokenizer: Tokenizer) -> None:
    probe = torch.tensor([[0, 1, 2], [2, 1, 0]])
    before = torch.zeros(2, 3, 3)
    before[..., 1] = 1.0
    after = before.clone()
    after[0, 0, 2] = 3.0
    after[1, 2, 0] = 0.5
    found = Change.between(probe, before, after, classes=False)
    assert (found.largest, found.positions) == (3.0, 6)
    assert found.mean == pytest.approx(3.5 / 18) and found.agreement == pytest.approx(5 / 6)
    assert found.perplexity is not None
    likely, unlikely = (math.log(math.e / (math.e + 2)), math.log(1 / (math.e + 2)))
    # next tokens: 1 after 0, 2 after 1; 1 after 2, 0 after 1
    assert found.perplexity[0] == pytest.approx(math.exp(-(2 * likely + 2 * unlikely) / 4))
    moved = math.log(math.e / (1 + math.e + math.exp(3)))
    assert found.perplexity[1] == pytest.approx(math.exp(-(moved + likely + 2 * unlikely) / 4))
    lines = found.lines(2.0)
    assert "at most 3.00e+00 (mean 1.94e-01; the bound is 2)" in lines[0] and "token at 83.3% of 6" in lines[0]
    assert lines[1].startswith("perplexity ") and "neutral text" in lines[2]


def test_classes_have_no_perplexity() -> None:
    logits = torch.zeros(1, 4, 2)
    found = Change.between(torch.zeros(1, 4, dtype=torch.long), logits, logits, classes=True)
    assert found.perplexity is None and found.largest == 0 and "likeliest class at 100.0%" in found.lines(1.0)[0]


def test_the_probe_is_of_the_neutral_text(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for context, width in ((19, 19), (1024, 64)):
        probe = probe_tokens(tiny_tokenizer, context)
        assert probe.shape == (8, width)
        assert neutral_text().startswith(tiny_tokenizer.decode(probe.flatten().tolist())[:200])
    monkeypatch.setattr(change, "neutral_text", lambda: "only a few words")
    assert probe_tokens(tiny_tokenizer, 4).shape[0] >= 1
