"""What a classifier says, held against the network asked directly, and against itself in other company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.standins.models import random_network, tiny_config

from finetwo.core.errors import InputError
from finetwo.generate import predict as module
from finetwo.generate.predict import Prediction, Predictor, document_of, open_predictor
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

LABELS = ("no", "maybe", "yes")
WORDS = "the lamp in harbour went out at nine and nobody answered".split()
TEXTS = [" ".join(WORDS[j % 11] for j in range(i, i + 1 + i % 23)) for i in range(64)]


def documents(texts: list[str] = TEXTS) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


@pytest.fixture
def network(tiny_tokenizer: Tokenizer) -> Network:
    found = random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64))
    found.add_classes(LABELS, seed=1)
    with torch.no_grad():
        assert found.score is not None
        found.score.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    return found


@pytest.fixture
def predictor(network: Network, tiny_tokenizer: Tokenizer) -> Predictor:
    return Predictor(network, tiny_tokenizer, temperature=1.6)


def shares(found: list[Prediction]) -> np.ndarray:
    return np.array([list(p.probabilities.values()) for p in found])


def plain(network: Network, ids: list[int], temperature: float) -> list[float]:
    """The network asked for one document, its logits at the last token divided and normalised."""
    assert network.score is not None
    with torch.no_grad():
        hidden = network.hidden(torch.tensor([ids]))[0, -1]
    found: list[float] = ((hidden @ network.score.weight.t()) / temperature).softmax(0).tolist()
    return found


def test_probabilities_are_those_of_the_network(predictor: Predictor, network: Network) -> None:
    for text, found in zip(TEXTS, predictor.predict(documents()), strict=True):
        wanted = plain(network, predictor.tokenizer.encode(text), 1.6)
        assert list(found.probabilities) == list(LABELS)
        assert list(found.probabilities.values()) == pytest.approx(wanted, abs=1e-6)
        assert found.probability == max(found.probabilities.values())
        assert found.label == LABELS[int(np.argmax(wanted))] and not found.truncated


def test_the_company_of_a_document_changes_nothing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, 64 at a time, in another order, in windows of five: the same labels, within 1e-6."""
    alone = list(predictor.predict(documents(), batch_size=1))
    for size in (7, 64):
        found = list(predictor.predict(documents(), batch_size=size))
        assert [p.label for p in found] == [p.label for p in alone]
        assert np.abs(shares(found) - shares(alone)).max() < 1e-6
    back = list(predictor.predict(documents(TEXTS[::-1])))[::-1]
    assert np.abs(shares(back) - shares(alone)).max() < 1e-6
    monkeypatch.setattr(module, "_WINDOW", 5)
    windows = list(predictor.predict(iter(documents())))
    assert np.abs(shares(windows) - shares(alone)).max() < 1e-6
    assert len({p.label for p in alone}) > 1


def test_documents_are_taken_as_they_are_needed(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 4)
    taken: list[int] = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield {"text": "the lamp"}

    answers = predictor.predict(endless())  # type: ignore[arg-type]
    for _ in range(6):
        next(answers)
    assert len(taken) == 8


def test_abstaining(predictor: Predictor) -> None:
    surest = max(p.probability for p in predictor.predict(documents()))
    found = list(predictor.predict(documents(), abstain=surest))
    assert sum(p.label is not None for p in found) >= 1
    assert all((p.label is None) == (p.probability < surest) for p in found)
    assert all(p.label is not None for p in predictor.predict(documents(), abstain=0.0))


def test_temperature_changes_the_confidence_and_no_label(network: Network, tiny_tokenizer: Tokenizer) -> None:
    hot, cold = (list(Predictor(network, tiny_tokenizer, temperature=t).predict(documents())) for t in (5.0, 0.5))
    assert [p.label for p in hot] == [p.label for p in cold]
    assert all(h.probability < c.probability for h, c in zip(hot, cold, strict=True))


def test_a_long_document_loses_its_end_and_says_so(network: Network, tiny_tokenizer: Tokenizer) -> None:
    short = Predictor(network, tiny_tokenizer, max_length=5)
    long = " ".join(WORDS * 9)
    ids = tiny_tokenizer.encode(long)
    found = next(short.predict(documents([long])))
    assert found.truncated
    assert list(found.probabilities.values()) == pytest.approx(plain(network, ids[:5], 1.0), abs=1e-6)
    assert not next(short.predict(documents(["a"]))).truncated
    assert Predictor(network, tiny_tokenizer, max_length=10**6).max_length == 64
    assert next(Predictor(network, tiny_tokenizer).predict(documents([long]))).truncated


def test_pairs(network: Network, tiny_tokenizer: Tokenizer) -> None:
    pairs = Predictor(network, tiny_tokenizer, task="entail")
    assert pairs.pairs
    found = next(pairs.predict([{"first": "the lamp", "second": "who?"}]))
    ids = [*tiny_tokenizer.encode("the lamp"), tiny_tokenizer.eot, *tiny_tokenizer.encode("who?")]
    assert list(found.probabilities.values()) == pytest.approx(plain(network, ids, 1.0), abs=1e-6)
    with pytest.raises(InputError, match=r"document 2: the field 'second' is missing or empty"):
        list(pairs.predict([{"first": "a", "second": "b"}, {"first": "a"}]))


@pytest.mark.parametrize("text", ["", "  \n", None, 5])
def test_what_is_no_text(predictor: Predictor, text: object) -> None:
    with pytest.raises(InputError, match=r"^document 1: the field 'text' is missing or empty"):
        list(predictor.predict([{"text": text}]))  # type: ignore[dict-item]


def test_the_state_of_the_network_is_left_as_it_was(predictor: Predictor, network: Network) -> None:
    network.train()
    network.transformer.dropout = network.head_dropout = 0.5
    one, two = (shares(list(predictor.predict(documents()))) for _ in range(2))
    assert network.training and (one == two).all()
    assert all(p.grad is None for p in network.parameters())


def test_a_language_model_is_no_classifier(tiny_network: Network, tiny_tokenizer: Tokenizer, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"a language model, not a classifier.*--task classify"):
        Predictor(tiny_network, tiny_tokenizer)
    with pytest.raises(InputError, match=r"tiny-model: is a language model, not a classifier"):
        open_predictor(str(tiny_folder))


def test_opened_by_name(network: Network, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    extras = Extras(task="entail", temperature=2.5, max_length=33)
    save_model(tmp_path / "model", network, tiny_tokenizer, extras)
    opened = open_predictor(str(tmp_path / "model"))
    assert (opened.temperature, opened.max_length, opened.pairs, opened.labels) == (2.5, 33, True, LABELS)
    (tmp_path / "model" / "finetwo.json").unlink()  # as a folder from elsewhere
    foreign = open_predictor(str(tmp_path / "model"))
    assert (foreign.temperature, foreign.max_length, foreign.pairs) == (1.0, 64, False)
    with pytest.raises(InputError, match=r"--base: .* is a whole model"):
        open_predictor(str(tmp_path / "model"), str(tmp_path))


def test_documents_from_what_people_give() -> None:
    assert document_of("a", False, "X[0]") == {"text": "a"}
    assert document_of(("a", "b"), True, "X[0]") == document_of(["a", "b"], True, "X[0]")
    assert document_of({"text": "a", "more": 1}, False, "X[0]") == {"text": "a", "more": 1}
    for item, pairs in ((5, False), (("a", "b"), False), ("a", True), (("a",), True), (None, True)):
        with pytest.raises(InputError, match=r"^X\[3\]: "):
            document_of(item, pairs, "X[3]")
