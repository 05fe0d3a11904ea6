"""An adapter at other strengths, and which base a model has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.standins.models import fill_lora, random_network, random_tokens, tiny_config
from torch import Tensor

from finetwo.app.api import load
from finetwo.app.tuned import load_side, load_tuned
from finetwo.core.errors import InputError
from finetwo.insight.strength import at_strength, base_of
from finetwo.model.lora import merge_lora
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer, train_vocabulary

TOKENS = random_tokens(2, 9, 61)


def logits(network: Network) -> Tensor:
    with torch.no_grad():
        return network(TOKENS)


def adapted() -> Network:
    network = random_network(tiny_config())
    network.add_lora(rank=3, alpha=5, targets="all-linear")
    fill_lora(network)
    return network


def test_nought_is_the_base_and_one_the_model_bit_for_bit() -> None:
    network, base = adapted(), random_network(tiny_config())
    before = logits(network)
    assert not torch.equal(before, logits(base))
    with at_strength(network, 0.0) as bare:
        assert torch.equal(logits(bare), logits(base))
    with at_strength(network, 1.0) as same:
        assert torch.equal(logits(same), before)
    assert torch.equal(logits(network), before)


@pytest.mark.parametrize("strength", [0.5, 1.5, -1.0])
def test_between_and_beyond_as_merged_weights_say(strength: float) -> None:
    network, wanted = adapted(), adapted()
    plain = random_network(tiny_config()).state()
    merge_lora(wanted)
    with torch.no_grad():
        for name, p in wanted.named_parameters():
            p.copy_(plain[name] + strength * (p - plain[name]))
    with at_strength(network, strength) as changed:
        assert torch.allclose(logits(changed), logits(wanted), atol=2e-5)


def test_what_was_is_there_again_after_an_error() -> None:
    network = adapted()
    before = logits(network)
    for strength in (0.0, 2.0):
        with pytest.raises(RuntimeError, match="midway"), at_strength(network, strength):
            raise RuntimeError("midway")
        assert torch.equal(logits(network), before)


# --- bases --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a model and an adapter on that base, and a model with other tokens."""
    monkeypatch.chdir(tmp_path)
    shape = tiny_config(vocab_size=400)
    for seed, name in enumerate(("base", "model")):
        save_model(tmp_path / name, random_network(shape, seed), tiny_tokenizer, Extras())
    other = Tokenizer(train_vocabulary(iter(["quite another text, with words of its own " * 9] * 4), 280))
    save_model(tmp_path / "alien", random_network(tiny_config(vocab_size=other.vocab_size)), other, Extras())
    save_model(tmp_path / "short", random_network(tiny_config(vocab_size=400, n_positions=9)), tiny_tokenizer, Extras())
    model = load("base")
    model.add_lora(rank=2)
    model.save("adapter")
    return tmp_path


def make_run(folder: Path, settings: str) -> None:
    """Make `folder`/model the best model of a run with these settings."""
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(settings, encoding="utf-8")
    (folder / "run" / "finetwo-run.json").write_text('{"format": 1}', encoding="utf-8")
    (folder / "model").rename(folder / "run" / "best")


def test_an_adapter_lies_on_its_base(folders: Path) -> None:
    model, base = load_tuned("adapter", None, "cpu")
    assert (base.name, base.network) == ("base", None)
    with base.under(model.network) as under:
        assert under is model.network
        assert under.state().keys() == load("base").network.state().keys()


@pytest.mark.parametrize("name", ["run", "run/best"])
def test_a_run_says_what_it_began_with(name: str, folders: Path) -> None:
    make_run(folders, "model: base\ntask: style\n")
    model, base = load_tuned(name, None, "cpu")
    assert base.name == "base"
    with base.under(model.network) as under:
        assert under is not model.network
        assert torch.equal(under.head_weight, load("base").network.head_weight)


def test_the_user_has_the_last_word(folders: Path) -> None:
    make_run(folders, "model: nowhere\ntask: style\n")
    with pytest.raises(InputError, match=r"its base cannot be opened.*--base"):
        load_tuned("run", None, "cpu")
    assert load_tuned("run", "base", "cpu")[1].name == "base"


def test_who_says_nothing_is_asked(folders: Path) -> None:
    with pytest.raises(InputError, match=r"does not say what it was tuned from.*--base"):
        load_tuned("model", None, "cpu")
    make_run(folders, "model: base\ntask: pretrain\n")  # its weights were fresh
    with pytest.raises(InputError, match="does not say what it was tuned from"):
        load_tuned("run", None, "cpu")


@pytest.mark.parametrize(("base", "part"), [("alien", "has other tokens"), ("short", "has another context")])
def test_a_base_with_other_tokens_is_none(base: str, part: str, folders: Path) -> None:
    with pytest.raises(InputError, match=part):
        base_of("model", load("model"), base)


def test_a_whole_model_needs_no_base_to_be_opened(folders: Path) -> None:
    assert load_side("model", "base", "cpu").base == "model"
    assert load_side("adapter", "base", "cpu").base == "base"
