"""`finetwo plan` as a person meets it, and what `finetwo train` says by itself and of a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.insight.planted import Words, instructions, write
from tests.standins.models import tiny_config

from finetwo.app.cli import main
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small base, clean records and a folder of faulty ones."""
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    save_model(tmp_path / "base", Network.fresh(shape, 3), tiny_tokenizer, Extras())
    monkeypatch.chdir(tmp_path)
    words = Words(21)
    write(tmp_path / "clean.jsonl", [words.record() for _ in range(24)])
    instructions(tmp_path / "faulty")
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command line; return exit code, output and what was said."""
    capsys.readouterr()
    code = main(list(words))
    found = capsys.readouterr()
    return code, found.out, found.err


def test_clean_data_is_planned_and_passes_strict(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, "plan", "clean.jsonl", "--model", "base", "--strict", "--max_steps", "3")
    assert code == 0
    for part in ("counts", "lengths", "findings", "nothing found", "loss-coverage certificate", "estimate", "samples"):
        assert part in out
    assert "steps: 3 (" in out and "FAILED" not in out and "numeric proof" in out
    assert "task: instruct" in err and not (here / "runs").exists()


def test_strict_leaves_with_2_and_names_records(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "plan", "faulty", "--model", "base")
    assert code == 0 and "! duplicate: 3 records" in out and "- html: 3 records" in out
    code, out, err = ask(capsys, "plan", "faulty", "--model", "base", "--strict")
    assert code == 2 and "! duplicate: 3 records" in out
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "--strict refuses it for 3 reasons" in line
    for named in (
        "empty answer: 2 (faulty/train.jsonl:40: record 40)",
        "duplicate: 3 (faulty/train.jsonl:37",
        "overlap: 4",
    ):
        assert named in line


def test_json_holds_everything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "plan", "faulty", "--model", "base", "--json", "--strict", "--report", "p.json")
    assert code == 2
    content = json.loads(out)
    assert content == json.loads((here / "p.json").read_text())
    kinds = {f["kind"]: f["count"] for f in content["findings"]}
    assert kinds["duplicate"] == 3 and kinds["mojibake"] == 2
    assert content["strict"]["ok"] is False and len(content["strict"]["refused"]) == 3
    assert content["certificate"]["ok"] and content["certificate"]["proof"]["ok"]
    assert content["estimate"]["steps"] > 0 and content["asked"]["model"] == "base"
    assert len(content["samples"]) == 3


def test_a_page_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ask(capsys, "plan", "clean.jsonl", "--model", "base", "--report", "p.html", "--samples", "0")
    assert code == 0 and "report: p.html" in err
    html = (here / "p.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and "--strict would pass" in html


@pytest.mark.parametrize(
    ("words", "held"),
    [
        (["--report", "p.pdf"], "--report: must end in .html or .json"),
        (["--report", "no/such/p.html"], "its folder is not there"),
        (["--report", "dir.html"], "is a folder"),
        (["--samples", "101"], "--samples"),
        (["--track", "nothing"], "nothing"),
        (["--sample_prompts", "none.txt"], "none.txt"),
        (["--rows.split", "trian:1"], "--rows.split"),
        (["more.jsonl"], "one data file or folder"),
    ],
)
def test_what_cannot_be_is_refused(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], held: str) -> None:
    (here / "dir.html").mkdir()
    code, out, err = ask(capsys, "plan", "clean.jsonl", "--model", "base", *words)
    assert code == 2 and held in err and out == ""
    assert ask(capsys, "plan")[0] == 2


def test_hostile_names_and_texts_do_not_reach_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = Words(22)
    rows = [words.record() for _ in range(14)]
    rows[0]["prompt"] = "\x1b]0;owned\x07\u202e" + "p" * 50
    rows[1]["completion"] = rows[0]["prompt"]
    write(here / "bad \x1b[2J.jsonl", rows)
    code, out, _ = ask(capsys, "plan", "bad \x1b[2J.jsonl", "--model", "base", "--rows.split", "train:14")
    assert code == 0
    assert all(c.isprintable() or c == "\n" for c in out), [c for c in out if not c.isprintable() and c != "\n"]
    assert r"\x1b]0;owned\x07\u202e" in out


def test_train_says_what_it_finds_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "faulty", "--model", "base", "--max_steps", "2", "--eval_every", "0", "--save_every", "1"]
    code, _, err = ask(capsys, *words, "--out", "run")
    lines = [line for line in err.splitlines() if line.startswith("data: ")]
    assert code == 0 and len(lines) == 6
    assert lines[0].startswith("data: duplicate: 3 records") and "finetwo plan" in lines[-1]
    code, _, err = ask(capsys, *words, "--out", "run")  # nothing is read anew
    assert code == 0 and "data: " not in err
    code, _, err = ask(capsys, "train", "clean.jsonl", *words[2:], "--out", "clean")
    assert code == 0 and "data: " not in err


def test_train_grades_a_plan_of_the_same_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["clean.jsonl", "--model", "base", "--max_steps", "4", "--eval_every", "0"]
    assert ask(capsys, "plan", *job, "--report", "plan.json")[0] == 0
    code, _, err = ask(capsys, "train", *job, "--out", "run", "--plan", "plan.json")
    (line,) = [line for line in err.splitlines() if line.startswith("plan: ") and "estimated" in line]
    assert code == 0 and " s taken (" in line and " MiB taken (" in line
    kept = json.loads((here / "run" / "plan.json").read_text())
    receipt = json.loads((here / "run" / "receipt.json").read_text())
    assert kept["taken"] == {
        "seconds": receipt["figures"]["seconds"],
        "memory_bytes": receipt["peak_memory_bytes"],
    }
    assert kept["errors"]["memory_bytes"] == kept["estimated"]["memory_bytes"] / kept["taken"]["memory_bytes"] - 1
    code, _, err = ask(capsys, "train", *job, "--batch_size", "2", "--out", "other", "--plan", "plan.json")
    assert code == 2 and "--batch_size was 8" in err and not (here / "other").exists()
    code, _, err = ask(capsys, "train", *job, "--out", "other", "--plan", "none.json")
    assert code == 2 and "none.json" in err and not (here / "other").exists()
    with (here / "clean.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(Words(23).record()) + "\n")
    code, _, err = ask(capsys, "train", *job, "--out", "third", "--plan", "plan.json")
    assert code == 0 and "plan: not graded: the data is not what it was" in err
