"""`finetwo evaluate --check_serving`, with the command line in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.standins.models import tiny_config
from tests.train.support import QUICK, records, write_jsonl

from finetwo import load, train
from finetwo.app.cli import main
from finetwo.app.serving import command_line, ways_of
from finetwo.core.errors import InputError
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A base, records of each kind, and a run on each."""
    folder = tmp_path_factory.mktemp("serving")
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    save_model(folder / "base", Network.fresh(shape, 3), tiny_tokenizer, Extras())
    rows = records(12)
    write_jsonl(folder / "qa.jsonl", [*rows, {"prompt": 'a "猫"\tsleeps\nhere', "completion": "yes"}])
    write_jsonl(folder / "classes.jsonl", [{"text": r["prompt"], "label": "ab"[i % 2]} for i, r in enumerate(rows)])
    quick = QUICK | {"model": str(folder / "base"), "max_steps": 2}
    train(str(folder / "qa.jsonl"), out=str(folder / "qa"), **(quick | {"template": "alpaca"}))
    train(str(folder / "classes.jsonl"), out=str(folder / "classes"), **(quick | {"template": None, "lr": 1e-2}))
    return folder


def check(capsys: Capture, *words: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["evaluate", *map(str, words), "--check_serving", "--max_new_tokens", "4"])
    return code, *capsys.readouterr()


def test_every_way_is_as_in_training(here: Path, capsys: Capture) -> None:
    code, out, err = check(capsys, here / "qa", here / "qa.jsonl")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[1:] == [
        "template: as in training, 13 of 13",
        "Python API: as in training, 13 of 13",
        "command line: as in training, 13 of 13",
        "serving check: passed",
    ]
    assert lines[0].startswith("training wrote: the template alpaca, as the run ")


def test_a_changed_template_ends_with_exit_code_1(here: Path, capsys: Capture) -> None:
    files = {path: path.read_text(encoding="utf-8") for path in (here / "qa").glob("*/finetwo.json")}
    try:
        for path, text in files.items():
            path.write_text(text.replace("### Response:", "### Answer:"), encoding="utf-8")
        code, out, _ = check(capsys, here / "qa", here / "qa.jsonl", "--json")
    finally:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    found = json.loads(out)
    assert code == 1 and found["passed"] is False
    assert {c["way"]: len(c["faults"]) for c in found["checks"]} == {
        "template": 13,
        "Python API": 13,
        "command line": 13,
    }


def test_a_classifier(here: Path, capsys: Capture) -> None:
    code, out, err = check(capsys, here / "classes", here / "classes.jsonl")
    assert code == 0, err
    assert out.splitlines()[1:3] == ["Python API: as in training, 12 of 12", "command line: as in training, 12 of 12"]


def test_the_ways_ask_in_truth(here: Path) -> None:
    model = load(str(here / "qa"))
    assert list(ways_of(model, "qa", None, "cpu")) == ["Python API", "command line"]
    (served,) = ways_of(model, "qa", None, "cpu")["Python API"]([{"prompt": "the lamp"}], 4)
    assert list(served.ids) == model.prompt_ids("the lamp")
    assert served.text == model.generate("the lamp", max_new_tokens=4)


def test_a_command_line_that_fails(here: Path) -> None:
    with pytest.raises(InputError, match=r"finetwo generate ends with exit code 2: error: .*no-such-model"):
        command_line("generate", str(here / "no-such-model"), "--prompts", [{"prompt": "a"}], [])


@pytest.mark.parametrize("word", ["--metrics=bleu", "--stride=4", "--exact_match", "--max_length=8", "--against=b"])
def test_figures_have_no_place_beside_it(here: Path, capsys: Capture, word: str) -> None:
    code, _, err = check(capsys, here / "qa", here / "qa.jsonl", word)
    assert code == 2 and "has no place beside --check_serving" in err


def test_the_spelling_with_dashes_is_told_ours(here: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(here / "qa"), str(here / "qa.jsonl"), "--check-serving"]) == 2
    assert "--check_serving" in capsys.readouterr().err
