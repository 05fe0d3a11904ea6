"""From data to sequences: the task, the template, what was cut, how text is split and cached, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.support import digest, quick, records, weights, write_jsonl

from finetwo import load, train
from finetwo.core.config import ColumnsConfig, RowsConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import Columns
from finetwo.data.examples import load_rows
from finetwo.data.sequences import IGNORE
from finetwo.tasks.registry import find_task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.corpora import prepare_stream
from finetwo.train.prepare import Prepared, detect_task, prepare_records
from finetwo.train.templates import make_template

STORY = "The lamp went out at nine.\nNobody answered, for the wind had taken every word.\n"


def documents(count: int) -> list[dict[str, str]]:
    return [{"text": f"Story {i}. " + " ".join(f"w{i}x{j}" for j in range(40))} for i in range(count)]


# --- which task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "instruct"),
        ({"instruction": "a", "context": "", "response": "b", "category": "c"}, "instruct"),
        ({"prompt": "a", "completion": "b"}, "instruct"),
        ({"question": "a", "answer": "b"}, "instruct"),
        ({"text": "a"}, "style"),
    ],
)
def test_task_is_told_by_the_columns(tmp_path: Path, row: dict[str, str], task: str) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [row])
    assert detect_task(TrainConfig(), str(file)).name == task
    assert detect_task(TrainConfig(), [row]).name == task


def test_task_by_file_kind_by_mapping_and_by_wish(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text(STORY, encoding="utf-8")
    assert detect_task(TrainConfig(), str(text)).name == "style"
    assert detect_task(TrainConfig(task="pretrain"), str(text)).name == "pretrain"
    odd = write_jsonl(tmp_path / "odd.jsonl", [{"q": "a", "a": "b", "t": "c"}])
    mapped = RowsConfig(columns=ColumnsConfig(prompt="q", completion="a"))
    assert detect_task(TrainConfig(rows=mapped), str(odd)).name == "instruct"
    assert detect_task(TrainConfig(rows=RowsConfig(columns=ColumnsConfig(text="t"))), str(odd)).name == "style"
    with pytest.raises(InputError, match="fields found: 'q', 'a', 't'"):
        detect_task(TrainConfig(), str(odd))


def test_missing_and_empty_data_are_named(base: Path, tmp_path: Path) -> None:
    """Bad input 31; the run folder is not made."""
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "blank.jsonl").write_text("\n \n", encoding="utf-8")
    (tmp_path / "header.csv").write_text("prompt,completion\n", encoding="utf-8")
    for name in ("missing.jsonl", "empty.jsonl", "blank.jsonl", "header.csv"):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            train(str(tmp_path / name), model=str(base), out=str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()


# --- the template ---------------------------------------------------------------------------------------------------

INSTRUCT = find_task("instruct")
COLUMNS = Columns(prompt="question", input="context", completion="answer")
KNOWN = ["prompt", "input", "topic"]


def test_template_as_asked_else_the_models_own_else_the_tasks() -> None:
    stored = Template.named("dolly")
    assert make_template(INSTRUCT, "plain", stored, COLUMNS, KNOWN) == Template.named("plain")
    assert make_template(INSTRUCT, None, stored, COLUMNS, KNOWN) is stored
    assert make_template(INSTRUCT, None, None, COLUMNS, KNOWN) == Template.named("alpaca")


def test_own_template_by_role_by_column_and_from_a_file(tmp_path: Path) -> None:
    fields = {"prompt": "P", "input": "I", "topic": "T"}
    for text in ("{prompt}|{input}|{topic}:", "{question}|{context}|{topic}:"):
        made = make_template(INSTRUCT, text, None, COLUMNS, KNOWN)
        assert made is not None
        assert made.prompt(fields) == "P|I|T:"
    file = tmp_path / "mine.txt"
    file.write_text("Ask: {question}\n-> ", encoding="utf-8")
    made = make_template(INSTRUCT, str(file), None, COLUMNS, KNOWN)
    assert made is not None
    assert made.prompt(fields) == "Ask: P\n-> "
    written = make_template(INSTRUCT, r"{prompt}\n=> ", None, COLUMNS, KNOWN)
    assert written is not None
    assert written.prompt(fields) == "P\n=> "


@pytest.mark.parametrize("text", ["{answer}", "{completion}", "{prompt} {answer}", "{nothing}", "{promt}"])
def test_template_of_a_field_that_no_prompt_has_is_refused(text: str) -> None:
    """Bad input 62; the answer is no field: a prompt that holds it teaches nothing and cannot be served."""
    with pytest.raises(InputError, match=r"--template:1:\d+: no such field"):
        make_template(INSTRUCT, text, None, COLUMNS, KNOWN)


def test_template_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        make_template(INSTRUCT, str(tmp_path / "gone.txt"), None, COLUMNS, KNOWN)
    with pytest.raises(InputError, match="unknown template"):
        make_template(INSTRUCT, "alpacca", None, COLUMNS, KNOWN)
    with pytest.raises(InputError, match="the task style has no prompt"):
        make_template(find_task("style"), "plain", None, Columns(text="text"), ["text"])


def test_template_travels_with_the_model(base: Path, tmp_path: Path) -> None:
    """Seed fault 0.17: the stored template is used by the next training and by generation, token for token."""
    own = "Q: {prompt}\nA: "
    report = quick(records(6), base, tmp_path / "one", template=own, max_steps=1)
    assert report.model.template == Template.parse(own)
    said: list[str] = []
    quick(records(6), tmp_path / "one", tmp_path / "two", template=None, max_steps=1, say=said.append)
    assert "template: custom" in said
    for folder in ("one", "two"):
        opened = load(str(tmp_path / folder))
        assert opened.prompt_ids({"prompt": "the lamp"}) == opened.tokenizer.encode("Q: the lamp\nA: ")


# --- lengths --------------------------------------------------------------------------------------------------------


def prepared(rows: list[dict[str, str]], tokenizer: Tokenizer, length: int, said: list[str], **given: Any) -> Prepared:
    config = TrainConfig(rows=RowsConfig(**given))
    loaded = load_rows(rows, config.rows, 0, said.append)
    return prepare_records(loaded, INSTRUCT, Template.named("plain"), tokenizer, config, length, said.append)


LONG = [
    {"prompt": "the lamp", "completion": "went out"},
    {"prompt": "the lamp", "completion": "nobody answered " * 30},
    {"prompt": "counted steps " * 40, "completion": "nine"},
]


def test_every_record_is_in_a_sequence_or_in_a_count(tiny_tokenizer: Tokenizer) -> None:
    """Seed fault 0.1 (records dropped in silence), bad input 40."""
    said: list[str] = []
    found = prepared(LONG, tiny_tokenizer, 24, said)
    assert found.counts["read"] == 3
    assert (found.counts["train"], found.counts["truncated"], found.counts["too_long"]) == (2, 1, 1)
    assert any("1 records were cut at 24 tokens" in line for line in said)
    assert any("1 records were left out" in line for line in said)
    assert [found.where_of(i) for i in range(2)] == ["data[0]", "data[1]"]
    short, cut = (found.train.get(i, 0) for i in range(2))
    assert short.targets[-1] == tiny_tokenizer.eot
    assert len(cut) == 24
    assert tiny_tokenizer.eot not in cut.targets, "a cut answer must not teach the model to stop there"


def test_more_than_a_hundred_records_are_kept(tiny_tokenizer: Tokenizer) -> None:
    """Seed fault 0.1: a debug slice kept the first hundred of every split."""
    found = prepared(records(300), tiny_tokenizer, 64, [], split="train:150,validation:150")
    assert found.validation is not None
    assert (len(found.train), len(found.validation)) == (150, 150)


def test_mask_is_the_answer_and_its_end(tiny_tokenizer: Tokenizer) -> None:
    """Seed faults 0.2, 0.3, 0.4 and 0.18: neither prompt nor header nor padding, but end-of-text carries loss."""
    said: list[str] = []
    found = prepared([{"prompt": "the lamp", "completion": "went out"}], tiny_tokenizer, 64, said).train.get(0, 0)
    answer = [*tiny_tokenizer.encode("went out"), tiny_tokenizer.eot]
    prompt = tiny_tokenizer.encode("the lamp\n")
    assert found.tokens.tolist() == [*prompt, *answer[:-1]]
    assert found.targets.tolist() == [IGNORE] * (len(prompt) - 1) + answer
    assert any("end-of-text is learned in 1" in line for line in said)


def test_on_long_skip_and_error(tiny_tokenizer: Tokenizer) -> None:
    said: list[str] = []
    found = prepared(LONG, tiny_tokenizer, 24, said, on_long="skip")
    assert (found.counts["train"], found.counts.get("truncated", 0), found.counts["too_long"]) == (1, 0, 2)
    with pytest.raises(InputError, match=r"data\[1\].*longer than max_length 24"):
        prepared(LONG, tiny_tokenizer, 24, [], on_long="error")


def test_all_too_long_is_refused(base: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Bad inputs 39 and 41: nothing is trained and nothing is written."""
    with pytest.raises(InputError, match="no record is left to train on: 1 were too long for max_length 24"):
        prepared(LONG[2:], tiny_tokenizer, 24, [])
    with pytest.raises(InputError, match="no record is left"):
        quick(LONG[2:], base, tmp_path / "run", max_length=8)
    assert not (tmp_path / "run").exists()


