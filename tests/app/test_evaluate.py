"""`finetwo evaluate` as a person meets it: figures with their protocols, files, a judge, and one line an error."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.standins.chat import chatting
from tests.standins.models import TEXT, random_network, tiny_config
from tests.standins.verbs import ask, figures

from finetwo.app.evaluate import shown
from finetwo.insight import endpoint
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

ALL = "exact_match,bleu,rouge_l,distinct,stop_rate,repetition"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model, records and a text."""
    network = random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=128))
    save_model(tmp_path / "model", network, tiny_tokenizer, Extras())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    rows = [{"prompt": f"Say {i}.", "completion": f"I say the number {i}."} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    return tmp_path


def test_all_metrics_in_json_and_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "data.jsonl", "--metrics", ALL, "--max_new_tokens", "8"]
    found = figures(capsys, "evaluate", *words)
    names = ["loss", "bits_per_byte", "perplexity", "exact_match", "stop_rate", "bleu", "rouge_l", "repetition_4"]
    assert found.keys() >= {*names, "distinct_1", "distinct_2", "distinct_3", "protocol"}
    assert found["intervals"].keys() == {"exact_match", "stop_rate", "bleu", "rouge_l", "repetition_4"}
    code, out, _ = ask(capsys, "evaluate", *words)
    assert code == 0
    for name, value in found.items():
        if name in found["protocols"] and isinstance(value, float):
            assert re.search(rf"^{name} +{value:,.4f}", out, re.MULTILINE), name
    low, high = found["intervals"]["rouge_l"]
    assert f"[{low:,.4f}, {high:,.4f}]" in out
    for protocol in found["protocols"].values():
        assert protocol in " ".join(out.split())


_PEAK = """
import sys
from finetwo.app.cli import main
assert main(sys.argv[1:]) == 0
status = open("/proc/self/status", encoding="utf-8").read()
print("PEAK", status.partition("VmHWM:")[2].split()[0])
"""


