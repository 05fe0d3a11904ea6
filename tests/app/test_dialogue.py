"""A conversation by itself: what is sent, what is remembered, what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.standins.models import random_network, tiny_config

from finetwo.app.dialogue import Dialogue, Exchange
from finetwo.core.config import ColumnsConfig, RowsConfig, SamplingConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import detect_columns
from finetwo.data.selecting import select
from finetwo.data.source import read_rows
from finetwo.generate.pipeline import Model
from finetwo.text.template import Template, Turn
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture
def model(tiny_tokenizer: Tokenizer) -> Model:
    network = random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=128))
    return Model(network, tiny_tokenizer, Template.named("chat"), name="tuned")


def talk(model: Model, *, history: bool = True, **settings: object) -> Dialogue:
    sampling = SamplingConfig(max_new_tokens=6, **settings)  # type: ignore[arg-type]
    return Dialogue(model, sampling, history, lambda: Model(random_network(model.network.config, 1), model.tokenizer))


def ask(dialogue: Dialogue, question: str) -> tuple[str, list[str]]:
    pieces: list[str] = []
    notes: list[str] = []
    dialogue.answer(question, pieces.append, notes.append)
    return "".join(pieces), notes


def test_the_whole_conversation_is_sent_with_history(model: Model) -> None:
    dialogue = talk(model)
    dialogue.set_system("Be brief.")
    first, _ = ask(dialogue, "one")
    second, _ = ask(dialogue, "two")
    turns = [Turn("system", "Be brief."), Turn("user", "one"), Turn("assistant", first), Turn("user", "two")]
    assert second == model.generate(turns, max_new_tokens=6)
    assert second != model.generate("two", max_new_tokens=6)


def test_only_the_last_question_is_sent_without(model: Model) -> None:
    dialogue = talk(model, history=False)
    ask(dialogue, "one")
    assert ask(dialogue, "two")[0] == model.generate("two", max_new_tokens=6)
    dialogue.set_system("Be brief.")
    system = [Turn("system", "Be brief."), Turn("user", "two")]
    assert ask(dialogue, "two")[0] == model.generate(system, max_new_tokens=6)


def test_a_model_without_a_template_continues_the_text(model: Model) -> None:
    model.template = None
    dialogue = talk(model, history=False)
    ask(dialogue, "It was")
    assert ask(dialogue, "a dark night")[0] == model.generate("a dark night", max_new_tokens=6)
    with pytest.raises(InputError, match="/system: tuned has no template"):
        dialogue.set_system("Be brief.")


def test_an_answer_that_is_broken_off_is_remembered_as_far_as_it_came(model: Model) -> None:
    dialogue = talk(model)
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dialogue.answer("one", write, lambda _: None)
    assert dialogue.exchanges == [Exchange("one", "".join(pieces), whole=False, untuned=False)]
    with pytest.raises(KeyboardInterrupt):
        dialogue.answer("two", lambda _: (_ for _ in ()).throw(KeyboardInterrupt), lambda _: None)
    assert ask(dialogue, "three")[0], "the chat goes on"


def test_an_answer_cut_at_the_limit_says_so(model: Model) -> None:
    said, notes = ask(talk(model), "one")
    assert notes == ["(cut after 6 tokens: /set max_new_tokens 12 allows more)"]
    assert said


def test_an_answer_that_ends_at_once_is_not_remembered(model: Model) -> None:
    """The end-of-text id made the likeliest of all."""
    with torch.no_grad():
        model.network.transformer.ln_f.weight.zero_()
        model.network.transformer.ln_f.bias.copy_(100 * model.network.transformer.wte.weight[model.tokenizer.eot])
    dialogue = talk(model)
    said, notes = ask(dialogue, "one")
    assert said == "" and dialogue.exchanges == []
    assert notes == ["(the model ended its answer before it began; nothing is remembered)"]


def test_what_does_not_fit_is_said(model: Model) -> None:
    dialogue = talk(model)
    notes: list[str] = []
    while not any("oldest" in note for note in notes):
        notes = ask(dialogue, "Who counts the steps to the top?")[1]
        assert len(dialogue.exchanges) < 12
    assert "the context of 128 tokens has no room for the oldest 2 turns" in notes[0]
    assert len(dialogue.exchanges) > 2, "what is not sent is still remembered"
    assert "loses its beginning" in ask(dialogue, "zq " * 200)[1][1]


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperature", "0.7", 0.7),
        ("temperature", "1e-1", 0.1),
        ("max_new_tokens", "1,000", 1000),
        ("top_k", "5", 5),
        ("seed", "3", 3),
        ("stop", "\\n,###", ["\n", "###"]),
        ("stop", '["a,b"]', ["a,b"]),
        ("stop", "[]", []),
    ],
)
def test_every_setting_is_read_as_on_the_command_line(model: Model, name: str, value: str, wanted: object) -> None:
    dialogue = talk(model)
    assert dialogue.set(name, value) == f"{name} = {wanted}"
    assert getattr(dialogue.sampling, name) == wanted


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("temperature", "hot", "/set temperature: must be a number (got hot). Fix: give a number"),
        ("temperature", "-1", "/set temperature: out of range (got -1.0). Fix: give a number >= 0 and <= 100"),
        ("temperature", "nan", "/set temperature: must be a number (got nan)"),
        ("max_new_tokens", "0", "/set max_new_tokens: must be an integer >= 1 (got 0)"),
        ("top_k", "2.5", "/set top_k: must be an integer (got 2.5)"),
        ("top_p", "0", "/set top_p: out of range"),
        ("stop", "", "/set stop: a stop string must not be empty"),
        ("seed", "-1", "/set seed: must be an integer from 0"),
        ("n", "2", "/set n: a chat gives one answer at a time (got 2)"),
        ("temprature", "1", "/set temprature: no such setting. Fix: did you mean temperature?"),
        ("temp", "1", "/set temp: no such setting. Fix: here it is called temperature"),
        ("lr", "1", "/set lr: no such setting. Fix: use max_new_tokens, temperature"),
    ],
)
def test_a_bad_setting_is_refused_and_changes_nothing(model: Model, name: str, value: str, told: str) -> None:
    dialogue = talk(model)
    with pytest.raises(InputError) as caught:
        dialogue.set(name, value)
    assert str(caught.value).startswith(told)
    assert dialogue.sampling == SamplingConfig(max_new_tokens=6)


def test_settings_show_what_is_in_force(model: Model) -> None:
    dialogue = talk(model, temperature=0.5)
    dialogue.set_system("Be brief.")
    shown = dict(line.split(maxsplit=1) for line in dialogue.settings())
    assert shown["model"] == "tuned" and shown["template"] == "chat" and shown["sent"] == "the whole conversation"
    assert shown["temperature"] == "0.5" and shown["system"] == "Be brief." and "n" not in shown
    dialogue.flip()
    assert dict(line.split(maxsplit=1) for line in dialogue.settings())["answers"] == "the untuned base, model"


def test_the_base_answers_in_the_same_template_and_is_made_once(model: Model) -> None:
    dialogue = talk(model)
    tuned, _ = ask(dialogue, "one")
    assert dialogue.flip() == "answers now come from the untuned base, model"
    made = dialogue._untuned
    assert made is not None
    base, _ = ask(dialogue, "two")
    turns = [Turn("user", "one"), Turn("assistant", tuned), Turn("user", "two")]
    assert base == made.generate(turns, max_new_tokens=6)
    assert base != model.generate(turns, max_new_tokens=6)
    assert dialogue.flip() == "answers now come from tuned"
    dialogue.flip()
    assert dialogue._untuned is made
    assert [e.untuned for e in dialogue.exchanges] == [False, True]


def test_a_missing_base_leaves_the_tuned_model_answering(model: Model) -> None:
    def missing() -> Model:
        raise InputError("/base", "is not there")

    dialogue = Dialogue(model, SamplingConfig(), True, missing)
    with pytest.raises(InputError):
        dialogue.flip()
    assert not dialogue.at_base


# --- what was said ----------------------------------------------------------------------------------------------


def test_undo_and_clear(model: Model) -> None:
    dialogue = talk(model)
    with pytest.raises(InputError, match="/undo: nothing was said yet"):
        dialogue.undo()
    ask(dialogue, "one")
    ask(dialogue, "two\nlines")
    assert dialogue.undo() == "taken back: 'two' and its answer"
    assert [e.question for e in dialogue.exchanges] == ["one"]
    dialogue.set_system("Be brief.")
    dialogue.clear()
    assert dialogue.exchanges == [] and dialogue.system == "Be brief."


def lines_of(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_saved_conversation_is_read_as_training_data(model: Model, tmp_path: Path) -> None:
    dialogue = talk(model)
    dialogue.set_system("Kürze\n\u2028")
    ask(dialogue, "one")
    path = tmp_path / "chats.jsonl"
    assert dialogue.save(str(path)) == f"saved 1 answer to {path} (conversation 1 there); 1 cut or stopped"
    record = json.loads(path.read_text(encoding="utf-8"))
    (row,) = read_rows(path, RowsConfig())
    fields = select(row, detect_columns(list(row.fields), ColumnsConfig(), "x"))
    assert json.loads(fields["messages"]) == record["messages"]
    assert [t["role"] for t in record["messages"]] == ["system", "user", "assistant"]


def test_saving_again_replaces_the_same_conversation_and_adds_another(model: Model, tmp_path: Path) -> None:
    dialogue, path = talk(model), tmp_path / "chats.jsonl"
    ask(dialogue, "one")
    dialogue.save(str(path))
    ask(dialogue, "two")
    dialogue.save(str(path))
    dialogue.save(str(path))
    assert [len(m) for m in lines_of(path)] == [4]
    dialogue.clear()
    dialogue.flip()
    ask(dialogue, "three")
    told = dialogue.save(str(path))
    assert "(conversation 2 there); 1 cut or stopped, 1 by the untuned base" in told
    assert [len(m) for m in lines_of(path)] == [4, 2]


@pytest.mark.parametrize(
    "content",
    ["hello\n", '{"prompt": "a"}\n', '{"messages": 3}\n', '{"messages": [], "id": 1}\n', "[]\n", b"\xff\n"],
)
def test_other_files_are_not_touched(model: Model, tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    dialogue = talk(model)
    ask(dialogue, "one")
    with pytest.raises(InputError, match=r"mine\.jsonl:1: the file holds something else than saved conversations"):
        dialogue.save(str(path))
    assert path.read_bytes() == before


def test_what_cannot_be_saved_is_told(model: Model, tmp_path: Path) -> None:
    dialogue = talk(model)
    with pytest.raises(InputError, match="/save: no file given"):
        dialogue.save("")
    with pytest.raises(InputError, match="/save: nothing was answered yet"):
        dialogue.save(str(tmp_path / "x.jsonl"))
    ask(dialogue, "one")
    with pytest.raises(InputError, match="there is no such folder"):
        dialogue.save(str(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(InputError, match="not a regular file"):
        dialogue.save(str(tmp_path))
