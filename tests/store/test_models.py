"""From a name to a ready model: whole models, adapters, and the base an adapter belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network, random_tokens

from finetwo.core.errors import InputError
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model, state_digest
from finetwo.store.models import is_adapter_folder, open_model
from finetwo.store.peft import save_adapter
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

TOKENS = random_tokens(2, 13, 400)
DOLLY = Template.named("dolly")


@pytest.fixture
def adapted(tiny_network: Network) -> Network:
    tiny_network.add_lora(rank=2, dropout=0.5)
    fill_lora(tiny_network)
    return tiny_network


@pytest.fixture
def adapter(tmp_path: Path, tiny_folder: Path, adapted: Network, tiny_tokenizer: Tokenizer) -> Path:
    extras = Extras("instruct", DOLLY, str(tiny_folder), state_digest(adapted.state()))
    save_adapter(tmp_path / "adapter", adapted, tiny_tokenizer, extras)
    return tmp_path / "adapter"


@pytest.fixture
def stranger(tmp_path: Path, tiny_network: Network, tiny_tokenizer: Tokenizer) -> Path:
    """Another model of the same shape."""
    save_model(tmp_path / "stranger", random_network(tiny_network.config, seed=9), tiny_tokenizer, Extras())
    return tmp_path / "stranger"


def test_a_whole_model(tiny_folder: Path, tiny_network: Network) -> None:
    opened = open_model(str(tiny_folder))
    assert not opened.is_adapter and opened.base == opened.name == str(tiny_folder) and opened.folder == tiny_folder
    assert opened.tokenizer.vocab_size == 400 and opened.extras == Extras()
    assert difference(opened.network(TOKENS), tiny_network(TOKENS)) < 1e-6
    assert not any(m.training for m in opened.network.modules())


def test_an_adapter_finds_its_base(adapter: Path, tiny_folder: Path, adapted: Network) -> None:
    opened = open_model(str(adapter))
    assert opened.is_adapter and opened.base == str(tiny_folder) and opened.extras.template == DOLLY
    assert not any(m.training for m in opened.network.modules())  # else its dropout would be at work
    assert difference(opened.network(TOKENS), adapted(TOKENS)) < 1e-6
    assert opened.network.lora is not None and opened.network.lora.dropout == 0.5


def test_the_base_may_be_given(adapter: Path, tiny_folder: Path, adapted: Network, tmp_path: Path) -> None:
    moved = tiny_folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="tiny-model"):
        open_model(str(adapter))
    opened = open_model(str(adapter), base=str(moved))
    assert opened.base == str(moved) and difference(opened.network(TOKENS), adapted(TOKENS)) < 1e-6


def test_a_wrong_base_is_refused(adapter: Path, stranger: Path, adapted: Network) -> None:
    with pytest.raises(InputError) as e:
        open_model(str(adapter), base=str(stranger))
    said = str(e.value)
    assert "the adapter was trained on other weights than" in said and "Fix: name its base with --base" in said
    other = random_network(adapted.config, seed=9)
    assert state_digest(adapted.state())[:12] in said and state_digest(other.state())[:12] in said


def test_a_base_of_another_shape_is_refused(adapter: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    from tests.standins.models import tiny_config

    save_model(tmp_path / "wide", random_network(tiny_config(vocab_size=400, n_embd=32)), tiny_tokenizer, Extras())
    (adapter / "finetwo.json").unlink()  # as PEFT saves it: no digest to compare
    with pytest.raises(InputError, match=r"lora_A must have shape \[2, 32\] \(got \[2, 24\]\)"):
        open_model(str(adapter), base=str(tmp_path / "wide"))


def test_an_adapter_of_peft_names_its_base_in_its_own_way(adapter: Path, tiny_folder: Path, adapted: Network) -> None:
    (adapter / "finetwo.json").unlink()
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (adapter / name).unlink()
    opened = open_model(str(adapter))
    assert opened.base == str(tiny_folder) and opened.tokenizer.vocab_size == 400 and opened.extras.template is None
    assert difference(opened.network(TOKENS), adapted(TOKENS)) < 1e-6


def test_the_bases_template_is_the_fallback(
    adapter: Path, tiny_folder: Path, adapted: Network, tiny_tokenizer: Tokenizer
) -> None:
    plain = Network(adapted.config)
    plain.load_state(adapted.state(), "test")
    save_model(tiny_folder, plain, tiny_tokenizer, Extras("instruct", Template.named("alpaca")))
    assert open_model(str(adapter)).extras.template == DOLLY
    (adapter / "finetwo.json").unlink()
    assert open_model(str(adapter)).extras.template == Template.named("alpaca")


def test_an_adapter_without_a_base(adapter: Path, adapted: Network, tiny_tokenizer: Tokenizer) -> None:
    save_adapter(adapter, adapted, tiny_tokenizer, Extras())
    with pytest.raises(InputError, match=r"the adapter does not say what its base is\. Fix: name it with --base"):
        open_model(str(adapter))


def test_a_base_that_is_an_adapter(adapter: Path) -> None:
    with pytest.raises(InputError, match="the base of an adapter must be a whole model"):
        open_model(str(adapter), base=str(adapter))


def test_a_base_for_a_whole_model(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"--base: .* is a whole model, not an adapter"):
        open_model(str(tiny_folder), base=str(tiny_folder))


def test_kinds_of_folders(adapter: Path, tiny_folder: Path) -> None:
    assert is_adapter_folder(adapter) and not is_adapter_folder(tiny_folder)
    (adapter / "config.json").write_text("{}")
    assert not is_adapter_folder(adapter)


def test_the_digest_tells_one_changed_number(adapter: Path, tiny_folder: Path) -> None:
    from finetwo.store.tensors import read_tensors, write_tensors

    tensors = read_tensors(tiny_folder / "model.safetensors")
    tensors["transformer.wpe.weight"][0, 0] += 1e-3
    write_tensors(tiny_folder / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(InputError, match="the adapter was trained on other weights"):
        open_model(str(adapter))
    assert torch.isfinite(tensors["transformer.wpe.weight"]).all()