def test_empty_answers_are_skipped_and_counted_or_refused(tiny_tokenizer: Tokenizer) -> None:
    """Bad input 38."""
    rows = [*records(3), {"prompt": "the lamp", "completion": " "}]
    said: list[str] = []
    assert prepared(rows, tiny_tokenizer, 64, said).counts["empty"] == 1
    assert any("1 empty completion" in line for line in said)
    with pytest.raises(InputError, match=r"data\[3\]: empty completion"):
        prepared(rows, tiny_tokenizer, 64, [], on_empty="error")


def test_end_of_text_in_a_record_is_text(tiny_tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "a <|endoftext|> b", "completion": "c <|endoftext|>"}]
    found = prepared(rows, tiny_tokenizer, 64, []).train.get(0, 0)
    assert (found.targets == tiny_tokenizer.eot).sum() == 1
    assert tiny_tokenizer.eot not in found.tokens


# --- text -----------------------------------------------------------------------------------------------------------


def streamed(data: object, tokenizer: Tokenizer, folder: Path, said: list[str], **given: Any) -> Prepared:
    rows = RowsConfig(**given)
    config = TrainConfig(task="style", rows=rows)
    return prepare_stream(data, find_task("style"), tokenizer, config, 32, folder, said.append)


def text_of(data: Any, tokenizer: Tokenizer) -> str:
    """The text of all chunks of a set, end-of-text as a bar."""
    ids = [int(data.get(0, 0).tokens[0])]
    for i in range(len(data)):
        ids += [int(t) for t in data.get(i, 0).targets]
    parts, run = [], []
    for i in [*ids, tokenizer.eot]:
        if i == tokenizer.eot:
            parts.append(tokenizer.decode(run))
            run = []
        else:
            run.append(i)
    return "|".join(parts)


