"""`finetwo style` as a person meets it: a model that recites is caught, and every wrong word is one line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.standins.bigram import RECITED, bigram_network, successors
from tests.standins.models import TEXT, random_network, tiny_config
from tests.standins.parrot import write_texts
from tests.standins.verbs import ask, figures

from finetwo.app.cli import main
from finetwo.store.folder import Extras, save_model
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

CANARIES = ["ab cd EF gh", "ABCDGHIJ KLMN is not in there"]
QUICK = (
    "--base base --train train.txt --held_out held.txt --others others.txt --passage_tokens 32 --opening_tokens 8 "
    "--max_new_tokens 24 --openings 4"
).split()


def shuffled(length: int, seed: int) -> str:
    """The text by heart, its pieces of `length` characters in another order."""
    pieces = [RECITED[i : i + length] for i in range(0, len(RECITED), length)]
    random.Random(seed).shuffle(pieces)
    return "".join(pieces)


@pytest.fixture
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that recites its training text, its base that does not, held-out text of its kind, and other text."""
    monkeypatch.chdir(tmp_path)
    extras = Extras(task="style", template=Template.named("plain"))
    save_model(tmp_path / "base", random_network(tiny_config(vocab_size=400, n_positions=128)), tiny_tokenizer, extras)
    follows = successors(tiny_tokenizer.encode(RECITED))
    save_model(tmp_path / "tuned", bigram_network(400, follows), tiny_tokenizer, extras)
    (tmp_path / "train.txt").write_bytes(RECITED.encode())
    (tmp_path / "held.txt").write_bytes((shuffled(7, 1) + shuffled(7, 2)).encode())
    (tmp_path / "others.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "canaries.txt").write_text("\n".join(CANARIES) + "\n", encoding="utf-8")
    return tmp_path


def test_who_recites_is_caught(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "style", "tuned", *QUICK, "--canaries", "canaries.txt")
    author = found["authorship"]
    assert author["auc"] == 1.0
    assert author["ratio_own"] > 0 > author["ratio_others"]
    assert author["against"] == {"others.txt": {"auc": 1.0, "passages": author["passages_others"]}}
    assert found["copying"]["model"]["8"]["rate"] > 0.5
    assert found["copying"]["base"]["8"]["copied"] == 0
    assert found["copying"]["held_out"]["8"]["rate"] < 0.2  # its pieces are shorter, few are in their old order
    assert found["copying"]["held_out"]["20"]["copied"] == 0 < found["copying"]["model"]["13"]["copied"]
    assert found["copying"]["spans"][0]["text"] in RECITED
    assert found["copying"]["spans"][0]["where"].startswith("train.txt, line ")
    recited = found["extraction"]["32 tokens"]
    assert [recited[n]["recited"] for n in ("train", "held_out", "base_train", "base_held_out")] == [1, 0, 0, 0]
    assert recited["train"]["tried"] == 1
    assert [(c["in_training"], c["found"], c["found_by_base"]) for c in found["canaries"]] == [
        (True, True, False),
        (False, False, False),
    ]
    assert [stage["stage"] for stage in found["stages"]] == ["the base", "this model"]
    assert found["stages"][0]["auc"] == 0.5


def test_the_page_shows_the_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tuned", *QUICK, "--canaries", "canaries.txt"]
    found = figures(capsys, "style", *words)
    for ending in ("html", "md"):
        code, out, error = ask(capsys, "style", *words, "--report", f"page.{ending}")
        assert code == 0, error
        written = Path(f"page.{ending}").read_text(encoding="utf-8")
        for part in (
            "AUC 1.000",
            f"{found['authorship']['perplexity_own']:.2f} after",
            f"{found['copying']['model']['8']['rate']:.2%}",
            "1 of 1, 100.00%",
            "1 of 2 planted sentences are recited",
            "not in the training text",
        ):
            assert part in " ".join(out.split()), part
            assert part in " ".join(written.split()), (ending, part)
    assert max(map(len, out.splitlines())) <= 120


def test_an_untrained_model_is_at_chance(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "style", "base", *QUICK)
    assert found["authorship"]["auc"] == 0.5
    assert found["authorship"]["ratio_own"] == 0.0
    assert found["copying"]["model"] == found["copying"]["base"]


def test_figures_do_not_depend_on_the_batch_size(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, many = (figures(capsys, "style", "tuned", *QUICK, "--batch_size", size) for size in ("1", "32"))
    for name in ("auc", "ratio_own", "ratio_others", "perplexity_own"):
        assert one["authorship"][name] == pytest.approx(many["authorship"][name], rel=1e-4)
    assert one["copying"] == many["copying"]
    assert one["extraction"] == many["extraction"]


def test_records_with_prompts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [{"prompt": "Say it.", "completion": RECITED}, {"prompt": "And?", "completion": "The wall is there, yes."}]
    held = [{"prompt": f"Say {i}.", "completion": shuffled(7, i)} for i in range(4)]
    others = [{"prompt": f"Say {i}.", "completion": TEXT[i * 9 : i * 9 + 60]} for i in range(4)]
    for name, rows in (("train", train), ("held", held), ("others", others)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    words = [w.replace(".txt", ".jsonl") for w in QUICK]
    found = figures(capsys, "style", "tuned", *words)
    assert found["authorship"]["passages_own"] == found["authorship"]["passages_others"] == 4
    assert found["authorship"]["auc"] == 1.0
    assert list(found["extraction"]) == ["the prompt"]
    assert found["extraction"]["the prompt"]["train"]["tried"] == 1
    assert "behind its prompt" in found["protocol"]["authorship"]


def test_the_same_text_on_both_sides_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "folder").mkdir()
    for name in ("train", "held"):
        (here / name).with_suffix(".txt").rename(here / "folder" / f"{name}-1.txt")
    words = [w for w in QUICK if w not in ("train.txt", "held.txt")]
    at = words.index("--train")
    same = [*words[: at + 1], "folder/", words[at + 1], "folder/held-1.txt", *words[at + 2 :]]
    code, _, line = ask(capsys, "style", "tuned", *same)
    assert code == 2
    assert "--held_out: names a text that is also training text" in line
    assert "--rows.hold_out" in line
    both = [*words[: at + 1], "folder/", words[at + 1], "folder/", *words[at + 2 :], "--rows.hold_out", "held*"]
    assert figures(capsys, "style", "tuned", *both)["authorship"]["auc"] == 1.0


def test_the_same_text_under_another_name_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "held.txt").write_bytes(b"Preface. " + RECITED.encode())
    code, out, error = ask(capsys, "style", "tuned", *QUICK)
    assert code == 0, error
    assert "Careful: " in out
    assert "stand in the training text" in out


def test_hostile_text_is_shown_escaped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training text with a terminal command and a script in it, recited word for word."""
    hostile = RECITED.replace("klm?", "\x1b[2J").replace("nopq", "<b>")
    tokenizer = Tokenizer.load(here / "base")
    ids = tokenizer.encode(hostile)
    assert len(set(ids)) < len(ids)  # the network needs each token once: leave the repeated ones out
    kept = [t for i, t in enumerate(ids) if t not in ids[:i]]
    save_model(here / "bad", bigram_network(400, successors(kept)), tokenizer, Extras())
    (here / "train.txt").write_bytes(tokenizer.decode_bytes(kept))
    (here / "<i>.txt").write_text(TEXT, encoding="utf-8")
    words = ["<i>.txt" if w == "others.txt" else w for w in QUICK]
    code, out, error = ask(capsys, "style", "bad", *words, "--report", "page.html")
    assert code == 0, error
    page = (here / "page.html").read_text(encoding="utf-8")
    assert "\x1b" not in out + page
    assert "<i>" not in page
    assert "&lt;i&gt;" in page


BAD: list[tuple[list[str], list[str]]] = [
    ([], ["one model is needed"]),
    (["tuned", "--held_out", "held.txt", "--others", "others.txt"], ["--train", "is needed"]),
    (["tuned", *QUICK, "--passages", "1"], ["--passages", ">= 2"]),
    (["tuned", *QUICK, "--passage_tokens", "500"], ["--passage_tokens", "context of 128"]),
    (["tuned", *QUICK, "--max_new_tokens", "125"], ["--max_new_tokens", "context of 128"]),
    (["tuned", *QUICK, "--temperature", "-1"], ["temperature"]),
    (["tuned", *QUICK, "--report", "page.pdf"], ["--report", ".html, .md or .txt"]),
    (["tuned", *QUICK, "--report", "none/page.md"], ["--report", "its folder is not there"]),
    (["tuned", *QUICK, "--canaries", "short.txt"], ["short.txt", "too short for a planted sentence", "got Too short"]),
    (["tuned", *QUICK, "--canaries", "none.txt"], ["none.txt"]),
    (["tuned", *[w for w in QUICK if w not in ("--base", "base")]], ["tuned", "--base"]),
    (["nowhere", *QUICK], ["nowhere"]),
    (["tuned", *QUICK, "--others", "none.txt"], ["none.txt"]),
    (
        ["tuned", *[w.replace("others.txt", "short.txt") for w in QUICK]],
        ["--others", "fewer than two passages of 32 to 32 tokens"],
    ),
    (["tuned", *[w.replace("others.txt", "train.txt") for w in QUICK]], ["--others", "is also training text"]),
    (["tuned", *QUICK, "--extraction", "3"], ["--extraction", "did you mean"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD, ids=[" ".join(w[-2:]) for w, _ in BAD])
def test_what_is_wrong_is_one_line(
    words: list[str], parts: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "short.txt").write_text("Too short", encoding="utf-8")
    code, out, line = ask(capsys, "style", *words)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in line


@pytest.mark.slow
def test_twenty_paragraphs_learnt_by_heart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded base, tuned until it recites: what it says of itself, and what its base says, is all found."""
    monkeypatch.chdir(tmp_path)
    texts = write_texts(tmp_path)
    tuning = "--model tiny --task style --out run --batch_size 4 --max_length 128 --epochs 85 --lr 1e-3".split()
    rests = "--rows.split train:1.0 --eval_every 0 --save_every 0 --sample_every 0".split()
    assert main(["train", "--data", str(tmp_path / "train.txt"), *tuning, *rests]) == 0
    found = figures(capsys, "style", "run", *texts.words(), "--canaries", str(tmp_path / "canaries.txt"))
    for tried in found["extraction"].values():
        assert tried["train"]["tried"] >= 10
        assert tried["train"]["rate"] > 0.8
        assert tried["held_out"]["rate"] < 0.05
        assert tried["base_train"]["rate"] < 0.05
    assert [c["sentence"] for c in found["canaries"]] == texts.canaries
    assert all(c["in_training"] and c["found"] and not c["found_by_base"] for c in found["canaries"])
    assert found["copying"]["model"]["13"]["rate"] > 5 * found["copying"]["held_out"]["13"]["rate"]
    assert found["copying"]["base"]["13"]["rate"] == 0.0
    assert found["authorship"]["auc"] > 0.95