def peak(*words: str) -> int:
    """The most memory that a verb took, in KiB, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _PEAK, *words], capture_output=True, text=True, check=True)
    return int(done.stdout.rpartition("PEAK ")[2])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much memory a process took")
def test_evaluation_takes_no_more_memory_than_training(here: Path) -> None:
    """An adapter trains in the least memory; every token is scored, and all metrics come along."""
    rows = [{"prompt": TEXT[i : i + 500], "completion": TEXT[-i - 200 :]} for i in range(40)]
    (here / "long.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    trained = peak("train", "long.jsonl", "--model", "tiny", "--lora.rank", "4", "--max_steps", "6", "--out", "run")
    assert peak("evaluate", "run", "long.jsonl", "--metrics", ALL, "--max_new_tokens", "32") <= trained


def test_a_figure_and_its_protocol_are_shown_together() -> None:
    out = shown(
        {
            "a": 1.5,
            "b": 3,
            "c": None,
            "protocol": "x",
            "protocols": {"a": "first", "b": "first", "c": "second"},
            "intervals": {"a": [1.0, 2.0]},
        }
    )
    assert out.splitlines() == [
        "a                      1.5000  [1.0000, 2.0000]",
        "b                           3",
        "    first",
        "c                        none",
        "    second",
    ]


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (["--exact_match"], {"exact_match", "stop_rate"}),
        (["--metrics", "rouge_l"], {"rouge_l"}),
        (["--exact_match", "--metrics", "distinct,exact_match"], {"exact_match", "stop_rate", "distinct_1"}),
        (["--predictions", "p.jsonl"], {"stop_rate"}),
        ([], set()),
    ],
)
def test_what_is_asked_for_is_taken(
    words: list[str], there: set[str], capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    found = figures(capsys, "evaluate", "model", "data.jsonl", "--max_new_tokens", "2", *words)
    every = {"exact_match", "stop_rate", "rouge_l", "distinct_1", "bleu", "repetition_4", "judge"}
    assert found.keys() & every == there
    assert (here / "p.jsonl").is_file() == ("--predictions" in words)


def test_figures_do_not_depend_on_the_batch_size(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "data.jsonl", "--metrics", ALL, "--max_new_tokens", "6"]
    one, many = (figures(capsys, "evaluate", *words, "--batch_size", size) for size in ("1", "32"))
    assert one.pop("intervals") == many.pop("intervals")
    assert one.pop("protocols") == many.pop("protocols")
    assert one.pop("protocol") == many.pop("protocol")
    assert one == pytest.approx(many, abs=1e-6)


def test_a_text_by_a_sliding_window(capsys: pytest.CaptureFixture[str]) -> None:
    chunks = figures(capsys, "evaluate", "model", "text.txt")
    wide, narrow = (figures(capsys, "evaluate", "model", "text.txt", "--stride", stride) for stride in ("128", "16"))
    assert narrow["tokens"] == chunks["tokens"] - 2  # neither the first token nor the end of the text
    assert wide["tokens"] < narrow["tokens"]
    assert narrow["windows"] == -(-(narrow["tokens"] + 1 - 128) // 16) + 1
    assert "window 128, stride 16" in narrow["protocols"]["word_perplexity"]
    assert figures(capsys, "evaluate", "model", "text.txt", "--stride", "16", "--wikitext")["tokens"] > narrow["tokens"]


def test_a_judge_from_the_command_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    with chatting(None, 503, reply=lambda text: "no" if "Say 3." in text else "80") as chat:
        words = ["--judge", chat.url, "--judge_model", "grader", "--judge_parallel", "2", "--predictions", "p.jsonl"]
        code, out, error = ask(capsys, "evaluate", "model", "data.jsonl", "--max_new_tokens", "2", *words)
    assert code == 0, error
    assert re.search(r"^judge +80\.0000  \[80\.0000, 80\.0000\]$", out, re.MULTILINE)
    assert re.search(r"^judge_unparsed +1$", out, re.MULTILINE)
    assert f"by grader at {chat.url}/chat/completions" in " ".join(out.split())
    assert chat.most <= 2
    scores = [json.loads(line)["judge"] for line in (here / "p.jsonl").read_text().splitlines()]
    assert scores == [80, 80, 80, None, *[80] * 8]


def test_nothing_is_sent_unless_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-never")
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    figures(
        capsys, "evaluate", "model", "data.jsonl", "--metrics", ALL, "--predictions", "p.jsonl", "--max_new_tokens", "2"
    )


def test_a_judge_in_trouble_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    before = sorted(p.name for p in here.iterdir())
    for fault, code, part in (
        (401, 2, "set OPENAI_API_KEY"),
        ("html", 2, "no chat completion"),
        ("hang", 3, "no answer within 0.2 seconds"),
        ("drop", 3, "the connection broke"),
    ):
        with chatting(fault) as chat:
            asked = ["--judge", chat.url, "--judge_model", "m", "--judge_timeout", "0.2", "--predictions", "p.jsonl"]
            got, out, line = ask(capsys, "evaluate", "model", "data.jsonl", *asked)
        assert (got, out) == (code, ""), line
        assert part in line
        assert "Fix: " in line
        assert "sk-secret" not in line
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, _, line = ask(capsys, "evaluate", "model", "data.jsonl", "--judge", url, "--judge_model", "m")
    assert code == 3
    assert "Connection refused" in line
    assert sorted(p.name for p in here.iterdir()) == before


BAD = [
    (["--metrics", "blue"], ["--metrics", "no such metric", "got blue", "did you mean bleu"]),
    (["--metrics", "accuracy"], ["--metrics", "got accuracy", "exact_match, stop_rate, bleu"]),
    (["--stride", "0"], ["--stride", ">= 1"]),
    (["--stride", "x"], ["--stride", "an integer", "got x"]),
    (["--stride", "16"], ["--stride", "is for plain text", "data.jsonl"]),
    (["--wikitext"], ["--wikitext", "--stride"]),
    (["--predictions", "data.jsonl"], ["--predictions", "exists already", "data.jsonl"]),
    (["--predictions", "no/p.jsonl"], ["--predictions", "its folder is not there"]),
    (["--temperature", "-1", "--exact_match"], ["--temperature", ">= 0"]),
    (["--temperature", "0.7"], ["--temperature", "none are asked for", "--metrics"]),
    (["--top_p", "0", "--exact_match"], ["--top_p"]),
    (["--judge", "http://localhost:1/v1"], ["--judge", "--judge_model NAME"]),
    (["--judge_model", "m"], ["--judge_model", "add --judge URL"]),
    (["--judge", "localhost:1", "--judge_model", "m"], ["--judge", "http or https URL", "got localhost:1"]),
    (["--judge", "http://a:b@h/v1", "--judge_model", "m"], ["--judge", "OPENAI_API_KEY"]),
    (["--judge_timeout", "0"], ["--judge_timeout", "> 0"]),
    (["--judge_timeout", "nan"], ["--judge_timeout", "got nan"]),
    (["--judge_parallel", "0"], ["--judge_parallel", ">= 1"]),
    (["--max_tokens", "5"], ["--max_tokens", "--max_new_tokens"]),
    (["--max_new_tokens", "0"], ["--max_new_tokens", ">= 1"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD, ids=[" ".join(w)[:40] for w, _ in BAD])
def test_bad_option(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], here: Path) -> None:
    before = {p.name: p.stat().st_size for p in here.iterdir()}
    code, out, line = ask(capsys, "evaluate", "model", "data.jsonl", *words)
    assert (code, out) == (2, "")
    assert "Fix: " in line
    for part in parts:
        assert part in line
    assert {p.name: p.stat().st_size for p in here.iterdir()} == before


def test_answers_of_plain_text_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--exact_match"], ["--metrics", "bleu"], ["--predictions", "p.jsonl"]):
        code, _, line = ask(capsys, "evaluate", "model", "text.txt", *words)
        assert code == 2
        assert "plain text has no prompts to answer" in line


def test_the_checks_need_no_torch() -> None:
    """A misspelled metric is answered at once."""
    program = (
        "import sys; from finetwo.app.cli import main; code = main(['evaluate', 'm', 'd', '--metrics', 'blue', "
        "'--judge', 'http://h', '--judge_model', 'm']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.split() == ["2", "False"], done.stderr


def test_the_book_set_with_the_embedded_base(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(shared_data / "instruct" / "instruction-data.json")
    found = figures(capsys, "evaluate", "tiny", data, "--rows.limit", "6", "--metrics", ALL, "--max_new_tokens", "8")
    assert found["records"] == 6
    assert found["stop_rate"] == 0.0  # the base has never been told to stop
    assert 0 <= found["rouge_l"] < 0.5