def test_documents_are_split_before_they_are_cut(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Seed fault 0.14, promise T19: each document lies whole on one side, and is all there."""
    rows = documents(40)
    found = streamed(write_jsonl(tmp_path / "d.jsonl", rows), tiny_tokenizer, tmp_path / "t", [])
    assert found.validation is not None
    sides = {"train": text_of_train(found, tiny_tokenizer), "validation": text_of(found.validation, tiny_tokenizer)}
    for row in rows:
        assert sum(f"|{row['text']}|" in side for side in sides.values()) == 1, row["text"][:20]
    assert 1 <= sides["validation"].count("Story") <= 12


def text_of_train(found: Prepared, tokenizer: Tokenizer) -> str:
    """The whole training stream: its chunks begin at an offset of their own in each epoch."""
    corpus: Any = found.train
    from finetwo.data.cache import Chunks

    return text_of(Chunks(corpus.corpus, 32), tokenizer)


def test_one_document_gives_its_last_tenth(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    text = "".join(f"Line {i} of the story of the lamp.\n" for i in range(100))
    file = tmp_path / "notes.txt"
    file.write_text(text, encoding="utf-8")
    said: list[str] = []
    found = streamed(file, tiny_tokenizer, tmp_path / "t", said)
    assert found.validation is not None
    first, second = text_of_train(found, tiny_tokenizer)[1:-1], text_of(found.validation, tiny_tokenizer)[1:-1]
    assert first + second == text
    assert 0.08 < len(second) / len(text) < 0.12
    assert first.endswith("\n")
    assert any("one document: cut at line ends" in line for line in said)


def test_cache_is_used_again_and_made_anew_when_the_data_changed(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Bad input 56: other data, another split, another seed, another reading."""
    file = write_jsonl(tmp_path / "d.jsonl", documents(40))
    folder = tmp_path / "t"
    first = streamed(file, tiny_tokenizer, folder, [])
    stamp = (folder / "train/tokens.bin").stat().st_mtime_ns
    said: list[str] = []
    assert streamed(file, tiny_tokenizer, folder, said).digest == first.digest
    assert (folder / "train/tokens.bin").stat().st_mtime_ns == stamp
    assert any("read from the cache" in line for line in said)
    for change in ({"split": "train:0.5,validation:0.5"}, {"limit": 20}, {"format": "txt"}):
        said.clear()
        assert streamed(file, tiny_tokenizer, folder, said, **change).digest != first.digest, change
        assert not any("read from the cache" in line for line in said), change
    write_jsonl(file, documents(41))
    assert streamed(file, tiny_tokenizer, folder, []).digest != first.digest


def test_cache_left_half_made_is_not_taken_for_whole(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise T1: killed between two corpora, the next start has its validation data all the same."""
    from finetwo.data import cache

    file = write_jsonl(tmp_path / "d.jsonl", documents(40))
    whole = streamed(file, tiny_tokenizer, tmp_path / "whole", [])
    real, calls = cache.write_json, []

    def write(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_json", write)
        with pytest.raises(KeyboardInterrupt):
            streamed(file, tiny_tokenizer, tmp_path / "half", [])
    found = streamed(file, tiny_tokenizer, tmp_path / "half", [])
    assert found.validation is not None
    assert found.digest == whole.digest


def test_damaged_cache_is_named(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Bad input 57."""
    file = write_jsonl(tmp_path / "d.jsonl", documents(40))
    streamed(file, tiny_tokenizer, tmp_path / "t", [])
    binary = tmp_path / "t/train/tokens.bin"
    binary.write_bytes(binary.read_bytes()[:-2])
    said: list[str] = []
    again = streamed(file, tiny_tokenizer, tmp_path / "t", said)
    assert any("tokens.bin" in line and "built anew" in line for line in said)
    whole = binary.read_bytes()
    binary.write_bytes(whole[:10] + bytes([whole[10] ^ 1]) + whole[11:])  # one flipped bit
    said.clear()
    assert streamed(file, tiny_tokenizer, tmp_path / "t", said).digest == again.digest
    assert any("hash differs" in line and "built anew" in line for line in said)
    assert binary.read_bytes() == whole


def test_one_document_is_cut_by_the_asked_shares(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """All of a single document used to land on one side, which could be validation alone."""
    file = tmp_path / "notes.txt"
    file.write_text("".join(f"Line {i} of the story of the lamp.\n" for i in range(100)), encoding="utf-8")
    rows = RowsConfig(split="train:0.5,validation:0.25,test:0.25")
    found = prepare_stream(
        file, find_task("style"), tiny_tokenizer, TrainConfig(rows=rows), 64, tmp_path / "t", lambda _: None
    )
    assert found.validation is not None and found.test is not None
    assert abs(len(found.train) - len(found.validation) - len(found.test)) <= 2


def test_text_in_memory_is_a_corpus_too(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    found = streamed(documents(12), tiny_tokenizer, tmp_path / "t", [])
    assert len(found.train) > 10


def test_text_task_on_questions_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no known columns among the fields found: .*--rows.columns.text"):
        quick(records(12), base, tmp_path / "run", task="style", template=None)
    with pytest.raises(InputError, match=r"no known columns among the fields found: .*--rows.columns.prompt"):
        quick(documents(12), base, tmp_path / "run", task="instruct")
    assert not (tmp_path / "run").exists()


# --- fresh weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary") / "v"
    tiny_tokenizer.save(folder)
    return folder


def pretrain(out: Path, vocabulary: Path, **settings: Any) -> Any:
    given: dict[str, Any] = {"task": "pretrain", "tokenizer": str(vocabulary), "max_length": 16, "max_steps": 2}
    return train(documents(40), out=str(out), **(given | {"batch_size": 2} | settings))


def test_pretrain_by_size_starts_fresh(tmp_path: Path, vocabulary: Path, tiny_tokenizer: Tokenizer) -> None:
    report = pretrain(tmp_path / "run", vocabulary, size="2,32,2")
    config = json.loads((tmp_path / "run/final/config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["n_head"], config["n_positions"]) == (2, 32, 2, 16)
    assert config["vocab_size"] == tiny_tokenizer.vocab_size
    assert config["eos_token_id"] == tiny_tokenizer.eot
    assert report.first["loss"] == pytest.approx(np.log(tiny_tokenizer.vocab_size), abs=0.2), (
        "fresh weights know nothing"
    )
    pretrain(tmp_path / "same", vocabulary, size="2,32,2")
    pretrain(tmp_path / "other", vocabulary, size="2,32,2", seed=1)
    assert digest(tmp_path / "run/final") == digest(tmp_path / "same/final")
    assert digest(tmp_path / "run/final") != digest(tmp_path / "other/final")


def test_pretrain_by_name_of_a_size(tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetwo.model.config import GPT2Config
    from finetwo.train import start

    monkeypatch.setitem(start.SIZES, "gpt2-medium", GPT2Config(n_embd=16, n_layer=3, n_head=2))
    pretrain(tmp_path / "run", vocabulary, model="gpt2-medium")
    assert "transformer.h.2.ln_1.bias" in weights(tmp_path / "run/final")


def test_pretrain_extras_train(tmp_path: Path, vocabulary: Path) -> None:
    for name, extra in (
        ("post", {"post_norm": True}),
        ("copies", {"copy_share": 0.5}),
        ("muon", {"optimizer": "muon"}),
    ):
        assert pretrain(tmp_path / name, vocabulary, size="2,32,2", **extra).steps == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": "2,32"}, "--size: must be layers,width,heads"),
        ({"size": "2,32,3"}, "n_head must divide n_embd"),
        ({"size": "0,32,2"}, "n_layer must be an integer from 1"),
        ({"size": "2,32,2", "lora": {"rank": 4}}, "--lora"),
        ({"model": "huge"}, "pretrain needs a size by name or --size"),
        ({"size": "2,32,2", "tokenizer": "nowhere"}, "--tokenizer: no such folder"),
    ],
)
def test_pretrain_refuses(tmp_path: Path, vocabulary: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        pretrain(tmp_path / "run", vocabulary, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": "2,32,2"}, "--size: only for --task pretrain; this is instruct"),
        ({"tokenizer": "x"}, "--tokenizer: only for --task pretrain"),
        ({"post_norm": True}, "--post_norm: only for --task pretrain"),
        ({"copy_share": 0.1}, "--copy_share: only for --task pretrain"),
        ({"max_length": 65}, r"--max_length: the context of .*base is 64 tokens \(got 65\)"),
        ({"max_length": 1}, "--max_length: must be >= 2"),
        ({"lora": {"rank": 0}}, "--lora.rank"),
        ({"lora": {"rank": 100_000}}, "--lora.rank"),
        ({"lora": {"alpha": 0}}, "--lora.alpha"),
        ({"lora": {"dropout": 1.5}}, "--lora.dropout"),
        ({"lora": {"targets": "c_atn"}}, r"--lora.targets: no layer has this name \(got c_atn\).*attn.c_attn"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**80}, "--seed"),
        ({"device": "cuda:9"}, "--device: no such device here .*available: cpu"),
        ({"task": "nothing"}, "--task: unknown task"),
        ({"sample_prompts": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_settings_are_refused_before_anything_is_written(
    base: Path, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    """Bad inputs 5, 6, 15, 16, 19 and 26."""
    with pytest.raises(InputError, match=told):
        quick(records(8), base, tmp_path / "run", **({"max_steps": 1} | settings))
    assert not (tmp_path / "run").exists()


def test_output_folder_is_looked_at_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    """Bad inputs 20, 21 and 22."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("mine", encoding="utf-8")
    source = tmp_path / "source"
    write_jsonl(source / "train.jsonl", records(12))
    for data, out, told in (
        (records(8), full, "not empty and not a run"),
        (records(8), full / "letter.txt", "is a file"),
        (str(source), source, "inside the input"),
        (str(source), source / "run", "inside the input"),
    ):
        with pytest.raises(InputError, match=told):
            quick(data, base, out, max_steps=1)
    assert [p.name for p in full.iterdir()] == ["letter.txt"]
    assert [p.name for p in source.iterdir()] == ["train.jsonl"]


def test_a_template_file_in_another_encoding_is_named(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.template"
    file.write_bytes("Fråge: {prompt}\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 2"):
        quick(records(12), base, tmp_path / "run", template=str(file))


def test_a_split_that_leaves_train_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--rows\.split: leaves no record for train"):
        quick(records(12), base, tmp_path / "run", rows={"split": "validation:6,test:6"})


def test_nothing_is_too_long_for_a_text(base: Path, tmp_path: Path) -> None:
    """An option that would do nothing is refused."""
    file = tmp_path / "notes.txt"
    file.write_text("A line of the story of the lamp.\n" * 50, encoding="utf-8")
    with pytest.raises(InputError, match=r"--rows\.on_long: a text is cut into chunks"):
        quick(file, base, tmp_path / "run", template=None, rows={"on_long": "error"})
