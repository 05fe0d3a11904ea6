"""Evaluation: its figures by definition, and when a run evaluates, keeps the best and stops early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.standins.models import hf_twin, random_network, tiny_config
from tests.standins.sequences import encoded
from tests.train.support import At, digest, metrics, quick, records, snapshot, weights, write_jsonl

from finetwo import load
from finetwo.core.errors import InputError, NumericError
from finetwo.data.loader import InMemory
from finetwo.data.sequences import IGNORE, Segment, Sequence
from finetwo.insight.measure import MeasureOptions, measure
from finetwo.model.network import Network
from finetwo.model.quantised import quantise
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.evaluate import Evaluation, byte_lengths, evaluate

SPLIT = {"split": "train:11,validation:9"}


@pytest.fixture(scope="module")
def network(tiny_tokenizer: Tokenizer) -> Network:
    return random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64, n_embd=16, n_head=2))


@pytest.fixture(scope="module")
def sequences(tiny_tokenizer: Tokenizer) -> list[Sequence]:
    """Forty of unequal lengths, one of them cut before its end."""
    found = []
    for i, row in enumerate(records(40)):
        segments = [Segment(row["prompt"] + " é\n", False), Segment(row["completion"], True, end=True)]
        sequence, _ = encoded(tiny_tokenizer, segments, 64 if i else 22)
        assert sequence is not None
        found.append(sequence)
    return found


def measured(
    network: Network, sequences: list[Sequence], tokenizer: Tokenizer, size: int, **settings: Any
) -> Evaluation:
    found = evaluate(network, InMemory(sequences), size, byte_lengths=byte_lengths(tokenizer), **settings)
    assert found is not None
    return found


def test_codes_are_measured_by_the_head_that_answers(sequences: list[Sequence], tiny_tokenizer: Tokenizer) -> None:
    """Its inputs are rounded, too; and no table of whole numbers is made for it."""
    settings = {"vocab_size": tiny_tokenizer.vocab_size, "n_positions": 64, "n_embd": 16, "n_head": 2}
    codes = random_network(tiny_config(**settings))
    quantise(codes, "int8")
    found = measured(codes, sequences[1:2], tiny_tokenizer, 1)
    embedding: Any = codes.transformer.wte
    assert embedding._weight is None
    ids = torch.tensor([sequences[1].tokens.tolist()])
    targets = torch.tensor([*sequences[1].tokens[1:].tolist(), int(sequences[1].targets[-1])])
    with torch.no_grad():
        told = torch.nn.functional.cross_entropy(codes(ids)[0], targets)
        other = torch.nn.functional.cross_entropy(codes.hidden(ids)[0] @ codes.head_weight.t(), targets)
    assert found.loss_all == pytest.approx(float(told), abs=1e-6)
    assert abs(float(told) - float(other)) > 1e-5


def test_figures_are_those_of_their_definition(
    network: Network, sequences: list[Sequence], tiny_tokenizer: Tokenizer
) -> None:
    """Sum of losses over sum of tokens, record by record through transformers; bytes counted on the decoded text."""
    model = hf_twin(network)
    learned = every = 0.0
    n_learned = n_every = n_bytes = 0
    for s in sequences:
        ids = [int(i) for i in s.tokens] + [int(s.targets[-1])]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        answer = torch.from_numpy(s.targets != IGNORE)
        learned, n_learned = learned + float(each[answer].sum()), n_learned + int(answer.sum())
        every, n_every = every + float(each.sum()), n_every + len(each)
        n_bytes += sum(len(tiny_tokenizer.bytes_of(i)) for i in ids[1:] if i != tiny_tokenizer.eot)
    found = measured(network, sequences, tiny_tokenizer, 8)
    assert found.loss == pytest.approx(learned / n_learned, abs=1e-5)
    assert found.loss_all == pytest.approx(every / n_every, abs=1e-5)
    assert (found.tokens, found.tokens_all, found.records) == (n_learned, n_every, 40)
    assert found.bits_per_byte == pytest.approx(every / math.log(2) / n_bytes, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(learned / n_learned), rel=1e-4)
    assert abs(found.loss - found.loss_all) > 1e-3


def test_figures_depend_neither_on_batch_size_nor_on_packing(
    network: Network, sequences: list[Sequence], tiny_tokenizer: Tokenizer
) -> None:
    one = measured(network, sequences, tiny_tokenizer, 1)
    for size in (1, 7, 32, 100):
        for packing in (None, True, False):
            found = measured(network, sequences, tiny_tokenizer, size, packing=packing)
            assert found.to_dict() == pytest.approx(one.to_dict(), abs=1e-6), (size, packing)


def test_limit_takes_the_first_records(network: Network, sequences: list[Sequence], tiny_tokenizer: Tokenizer) -> None:
    found = measured(network, sequences, tiny_tokenizer, 4, limit=10)
    assert found == measured(network, sequences[:10], tiny_tokenizer, 4)
    assert found.records == 10
    assert measured(network, sequences, tiny_tokenizer, 4, limit=999).records == 40


def test_evaluation_leaves_mode_gradients_and_random_state_alone(
    network: Network, sequences: list[Sequence], tiny_tokenizer: Tokenizer
) -> None:
    network.transformer.dropout = 0.5
    try:
        for training in (True, False):
            network.train(training)
            state = torch.get_rng_state()
            found = measured(network, sequences, tiny_tokenizer, 8)
            assert network.training is training
            assert torch.equal(torch.get_rng_state(), state)
            assert all(p.grad is None for p in network.parameters())
    finally:
        network.transformer.dropout = 0.0
    network.eval()
    assert found == measured(network, sequences, tiny_tokenizer, 8), "dropout must be off"


def test_stop_wish_ends_it_without_figures(
    network: Network, sequences: list[Sequence], tiny_tokenizer: Tokenizer
) -> None:
    asked = iter([False, False, True])
    lengths = byte_lengths(tiny_tokenizer)
    assert evaluate(network, InMemory(sequences), 4, byte_lengths=lengths, stopping=lambda: next(asked)) is None


def test_byte_lengths_count_bytes_and_give_end_of_text_none(tiny_tokenizer: Tokenizer) -> None:
    lengths = byte_lengths(tiny_tokenizer)
    assert lengths[tiny_tokenizer.eot] == 0
    text = "naïve 猫 🙂 steps"
    assert lengths[np.array(tiny_tokenizer.encode(text))].sum() == len(text.encode())


# --- in a run -------------------------------------------------------------------------------------------------------


def evaluated(run: Path) -> list[int]:
    return [m["step"] for m in metrics(run) if m["event"] == "evaluation"]


@pytest.mark.parametrize(
    ("every", "steps"), [("2", [0, 2, 4, 6, 7]), ("1epoch", [0, 3, 6, 7]), ("0.5epoch", [0, 2, 4, 6, 7]), ("0", [0, 7])]
)
def test_evaluates_at_the_start_at_the_interval_and_at_the_end(
    base: Path, tmp_path: Path, every: str, steps: list[int]
) -> None:
    """Eleven records in steps of four: three steps an epoch."""
    report = quick(records(20), base, tmp_path / "run", rows=SPLIT, max_steps=7, eval_every=every)
    assert evaluated(tmp_path / "run") == steps
    assert report.first is not None
    assert report.last is not None
    assert (report.first["step"], report.last["step"]) == (0, 7)


def test_first_evaluation_is_the_untouched_base(base: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    report = quick(records(20), base, tmp_path / "run", rows=SPLIT, max_steps=2, lr=1e-2)
    sequences = []
    for row in records(20)[11:]:
        segments = [Segment(row["prompt"] + "\n", False), Segment(row["completion"], True, end=True)]
        sequences.append(encoded(tiny_tokenizer, segments, 64)[0])
    found = measured(load(str(base)).network, [s for s in sequences if s is not None], tiny_tokenizer, 3)
    assert report.first is not None
    assert report.first["loss"] == pytest.approx(found.loss, abs=1e-6)
    assert report.first["bits_per_byte"] == pytest.approx(found.bits_per_byte, abs=1e-6)


OVERFIT: dict[str, Any] = {
    "rows": SPLIT,
    "lr": 2e-2,
    "schedule": "constant",
    "warmup": 0,
    "max_steps": 60,
    "eval_every": "3",
}


def test_best_is_kept_beside_last(base: Path, tmp_path: Path) -> None:
    """The validation loss falls and rises again: best/ holds its lowest point, final/ the end."""
    report = quick(records(20), base, tmp_path / "run", **OVERFIT)
    rows = [m for m in metrics(tmp_path / "run") if m["event"] == "evaluation"]
    lowest = min(rows, key=lambda m: m["loss"])
    assert report.best is not None
    assert report.last is not None
    assert 0 < lowest["step"] < 60
    assert report.best == lowest
    assert report.last["loss"] > report.best["loss"] + 0.05
    assert digest(tmp_path / "run/best") != digest(tmp_path / "run/final")
    quick(records(20), base, tmp_path / "short", **(OVERFIT | {"max_steps": lowest["step"]}))
    assert digest(tmp_path / "short/final") == digest(tmp_path / "run/best")
    opened = load(str(tmp_path / "run"))
    best = weights(tmp_path / "run/best")
    assert all(torch.equal(t, best[n]) for n, t in opened.network.state().items()), "a run folder means its best/"


def test_early_stopping_waits_for_its_patience_and_stays_stopped(base: Path, tmp_path: Path) -> None:
    settings = OVERFIT | {"patience": 2}
    report = quick(records(20), base, tmp_path / "run", **settings)
    rows = [m["loss"] for m in metrics(tmp_path / "run") if m["event"] == "evaluation"]
    assert report.stopped_early
    assert report.steps < 60
    assert report.best is not None
    assert report.best["step"] == report.steps - 6
    assert min(rows[-2:]) > rows[-3] == min(rows)
    before = snapshot(tmp_path / "run")
    again = quick(records(20), base, tmp_path / "run", **settings)
    assert snapshot(tmp_path / "run") == before, "an early-stopped run is finished"
    assert again.stopped_early
    assert again.steps == report.steps


def test_patience_counts_on_over_a_stop(base: Path, tmp_path: Path) -> None:
    import signal

    from finetwo import Stopped

    settings = OVERFIT | {"patience": 2}
    whole = quick(records(20), base, tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        action = At("step", whole.steps - 1, lambda: signal.raise_signal(signal.SIGTERM))
        quick(records(20), base, tmp_path / "run", **settings, listeners=[action])
    report = quick(records(20), base, tmp_path / "run", **settings)
    assert report.steps == whole.steps
    assert report.stopped_early


def test_no_patience_never_stops_early(base: Path, tmp_path: Path) -> None:
    assert quick(records(20), base, tmp_path / "run", **OVERFIT).steps == 60


def test_eval_limit_bounds_the_validation_set(base: Path, tmp_path: Path) -> None:
    report = quick(records(20), base, tmp_path / "run", rows=SPLIT, max_steps=1, eval_limit=4)
    assert report.last is not None
    assert report.last["records"] == 4


def test_patience_without_validation_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--patience.*no validation data"):
        quick(records(5), base, tmp_path / "run", patience=2, max_steps=1)
    assert not (tmp_path / "run").exists()


def test_eval_every_without_validation_is_refused(base: Path, tmp_path: Path) -> None:
    """Bad input 18: the wish to evaluate is told from the default, which says aloud that it cannot."""
    with pytest.raises(InputError, match=r"--eval_every.*no validation data"):
        quick(records(5), base, tmp_path / "run", eval_every="50", max_steps=1)
    assert not (tmp_path / "run").exists()
    said: list[str] = []
    quick(records(5), base, tmp_path / "run", eval_every="1epoch", max_steps=1, say=said.append)
    assert any("no validation data" in line for line in said)


def test_validation_loss_that_is_no_number_stops_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from finetwo.train import parts

    real = parts.evaluate
    monkeypatch.setattr(parts, "evaluate", lambda *a, **k: replace(real(*a, **k), loss=math.nan))
    with pytest.raises(NumericError, match="step 0: the validation loss is nan"):
        quick(records(20), base, tmp_path / "run", rows=SPLIT, max_steps=1)


def test_a_text_is_measured_whole(base: Path, tmp_path: Path) -> None:
    """Each token once, whatever offsets training would draw."""
    file = tmp_path / "text.txt"
    file.write_text("".join(f"Line {i} of the story of the lamp.\n" for i in range(300)), encoding="utf-8")
    model = load(str(base))
    figures = measure(model, file, MeasureOptions(max_length=16), lambda _: None)
    assert figures["tokens"] == len(model.tokenizer.encode(file.read_text(encoding="utf-8"))) + 1  # and its end


def test_all_means_every_split(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train", records(6)), ("validation", records(4)), ("test", records(3))):
        write_jsonl(folder / f"{name}.jsonl", rows)
    figures = measure(load(str(base)), folder, MeasureOptions(answer_tokens=1), lambda _: None)
    assert figures["records"] == 13
    assert measure(load(str(base)), folder, MeasureOptions("test"), lambda _: None)["records"] == 3
