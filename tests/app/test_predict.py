"""`finetwo predict` as a person meets it: words, pairs, tables in and out, and what goes wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.models import random_network, tiny_config

from finetwo.app.cli import main
from finetwo.generate.predict import open_predictor
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

LABELS = ("no", "may, be", "yes")
SHARES = [f"p({name})" for name in LABELS]
ADDED = ["prediction", "probability", *SHARES]
TEXTS = ["the lamp", "in the harbour\nat nine", 'who said "so, so"?', "Zoë 猫", "carriage\rreturn", "a\tb", "7"]


@pytest.fixture
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a classifier of texts, one of pairs, and a language model."""
    network = random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64))
    save_model(tmp_path / "language", network, tiny_tokenizer, Extras())
    network.add_classes(LABELS, seed=1)
    with torch.no_grad():
        assert network.score is not None
        network.score.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    save_model(tmp_path / "model", network, tiny_tokenizer, Extras(task="classify", temperature=1.5, max_length=40))
    save_model(tmp_path / "pairs", network, tiny_tokenizer, Extras(task="entail", max_length=40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """Run `finetwo predict`; return what it wrote and what it said."""
    capsys.readouterr()
    code = main(["predict", *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    code = main(["predict", *words])
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0].removeprefix("error: ")


def wanted(model: str, documents: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "prediction": p.label,
            "probability": round(p.probability, 6),
            **{f"p({n})": round(v, 6) for n, v in p.probabilities.items()},
        }
        for p in open_predictor(model).predict(documents)
    ]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path.name


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_in_codes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At load as from a folder of codes, near what the whole weights say, and the same alone and in company."""
    texts = ["the lamp", "who is there?", "a b c d e f"]
    assert main(["export", "model", "--quantize", "int8", "--out", "codes"]) == 0
    out, _ = ask(capsys, "codes", *texts, "--json")
    assert ask(capsys, "model", *texts, "--json", "--quantize", "int8")[0] == out
    assert "".join(ask(capsys, "codes", t, "--json")[0] for t in texts) == out
    whole = ask(capsys, "model", *texts, "--json")[0]
    for line, exact in zip(out.splitlines(), whole.splitlines(), strict=True):
        found, exact_found = json.loads(line), json.loads(exact)
        assert line != exact
        assert found[f"p({LABELS[0]})"] == pytest.approx(exact_found[f"p({LABELS[0]})"], abs=0.05)


# --- words ------------------------------------------------------------------------------------------------------------


def test_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = ask(capsys, "model", "the lamp", "two\nlines")
    first, second = out.splitlines()
    answer = wanted("model", [{"text": "the lamp"}])[0]
    assert first == f"{answer['prediction']:<16} {answer['probability']:6.1%}  the lamp"
    assert second.endswith("  two\\nlines")
    out, _ = ask(capsys, "model", "the lamp", "who?", "--json")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"text": t, **w}
        for t, w in zip(("the lamp", "who?"), wanted("model", [{"text": "the lamp"}, {"text": "who?"}]), strict=True)
    ]
    out, _ = ask(capsys, "model", "the lamp", "--abstain", "1")
    assert out.startswith("(abstains) ")


def test_pairs_by_twos(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = ask(capsys, "pairs", "the lamp", "who?", "in the", "harbour", "--json")
    documents = [{"first": "the lamp", "second": "who?"}, {"first": "in the", "second": "harbour"}]
    assert [json.loads(line) for line in out.splitlines()] == [
        {**d, **w} for d, w in zip(documents, wanted("pairs", documents), strict=True)
    ]
    assert " | " in ask(capsys, "pairs", "the lamp", "who?")[0]
    assert "this model reads pairs of texts (got 3 texts)" in refused(capsys, "pairs", "a", "b", "c")


# --- files in, files out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("source", ["csv", "tsv", "jsonl"])
def test_every_record_gets_a_prediction_beside_its_own_fields(
    here: Path, capsys: pytest.CaptureFixture[str], source: str, into: str
) -> None:
    texts = [t for t in TEXTS if source != "tsv" or not set("\r\n\t") & set(t)] * 9
    records = [{"id": str(i), "review": t, "stars": str(i % 5)} for i, t in enumerate(texts)]
    data = write(here / f"data.{source}", records)
    _, err = ask(capsys, "model", "--data", data, "--out", f"out.{into}", "--batch_size", "5")
    answers = wanted("model", [{"text": t} for t in texts])
    found = read(here / f"out.{into}")
    assert [list(r) for r in found] == [[*records[0], *ADDED]] * len(texts)
    for record, answer, row in zip(records, answers, found, strict=True):
        assert {name: row[name] for name in record} == record and row["prediction"] == answer["prediction"]
        for name in ADDED[1:]:
            assert float(row[name]) == pytest.approx(answer[name], abs=2e-6)
    assert "columns: text = 'review'" in err
    assert f"data.{source}: {len(texts)} predictions written to out.{into}" in err
    again = [r for r in here.iterdir() if r.name.startswith(".")]
    assert not again
    ask(capsys, "model", "--data", f"out.{into}", "--out", "again.jsonl")  # what it writes, it reads
    assert [r["review"] for r in read(here / "again.jsonl")] == texts


def test_to_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(here / "data.csv", [{"text": t} for t in TEXTS])
    out, _ = ask(capsys, "model", "--data", data)
    assert out.splitlines()[0] == 'text,prediction,probability,p(no),"p(may, be)",p(yes)'
    (here / "kept.csv").write_text(out, encoding="utf-8", newline="")
    assert [r["text"] for r in read(here / "kept.csv")] == TEXTS
    out, _ = ask(capsys, "model", "--data", data, "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == TEXTS


def test_labelled_data_and_pairs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The class that is there already stays where it is."""
    write(here / "single.jsonl", [{"text": "the lamp", "label": 2, "more": {"a": [1, None]}}])
    ask(capsys, "model", "--data", "single.jsonl", "--out", "single.csv")
    assert read(here / "single.csv")[0]["label"] == "2"
    assert read(here / "single.csv")[0]["more"] == '{"a": [1, null]}'
    pairs = [{"index": "0", "sentence1": "the lamp", "sentence2": "who?", "label": "-1"}]
    data = write(here / "rte.tsv", pairs)
    ask(capsys, "pairs", "--data", data, "--out", "rte.jsonl")
    answer = wanted("pairs", [{"first": "the lamp", "second": "who?"}])[0]
    assert read(here / "rte.jsonl") == [{**pairs[0], **answer}]


def test_mapped_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(here / "data.csv", [{"v1": "x", "v2": "the lamp", "v3": "y"}])
    line = refused(capsys, "model", "--data", data)
    assert "no column for text among the fields found: 'v1', 'v2', 'v3'" in line
    assert line.endswith("--rows.columns.text NAME")
    out, _ = ask(capsys, "model", "--data", data, "--rows.columns.text", "v2", "--json")
    assert json.loads(out)["prediction"] == wanted("model", [{"text": "the lamp"}])[0]["prediction"]
    _, err = ask(capsys, "pairs", "--data", data, "--rows.columns.label", "v1")
    assert "columns: first = 'v2', second = 'v3'" in err  # what is left beside the class


def test_empty_texts_keep_their_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "data.csv", [{"text": t, "n": str(i)} for i, t in enumerate(["a", "", "  ", "b"])])
    _, err = ask(capsys, "model", "--data", "data.csv", "--out", "out.csv")
    assert [(r["n"], bool(r["prediction"]), bool(r["p(no)"])) for r in read(here / "out.csv")] == [
        ("0", True, True),
        ("1", False, False),
        ("2", False, False),
        ("3", True, True),
    ]
    assert "4 predictions written to out.csv (2 empty)" in err
    line = refused(capsys, "model", "--data", "data.csv", "--rows.on_empty", "error")
    assert line.startswith("data.csv:3: record 2: empty text")


def test_abstained_and_cut_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "data.jsonl", [{"text": "the lamp " * n} for n in (1, 60)])
    _, err = ask(capsys, "model", "--data", "data.jsonl", "--abstain", "1", "--json")
    assert "2 predictions (2 abstained, 1 truncated)" in err
    out, err = ask(capsys, "model", "--data", "data.jsonl", "--max_length", "2", "--json")
    assert "2 truncated" in err or "1 truncated" in err
    assert [json.loads(line)["prediction"] for line in out.splitlines()] != [None, None]


