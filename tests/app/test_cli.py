"""The command line as a person meets it: one line an error, the right exit code, nothing written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.standins.models import random_network, tiny_config

from finetwo.app.cli import VERBS, main
from finetwo.core.errors import InputError
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model and twenty records."""
    network = random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=256))
    save_model(tmp_path / "tiny-model", network, tiny_tokenizer, Extras())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"instruction": f"Say {i}.", "output": f"I say {i}."} for i in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command line; return exit code and the error line."""
    capsys.readouterr()
    code = main(list(words))
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code != 1, err
    assert len(lines) == (1 if code else 0), lines
    return code, lines[0] if lines else ""


BAD = [
    # words, what the line must hold
    (["--lerning-rate", "3"], ["--lerning-rate", "did you mean --lr"]),
    (["--learning_rate", "3"], ["here it is called --lr"]),
    (["--per_device_train_batch_size", "3"], ["here it is called --batch_size"]),
    (["--num_train_epochs", "3"], ["here it is called --epochs"]),
    (["--lora_r", "3"], ["here it is called --lora.rank"]),
    (["--gradient_accumulation_steps", "3"], ["here it is called --grad_accum"]),
    (["--output_dir", "x"], ["here it is called --out"]),
    (["--batch-size", "3"], ["did you mean --batch_size"]),
    (["--lr", "abc"], ["--lr", "a number", "got abc"]),
    (["--lr", "-1"], ["--lr", "got -1"]),
    (["--lr", "nan"], ["--lr", "got nan"]),
    (["--lr", "inf"], ["--lr", "got inf"]),
    (["--lr", "1e9"], ["--lr", "<= 10"]),
    (["--lr"], ["--lr", "needs a value"]),
    (["--batch_size", "0"], ["--batch_size", ">= 1", "got 0"]),
    (["--batch_size", "2.5"], ["--batch_size", "an integer", "got 2.5"]),
    (["--batch_size", "1000000000000"], ["--batch_size", "at most 1,000,000"]),
    (["--max_length", "2048"], ["--max_length", "context", "got 2048"]),
    (["--max_length", "1"], ["--max_length", ">= 2"]),
    (["--config", "nope.yaml"], ["nope.yaml", "no such file"]),
    (["--config", "."], ["not a regular file"]),
    (["--lora.rank", "0"], ["--lora.rank", "1 to 1024"]),
    (["--lora.rank", "100000"], ["--lora.rank", "1 to 1024"]),
    (["--lora.alpha", "0"], ["--lora.alpha", "got 0"]),
    (["--lora.dropout", "1.5"], ["--lora.dropout", "got 1.5"]),
    (["--lora.targets", "c_atn"], ["c_atn", "attn.c_attn", "all-linear"]),
    (["--warmup", "50"], ["--warmup", "1 steps", "50 steps"]),
    (["--seed", "-1"], ["--seed", "got -1"]),
    (["--seed", str(2**80)], ["--seed", "0 to 2^63"]),
    (["--seed", "abc"], ["--seed", "an integer"]),
    (["--device", "cuda:9"], ["--device", "available: cpu"]),
    (["--resume", "nope"], ["--resume", "checkpoints here: none"]),
    (["--template", "{instrution}"], ["--template:1:1", "{instrution}", "the fields are"]),
    (["--template", "a {b"], ["--template:1:3", "brace"]),
    (["--template", "alpca"], ["--template", "alpaca, dolly, plain"]),
    (["--task", "instuct"], ["--task", "instruct"]),
    (["--precision", "fp16"], ["--precision", "CUDA", "float32"]),
    (["--precision", "fp8"], ["--precision", "bf16"]),
    (["--eval_every", "x"], ["--eval_every", "1epoch"]),
    (["--track", "nobody"], ["--track", "csv"]),
    (["--model", "gpt3"], ["did you mean gpt2", "tiny"]),
    (["--model", "gpt2"], ["gpt2", "offline"]),
    (["--model", "./nowhere"], ["nowhere", "no such model folder"]),
    (["--freeze", "wtee"], ["--freeze", "wte"]),
    (["--out", "."], ["not empty and not a run"]),
    (["--out", "data.jsonl"], ["output is a file"]),
    (["--patience", "-1"], ["--patience", ">= 0"]),
    (["--lora", "yes"], ["--lora", "--lora.rank"]),
    (["--rows.columns.prompt", "q"], ["data.jsonl:1", "'instruction', 'output'"]),
    (["--rows.split", "train:2,foo:1"], ["--rows.split", "foo:1"]),
    (["--size", "1,2,3"], ["--size", "pretrain"]),
    (["--data", "x.jsonl"], ["one data file"]),
    (["--epochs", "-3"], ["--epochs", "> 0", "got -3"]),
    (["--epochs", "0"], ["--epochs", "> 0", "got 0"]),
    (["--model", "./nowhere", "--rows.split", "train:0.9"], ["--rows.split", "sum to 0.9"]),
    (["--model", "./nowhere", "--track", "nobody"], ["--track", "csv"]),
    (["--model", "./nowhere", "--sample_prompts", "nope.txt"], ["nope.txt", "no such file"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD, ids=[" ".join(w)[:40] for w, _ in BAD])
def test_bad_option(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]) -> None:
    model = [] if "--model" in words else ["--model", "tiny-model"]
    out = [] if "--out" in words else ["--out", "run"]
    before = sorted(p.name for p in here.iterdir())
    code, line = ask(capsys, "train", "data.jsonl", *model, *out, "--max_steps", "1", *words)
    assert code == 2
    assert "Fix: " in line
    for part in parts:
        assert part in line
    assert sorted(p.name for p in here.iterdir()) == before


CONFIGS = [
    ("lr: abc\n", ["c.yaml:1:5", "lr", "got abc"]),
    ("lrr: 1\n", ["c.yaml:1:", "unknown key lrr", "did you mean lr"]),
    ("learning_rate: 1\n", ["c.yaml:1:", "lr"]),
    ("lora: yes\n", ["c.yaml:1:", "lora"]),
    ("lr: 1\nlr: 2\n", ["c.yaml:2:1", "already in line 1"]),
    ("x: !!python/object/apply:os.system [ls]\n", ["c.yaml:1:4", "tag not allowed"]),
    ("lora:\n  rank: {a: 1}\n", ["c.yaml:2:", "lora.rank.a"]),
    ("a: [\n", ["c.yaml:", "not valid YAML"]),
    ('epochs: "three"\n', ["c.yaml:1:9", "epochs", "a number", "got three"]),
    ("- 1\n", ["c.yaml:1:1", "mapping"]),
    ("a: &x 1\nb: [" + ",".join(["*x"] * 200) + "]\n", ["too many aliases (limit 100)"]),
    ("a: " + "[" * 30 + "]" * 30 + "\n", ["c.yaml"]),
]


@pytest.mark.parametrize(("text", "parts"), CONFIGS, ids=[t[:30].strip() for t, _ in CONFIGS])
def test_bad_config_file(here: Path, capsys: pytest.CaptureFixture[str], text: str, parts: list[str]) -> None:
    (here / "c.yaml").write_text(text, encoding="utf-8")
    code, line = ask(capsys, "train", "data.jsonl", "--config", "c.yaml", "--out", "run")
    assert code == 2
    for part in parts:
        assert part in line
    assert not (here / "run").exists()


def test_print_config_types_the_file_and_lets_the_command_line_win(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scalars of a file are typed as on the command line: `1e-4` is a number, `no` a switch (row C14)."""
    (here / "c.yaml").write_text("lr: 1e-4\ndeterministic: no\nlora:\n  rank: 4\nepochs: 2\ntrack: [csv, csv]\n")
    assert main(["train", "absent.jsonl", "--config", "c.yaml", "--epochs", "5", "--print_config"]) == 0
    import yaml

    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["lr"], shown["deterministic"], shown["epochs"]) == (1e-4, False, 5.0)
    assert shown["lora"]["rank"] == 4
    assert shown["track"] == ["csv", "csv"]


