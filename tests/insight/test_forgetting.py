"""The forgetting meter: its figures against sums taken by hand, at nought, at one and beyond."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.standins.models import TEXT, fill_lora, random_network, tiny_config
from torch.nn.functional import cross_entropy

from finetwo.app.tuned import load_tuned
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.insight.forgetting import ForgetOptions, forget_page, measure_forgetting
from finetwo.insight.strength import Base, at_strength
from finetwo.model.network import Network
from finetwo.store.change import neutral_file
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

WINDOW = 16


@pytest.fixture
def adapter(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Base]:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", random_network(tiny_config(vocab_size=400, n_positions=64)), tiny_tokenizer, Extras())
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    model, _ = load_tuned("base", "base", "cpu")
    model.add_lora(rank=2)
    fill_lora(model.network)
    model.save("adapter")
    return load_tuned("adapter", None, "cpu")


def measure(model: Model, base: Base, **options: object) -> dict[str, object]:
    return measure_forgetting(model, base, ForgetOptions(window=WINDOW, **options), lambda _: None)  # type: ignore[arg-type]


def by_hand(network: Network, ids: list[int]) -> tuple[float, int]:
    """Summed nats and tokens of windows side by side, each read alone."""
    nats, count = 0.0, 0
    for i in range(0, len(ids), WINDOW):
        part = torch.tensor(ids[i : i + WINDOW])
        if len(part) > 1:
            with torch.no_grad():
                nats += float(cross_entropy(network(part[None])[0, :-1], part[1:], reduction="sum"))
            count += len(part) - 1
    return nats, count


def test_figures_are_sums_over_sums(adapter: tuple[Model, Base]) -> None:
    model, base = adapter
    found = measure(model, base, text="text.txt", strengths=[0.0, 0.5, 1.0, 1.5])["neutral"]
    ids = model.tokenizer.encode(TEXT)
    before, count = by_hand(random_network(tiny_config(vocab_size=400, n_positions=64)), ids)
    assert found["tokens"] == count
    for point in found["points"]:
        with at_strength(model.network, point["strength"]) as network:
            nats, _ = by_hand(network, ids)
        assert point["loss"] == pytest.approx(nats / count, rel=1e-5)
        assert point["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
        assert point["ratio"] == pytest.approx(math.exp((nats - before) / count), rel=1e-4)
        size = sum(
            len(model.tokenizer.bytes_of(t)) for i in range(0, len(ids), WINDOW) for t in ids[i + 1 : i + WINDOW]
        )
        assert point["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    nought, _, one, _ = found["points"]
    assert (nought["ratio"], nought["ratio_interval"]) == (1.0, (1.0, 1.0))  # the base itself, to the bit
    assert one["ratio"] != 1.0
    assert one["ratio_interval"][0] <= one["ratio"] <= one["ratio_interval"][1]


def test_an_untrained_adapter_forgets_nothing(adapter: tuple[Model, Base]) -> None:
    model, base = adapter
    with torch.no_grad():
        for name, p in model.network.named_parameters():
            if "lora_B" in name:
                p.zero_()
    for point in measure(model, base, text="text.txt")["neutral"]["points"]:  # type: ignore[index]
        assert point["ratio"] == 1.0


def test_the_neutral_text_comes_with_it_and_is_plain(adapter: tuple[Model, Base]) -> None:
    text = neutral_file().read_text(encoding="ascii")
    assert 2200 < len(text.split()) < 2300
    model, base = adapter
    found = measure(model, base, own="text.txt", strengths=[1.0])
    assert found["neutral"]["text"] == "the neutral text of FineTwo"  # type: ignore[index]
    assert found["neutral"]["tokens"] > 20 * found["own"]["tokens"]  # type: ignore[index]
    assert found["own"]["text"] == "text.txt"  # type: ignore[index]


def test_a_model_without_an_adapter_is_measured_before_and_after(tmp_path: Path, adapter: tuple[Model, Base]) -> None:
    model, _ = adapter
    other = random_network(tiny_config(vocab_size=400, n_positions=64), seed=4)
    save_model(tmp_path / "tuned", other, model.tokenizer, Extras())
    tuned, base = load_tuned("tuned", "base", "cpu")
    found = measure(tuned, base, text="text.txt", strengths=[0.5])
    assert [p["strength"] for p in found["neutral"]["points"]] == [0.0, 1.0]  # type: ignore[index]
    page = forget_page(found).text()
    assert "no adapter whose strength could be changed" in page
    assert [line.split()[0] for line in page.splitlines() if line.startswith(("  before", "  after"))] == [
        "before",
        "after",
    ]


def test_answers_are_measured_behind_their_prompts(tmp_path: Path, adapter: tuple[Model, Base]) -> None:
    rows = [{"prompt": f"Say {i}.", "completion": f"The keeper counted {i} steps to the top."} for i in range(5)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    model, base = adapter
    found = measure(model, base, text="text.txt", own="own.jsonl", strengths=[1.0])["own"]
    assert found["windows"] == 5  # type: ignore[index]
    assert "behind its prompt" in found["protocol"]  # type: ignore[index]


def test_the_page_says_what_was_measured(adapter: tuple[Model, Base]) -> None:
    model, base = adapter
    found = measure(model, base, text="text.txt", strengths=[0.0, 1.0, 1.5])
    page = forget_page(found).text()
    rows = {line.split("  ")[1].strip(): line for line in page.splitlines() if line.startswith("  ")}
    for name, point in zip(("0, the base", "1, the model", "1.5"), found["neutral"]["points"], strict=True):  # type: ignore[index]
        assert f"{point['perplexity']:,.3f}" in rows[name]
        assert f"{point['ratio']:.4f}" in rows[name]


def test_a_text_of_one_token_is_too_short(tmp_path: Path, adapter: tuple[Model, Base]) -> None:
    (tmp_path / "one.txt").write_text("a", encoding="utf-8")
    with pytest.raises(InputError, match=r"one\.txt: has fewer than two tokens"):
        measure(*adapter, text="one.txt")