def test_a_second_prediction_takes_the_place_of_the_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "data.jsonl", [{"text": "the lamp"}])
    ask(capsys, "model", "--data", "data.jsonl", "--out", "one.csv")
    _, err = ask(capsys, "model", "--data", "one.csv", "--out", "two.csv")
    assert (here / "one.csv").read_bytes() == (here / "two.csv").read_bytes()
    assert "one.csv: has p(may, be), p(no), p(yes), prediction, probability already" in err


def test_fields_that_a_table_has_no_column_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "data.jsonl", [{"text": "a"}, {"text": "b", "more": 1}])
    _, err = ask(capsys, "model", "--data", "data.jsonl", "--out", "out.csv")
    assert "(1 with fields that the table has no column for)" in err
    _, err = ask(capsys, "model", "--data", "data.jsonl", "--out", "out.jsonl")
    assert "no column" not in err and read(here / "out.jsonl")[1]["more"] == 1


def test_values_without_a_form_in_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A date and a NaN out of a Parquet file."""
    import datetime

    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"text": ["a", "b"], "day": [datetime.date(2020, 1, 1)] * 2, "n": [float("nan"), 2.0]}
    pq.write_table(pa.table(columns), here / "data.parquet")
    ask(capsys, "model", "--data", "data.parquet", "--out", "out.jsonl")
    assert [(r["day"], r["n"]) for r in read(here / "out.jsonl")] == [(None, None), (None, 2.0)]
    ask(capsys, "model", "--data", "data.parquet", "--out", "out.csv")
    assert [r["n"] for r in read(here / "out.csv")] == ["", "2.0"]


def test_a_classifier_of_transformers(
    here: Path, capsys: pytest.CaptureFixture[str], tiny_tokenizer: Tokenizer
) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    shape = {"vocab_size": 400, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 4}
    ends = {"eos_token_id": 399, "bos_token_id": 399, "pad_token_id": 399}
    names = {0: "ham", 1: "spam"}
    model = GPT2ForSequenceClassification(GPT2Config(**shape, **ends, id2label=names)).eval()
    model.save_pretrained(here / "theirs")
    tiny_tokenizer.save(here / "theirs")
    out, _ = ask(capsys, "theirs", "the lamp in the harbour", "--json")
    with torch.no_grad():
        ids = torch.tensor([tiny_tokenizer.encode("the lamp in the harbour")])
        shares = model(ids).logits.softmax(1)[0].tolist()
    found = json.loads(out)
    assert [found["p(ham)"], found["p(spam)"]] == pytest.approx(shares, abs=2e-6)
    assert found["prediction"] == names[int(shares[1] > shares[0])]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model given"),
        (["model"], "no text given"),
        (["model", ""], "the field 'text' is missing or empty"),
        (["model", "a", "--data", "d.jsonl"], "--data: texts are given as words too"),
        (["model", "--data", "nowhere.csv"], "nowhere.csv: no such file"),
        (["nowhere", "a"], "nowhere"),
        (["language", "a"], "language: is a language model, not a classifier"),
        (["model", "a", "--abstain", "1.5"], "--abstain: must be a probability from 0 to 1 (got 1.5)"),
        (["model", "a", "--abstain", "nan"], "--abstain"),
        (["model", "a", "--batch_size", "0"], "--batch_size: must be an integer >= 1"),
        (["model", "a", "--max_length", "0"], "--max_length: must be an integer >= 1"),
        (["pairs", "a", "b", "--max_length", "2"], "2 tokens have no room for the document"),
        (["model", "a", "--out", "out.txt"], "--out: must end in .csv, .tsv, .jsonl, .ndjson (got out.txt)"),
        (["model", "--data", "d.jsonl", "--out", "d.jsonl"], "--out: exists already (got d.jsonl)"),
        (["model", "a", "--out", "nowhere/out.csv"], "--out: its folder is not there"),
        (["model", "a", "--out", "out.csv", "--json"], "--json: the file to write is a table"),
        (["model", "--data", "d.jsonl", "--rows.split", "train:1.0"], "--rows.split: is for training"),
        (["model", "--data", "d.jsonl", "--rows.labels", "a,b"], "--rows.labels: is for training"),
        (["model", "--data", "d.jsonl", "--rows.on_long", "skip"], "--rows.on_long: is for training"),
        (["model", "--data", "d.jsonl", "--rows.on_overlap", "error"], "--rows.on_overlap: is for training"),
        (["model", "--data", "d.jsonl", "--rows.columns.text", "x"], "names a field that the records lack (got x)"),
        (
            ["model", "--data", "d.jsonl", "--rows.columns.first", "text"],
            "plays no part in data for texts with a class",
        ),
        (
            ["model", "--data", "numbers.jsonl"],
            "numbers.jsonl:2: record 2: the field 'text' (text) must be text (got a",
        ),
        (["model", "--data", "empty.jsonl"], "empty.jsonl: 0 records"),
        (["model", "a", "--base", "language"], "--base: model is a whole model"),
        (["model", "a", "--lable", "x"], "--lable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    write(here / "d.jsonl", [{"text": "a"}])
    write(here / "numbers.jsonl", [{"text": "a"}, {"text": 5}])
    (here / "empty.jsonl").write_text("")
    before = sorted(p.name for p in here.iterdir())
    assert said in refused(capsys, *words)
    assert sorted(p.name for p in here.iterdir()) == before


def test_no_file_appears_where_a_record_is_bad(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": "a"}] * 3000 + [{"text": None}]
    write(here / "d.jsonl", lines)
    assert "d.jsonl:3001" in refused(capsys, "model", "--data", "d.jsonl", "--out", "out.csv")
    assert sorted(p.name for p in here.iterdir()) == ["d.jsonl", "language", "model", "pairs"]


PEAK = """
import resource, sys
from finetwo.app.cli import main
assert main(["predict", "model", "--data", sys.argv[1], "--out", sys.argv[2]]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_stays_flat_over_very_many_records(here: Path) -> None:
    peaks = []
    for count in (5_000, 100_000):
        with (here / f"{count}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f'{{"text": "the lamp {i} in the harbour"}}\n' for i in range(count))
        words = [sys.executable, "-c", PEAK, f"{count}.jsonl", f"{count}.csv"]
        done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        with (here / f"{count}.csv").open(encoding="utf-8") as file:
            assert sum(1 for _ in file) == count + 1
    assert peaks[1] - peaks[0] < 60, peaks