def test_printed_config_is_a_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data.jsonl", "--lora.rank", "4", "--sampling.stop", "a,b", "--print_config"]) == 0
    first = capsys.readouterr().out
    (here / "again.yaml").write_text(first)
    assert main(["train", "--config", "again.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--deterministic"], True),
        (["--deterministic", "true"], True),
        (["--deterministic=false"], False),
        (["--deterministic", "false"], False),
        (["--no_deterministic"], False),
        (["--no-deterministic"], False),
    ],
)
def test_real_booleans(capsys: pytest.CaptureFixture[str], words: list[str], value: bool) -> None:
    """Seed fault 0.12: `--qlora False` meant True."""
    import yaml

    assert main(["train", "x.jsonl", *words, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["deterministic"] is value


def test_the_whole_way(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, generate, evaluate, export, info: each verb on the result of the first."""
    words = ["train", "data.jsonl", "--model", "tiny-model", "--lora.rank", "2", "--max_steps", "2", "--out", "run"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "trainable" in said
    assert "validation loss" in said
    assert main(words) == 0
    assert "finished; nothing to do" in capsys.readouterr().err
    asking = ["generate", "run", "Say 3.", "Say 4.", "--max_new_tokens", "4", "--n", "2", "--temperature", "0,1"]
    assert main([*asking, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["prompt"] for r in records] == ["Say 3.", "Say 4."] * 2
    assert all(len(r["texts"]) == 2 and len(r["finish_reasons"]) == 2 for r in records)
    assert all(r["finish_reasons"][0] in ("stop", "length") for r in records)
    assert main(asking) == 0
    assert "Say 3." in capsys.readouterr().out
    assert main(["evaluate", "run", "data.jsonl", "--json", "--exact_match", "--max_new_tokens", "2"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["records"] == 20
    assert figures["loss"] > 0
    assert 0 <= figures["exact_match"] <= 1
    for to in ("adapter", "merged"):
        assert main(["export", "run", "--to", to, "--out", f"out-{to}"]) == 0
        assert main(["info", f"out-{to}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["template"] == "alpaca"
    code, line = ask(capsys, "export", "run", "--to", "hf", "--out", "out-hf")
    assert code == 2
    assert "--to merged" in line
    assert main(["info", "run"]) == 0
    assert "LoRA adapter" in capsys.readouterr().out


def test_records_as_sample_prompts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.csv").write_text("instruction,input\nSay 3.,\n", encoding="utf-8")
    words = ["train", "data.jsonl", "--model", "tiny-model", "--max_steps", "1", "--sampling.max_new_tokens", "2"]
    assert main([*words, "--sample_prompts", "p.csv", "--sample_every", "1"]) == 0
    said = capsys.readouterr().err
    assert "'Say 3.' -> " in said
    assert "failed" not in said


def test_a_text_file_alone_is_a_whole_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "notes.txt").write_text("The cat sat on the mat and the dog lay by the door.\n" * 40, encoding="utf-8")
    assert main(["train", "notes.txt", "--model", "tiny-model", "--max_steps", "2"]) == 0
    said = capsys.readouterr().err
    assert "task: style" in said
    assert "run folder: runs/notes-style" in said
    assert (here / "runs" / "notes-style" / "final" / "model.safetensors").is_file()


def test_prompts_from_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (here / "p.jsonl").write_text('{"instruction": "three", "input": "x"}\n', encoding="utf-8")
    for name, count in (("p.txt", 2), ("p.jsonl", 1)):
        words = ["generate", "tiny-model", "--prompts", name, "--json", "--max_new_tokens", "2"]
        code = main(words)
        out = capsys.readouterr()
        if name == "p.jsonl":  # an input has no place without a template
            assert code == 2
            assert "without a template" in out.err
        else:
            assert len(out.out.splitlines()) == count


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["did you mean train"]),
        (["train"], ["no data given"]),
        (["train", "nope.jsonl"], ["nope.jsonl", "no such file"]),
        (["generate"], ["no model given"]),
        (["generate", "tiny-model"], ["no prompt given"]),
        (["generate", "tiny-model", "x", "--temperature", "-1"], ["--temperature", ">= 0"]),
        (["generate", "tiny-model", "x", "--temperature", "hot"], ["--temperature", "numbers"]),
        (["generate", "tiny-model", "x", "--top_p", "0"], ["--top_p", "> 0"]),
        (["generate", "tiny-model", "x", "--max_tokens", "5"], ["here it is called --max_new_tokens"]),
        (["generate", "tiny-model", "x", "--stop", ""], ["--stop", "empty"]),
        (["generate", "data.jsonl", "x"], ["data.jsonl", "not a model folder"]),
        (["generate", "nowhere", "--prompts", "-"], ["--prompts -", "no prompt on standard input"]),
        (["evaluate", "nowhere", "x", "--batch_size", "0"], ["--batch_size", ">= 1", "got 0"]),
        (["evaluate", "nowhere", "x", "--max_new_tokens", "0"], ["--max_new_tokens", ">= 1", "got 0"]),
        (["evaluate", "nowhere", "x", "--rows.split", "train:2,foo:1"], ["--rows.split", "foo:1"]),
        (["evaluate", "tiny-model"], ["a model and a data file"]),
        (["evaluate", "tiny-model", "data.jsonl", "--part", "dev"], ["--part", "validation"]),
        (["evaluate", "tiny-model", "data.jsonl", "--part", "test"], ["--part", "no record"]),
        (["export", "tiny-model"], ["--out", "no folder"]),
        (["export", "tiny-model", "--out", "."], ["not an empty folder"]),
        (["export", "tiny-model", "--out", "x", "--to", "adapter"], ["without an adapter"]),
        (["tokenizer", "train"], ["files of text"]),
        (["tokenizer", "train", "data.jsonl", "--vocab", "100000", "--out", "v"], ["--vocab", "too small"]),
        (["info", "data.jsonl"], ["data.jsonl"]),
        (["demo", "x"], ["takes no data"]),
    ],
    ids=lambda v: " ".join(v)[:40],
)
def test_bad_verbs(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    before = sorted(p.name for p in here.iterdir())
    code, line = ask(capsys, *words)
    assert code == 2
    for part in parts:
        assert part in line
    assert sorted(p.name for p in here.iterdir()) == before


def test_unexpected_errors_have_one_line_and_debug_shows_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def burst(words: list[str]) -> int:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr("finetwo.app.cli._dispatch", burst)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["train", "--debug"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Traceback")
    assert told[-1].startswith("error: internal: RuntimeError: boom")


@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError(), 3), (OSError(28, "No space left"), 3), (KeyboardInterrupt(), 130), (InputError("x", "bad"), 2)],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def burst(words: list[str]) -> int:
        raise error

    monkeypatch.setattr("finetwo.app.cli._dispatch", burst)
    assert main(["train"]) == code
    assert main(["train", "--debug"]) == code


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with the package on its path."""
    full = os.environ | {"PYTHONPATH": str(SRC)} | env
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=full, timeout=120, check=False
    )


def test_importing_costs_no_torch() -> None:
    heavy = "torch numpy transformers tiktoken tokenizers jsonargparse rich yaml huggingface_hub".split()
    done = run_python(f"import finetwo, sys; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr
    done = run_python(
        f"import sys; from finetwo.app.cli import main; main(['--help']); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_public_names_stay_functions() -> None:
    """`finetwo.train` is the function whatever was imported before."""
    code = "import finetwo; finetwo.Report; finetwo.load; import finetwo.train.job; assert callable(finetwo.train)"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"finetwo {verb}" in text
    assert "None" not in text.splitlines()[0]


def test_errors_survive_a_plain_locale(tmp_path: Path) -> None:
    words = "['finetwo', 'train', 'n\\u00e9ant \\U0001f600.jsonl']"
    code = f"from finetwo.app.cli import entry; import sys; sys.argv = {words}; entry()"
    done = run_python(code, LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_an_interrupt_while_the_words_are_read_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupting(list[str]):
        def index(self, *_: object) -> int:
            raise KeyboardInterrupt

    assert main(Interrupting(["info", "--"])) == 130
    assert capsys.readouterr().err == "error: stopped\n"
