"""`finetwo chat` through a pipe, and as a person at a terminal meets it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.models import random_network, tiny_config

from finetwo.app import chat
from finetwo.app.chat import _bare
from finetwo.app.cli import main
from finetwo.core.errors import NumericError
from finetwo.generate.pipeline import Model
from finetwo.model.lora import linears
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.store.peft import save_adapter
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model without a template, and one tuned from it for each of two templates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=256)
    save_model(tmp_path / "base", random_network(shape), tiny_tokenizer, Extras())
    for name, seed in (("chat", 1), ("alpaca", 2)):
        extras = Extras(task="instruct", template=Template.named(name))
        save_model(tmp_path / name, random_network(shape, seed), tiny_tokenizer, extras)
    return tmp_path


Say = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def say(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Chat through a pipe; gives the exit code, the lines of standard output and standard error."""

    def run(model: str, text: str, *words: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        capsys.readouterr()
        code = main(["chat", model, "--temperature", "0", "--max_new_tokens", "6", "--stop", "\\n", *words])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err

    return run


def model_of(folder: Path) -> Model:
    from finetwo.app.api import load

    return load(str(folder))


def answer(model: Model, prompt: Any) -> str:
    found = model.generate(prompt, max_new_tokens=6, stop="\n")
    assert isinstance(found, str)
    return found


def test_answers_alone_stand_on_standard_output(say: Say, here: Path) -> None:
    code, out, told = say("chat", "one\n\n/settings\ntwo \\\nlines\n/frob\n")
    assert code == 0
    model = model_of(here / "chat")
    first = answer(model, "one")
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two \nlines"},
    ]
    assert out == [first, answer(model, turns)]
    assert told.startswith("chat with chat; /help lists the commands, Ctrl-D ends\n")
    assert "template chat: the whole conversation is sent with each question\n" in told
    assert "error: /frob: no such command." in told
    assert say("chat", "one\n\n/settings\ntwo \\\nlines\n/frob\n") == (code, out, told), "the same again"


def test_a_model_of_single_prompts_is_asked_alone_unless_told_otherwise(say: Say, here: Path) -> None:
    model = model_of(here / "alpaca")
    first, second = answer(model, "one"), answer(model, "two")
    _, out, told = say("alpaca", "one\ntwo\n")
    assert out == [first, second]
    assert "template alpaca: each question is sent alone (--history sends the whole conversation)" in told
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": first}]
    _, out, told = say("alpaca", "one\ntwo\n", "--history")
    assert out == [first, answer(model, [*turns, {"role": "user", "content": "two"}])]
    assert "may do badly with it" in told
    assert say("chat", "one\ntwo\n", "--no_history")[1][1] == answer(model_of(here / "chat"), "two")


def test_a_model_without_a_template_goes_on_with_the_text(say: Say, here: Path) -> None:
    code, out, told = say("base", "It was\nIt was\n/system x\n")
    assert code == 0
    assert out == [answer(model_of(here / "base"), "It was")] * 2
    assert "no template: it continues your text as it stands" in told
    assert "error: /system: base has no template" in told
    for option in (["--history"], ["--system", "x"]):
        code, out, told = say("base", "It was\n", *option)
        assert code == 2
        assert f"error: {option[0]}: base has no template" in told


def test_commands(say: Say, here: Path) -> None:
    first = "/help\n/set seed 5\n/set seed = 6\n/set temprature 1\n/set\nq\n/undo\n/undo\n/save x\nq\n/save x.jsonl\n"
    code, out, told = say("chat", first + "/clear\n/save x.jsonl\n/quit now\n/exit\n/quit\nnever asked\n")
    assert code == 0
    assert len(out) == 2
    lines = told.splitlines()[2:]
    assert lines[0] == "  /set NAME VALUE   change a setting of the sampling: /set temperature 0.2"
    assert lines[8].startswith("  /quit")
    assert lines[9:12] == [
        "seed = 5",
        "seed = 6",
        "error: /set temprature: no such setting. Fix: did you mean temperature?",
    ]
    assert "error: /undo: nothing was said yet" in lines
    assert "error: /save: nothing was answered yet (got x). Fix: ask something first" in lines
    assert "a new conversation" in lines
    assert "error: /quit: takes nothing after it (got now). Fix: write /quit alone" in lines
    assert "error: /exit: no such command. Fix: did you mean /quit?" in lines
    assert json.loads((here / "x.jsonl").read_text())["messages"][0] == {"role": "user", "content": "q"}


def test_a_failing_answer_ends_nothing(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetwo.app.dialogue import Dialogue

    real, asked = Dialogue.answer, []

    def fail_first(self: Dialogue, question: str, write: Any, note: Any) -> None:
        asked.append(question)
        if len(asked) == 1:
            raise NumericError("generation", "the network's output is not finite")
        if len(asked) == 2:
            raise KeyboardInterrupt
        real(self, question, write, note)

    monkeypatch.setattr(Dialogue, "answer", fail_first)
    code, out, told = say("chat", "two\nthree\none\n")
    assert code == 0 and asked == ["two", "three", "one"]
    assert out == ["", "", say("chat", "one\n")[1][0]]
    assert "error: generation: the network's output is not finite\n" in told and "(stopped)\n" in told


def test_a_wish_to_stop_while_a_pipe_is_read_ends_the_chat(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat.Reader, "read", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, told = say("chat", "one\n")
    assert code == 130 and told.endswith("error: stopped\n")


def test_input_that_is_no_text_ends_the_chat_of_a_pipe(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad(io.StringIO):
        def readline(self, *_: Any) -> str:
            raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid")

    monkeypatch.setattr(io, "StringIO", Bad)
    code, _, told = say("chat", "")
    assert code == 2 and "error: standard input: not utf-8. Fix: write UTF-8 text" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "error: chat: one model is needed. Fix: finetwo chat MODEL"),
        (["a", "b"], "error: chat: one model is needed (got a b)"),
        (["chat", "--temperature", "hot"], "error: --temperature: must be a number (got hot)"),
        (["chat", "--top_p", "0"], "error: --top_p: out of range (got 0.0)"),
        (["chat", "--n", "2"], "error: --n: unknown option"),
        (["base/nowhere"], "no such model folder"),
        (["chat", "--device", "cuda:9"], "device: no such device here (got cuda:9)"),
    ],
)
def test_bad_words(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    code = main(["chat", *words])
    err = capsys.readouterr().err
    assert code == 2
    assert told in err


def test_a_classifier_is_sent_to_predict(say: Say, here: Path, tiny_tokenizer: Tokenizer) -> None:
    network = random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size))
    network.add_classes(["good", "bad"])
    save_model(here / "classes", network, tiny_tokenizer, Extras(task="classify"))
    code, out, told = say("classes", "one\n")
    assert (code, out) == (2, [])
    assert told == 'error: classes: is a classifier, which does not talk. Fix: finetwo predict classes "TEXT"\n'


# --- the untuned model ------------------------------------------------------------------------------------------


def adapter_of(here: Path, tokenizer: Tokenizer) -> Network:
    from finetwo.store.folder import load_network

    network = load_network(here / "base")
    network.add_lora(rank=2, targets="all-linear")
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(1))
    extras = Extras(task="instruct", template=Template.named("chat"), base=str(here / "base"))
    save_adapter(here / "adapter", network, tokenizer, extras)
    return network.eval()


def test_an_adapter_switched_off_shares_the_weights(here: Path, tiny_tokenizer: Tokenizer) -> None:
    network = adapter_of(here, tiny_tokenizer)
    tokens = torch.arange(12)[None]
    tuned = network(tokens)
    bare = _bare(network)
    assert {n: p.data_ptr() for n, p in bare.named_parameters()} == {
        n: t.data_ptr() for n, t in network.state().items()
    }
    base = bare(tokens)
    assert not torch.equal(base, tuned)
    assert torch.equal(network(tokens), tuned), "the tuned one is as it was"
    for module in linears(network).values():
        module.adapter = None
    assert torch.equal(network(tokens), base)


def test_flipping_an_adapter(say: Say, here: Path, tiny_tokenizer: Tokenizer) -> None:
    adapter_of(here, tiny_tokenizer)
    _, out, told = say("adapter", "one\n/base\n/undo\none\n/base\n/undo\none\n")
    tuned, base = model_of(here / "adapter"), model_of(here / "base")
    base.template = Template.named("chat")
    assert out == [answer(tuned, "one"), answer(base, "one"), answer(tuned, "one")]
    assert out[0] != out[1]
    assert f"answers now come from the untuned base, {here / 'base'}\nt" in told
    assert "answers now come from adapter\n" in told


def run_folder(here: Path, config: str) -> None:
    (here / "run").mkdir()
    (here / "run" / "finetwo-run.json").write_text('{"format": 1}')
    (here / "run" / "config.yaml").write_text(config)
    (here / "chat").rename(here / "run" / "best")


def test_flipping_a_full_run_loads_what_its_configuration_names(say: Say, here: Path) -> None:
    run_folder(here, "task: instruct\nmodel: ./base\n")
    base = model_of(here / "base")
    base.template = Template.named("chat")
    assert say("run", "/base\none\n")[1] == [answer(base, "one")]
    assert say("run/best", "/base\none\n")[1] == [answer(base, "one")]
    base = model_of(here / "alpaca")
    base.template = Template.named("chat")
    assert say("run", "/base\none\n", "--base", "alpaca")[1] == [answer(base, "one")], "--base wins"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("task: pretrain\nmodel: gpt2\n", "/base: run was trained from fresh weights: there is no base"),
        ("task: instruct\n", "/base: run does not say which model it was tuned from"),
        ("task: instruct\nmodel: ./gone\n", "gone: no such model folder"),
    ],
)
def test_a_base_that_is_not_there_leaves_the_tuned_model(say: Say, here: Path, config: str, told: str) -> None:
    run_folder(here, config)
    code, out, err = say("run", "/base\none\n")
    assert code == 0 and out == [answer(model_of(here / "run"), "one")]
    assert told in err


def test_a_folder_from_elsewhere_has_no_base(say: Say) -> None:
    _, out, told = say("chat", "/base\none\n")
    assert len(out) == 1
    assert "error: /base: chat does not say which model it was tuned from. Fix: finetwo chat chat --base MODEL" in told


# --- a terminal -------------------------------------------------------------------------------------------------


class Terminal:
    """A process at a pseudo-terminal: text is typed, and the screen read up to a mark."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self._master, slave = pty.openpty()
        env = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "finetwo", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it as from a keyboard
        )
        os.close(slave)
        self.screen = ""

    def interrupt(self, mark: str) -> None:
        """Press Ctrl-C until `mark` appears: one that comes as Python begins to wait for a key is seen at the next."""
        for _ in range(20):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.until(mark, seconds=3.0)
                return
        raise AssertionError(self.screen)

    def until(self, mark: str, seconds: float = 60.0) -> str:
        """What appears on the screen up to `mark`."""
        start, end = len(self.screen), time.monotonic() + seconds
        while mark not in self.screen[start:] and time.monotonic() < end:
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.screen += os.read(self._master, 4096).decode("utf-8", "replace")
                except OSError:  # the other side is gone
                    break
        assert mark in self.screen[start:], self.screen
        return self.screen[start:]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> int:
        code = self.process.wait(30)
        os.close(self._master)
        return code


@pytest.fixture
def slow(here: Path, tiny_tokenizer: Tokenizer) -> str:
    """A model that takes seconds to answer and never comes to an end."""
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=1024, n_embd=128, n_layer=12)
    network = Network.fresh(shape, 0)
    with torch.no_grad():
        network.transformer.ln_f.bias.fill_(0.5)
        network.head_weight[tiny_tokenizer.eot] = -0.5  # so its logit is about -32
    save_model(here / "slow", network, tiny_tokenizer, Extras(template=Template.named("chat")))
    return "slow"


def test_a_chat_at_a_terminal(here: Path, slow: str) -> None:
    """Ctrl-C stops an answer, and not the chat; Ctrl-D ends it."""
    terminal = Terminal(["chat", slow, "--temperature", "1.5", "--max_new_tokens", "3"], here)
    try:
        terminal.until("\n> ")
        terminal.interrupt("(Ctrl-D or /quit ends the chat)")
        terminal.type("one \\\r")
        terminal.until(". ")
        terminal.type("two\r")
        assert "(cut after 3 tokens: /set max_new_tokens 6 allows more)" in terminal.until("\n> ")
        terminal.type('"""\r')
        terminal.until(". ")
        terminal.type('/quit"""\r')
        assert "(cut after 3 tokens" in terminal.until("\n> ")
        terminal.type("/set max_new_tokens 1000\r")
        terminal.until("\n> ")
        terminal.type("three\r")
        terminal.until("three\r\n")
        time.sleep(0.2)
        terminal.type("\x03")
        assert "(stopped)" in terminal.until("\n> ")
        terminal.type("/save talk.jsonl\r")
        assert "saved 3 answers to talk.jsonl (conversation 1 there); 3 cut or stopped" in terminal.until("\n> ")
        terminal.type("\x04")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
    asked = [t["content"] for t in json.loads((here / "talk.jsonl").read_text())["messages"] if t["role"] == "user"]
    assert asked == ["one \ntwo", "/quit", "three"]


def test_a_signal_while_a_pipe_is_answered_stops_that_answer(here: Path, slow: str) -> None:
    env = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "finetwo", "chat", slow, "--max_new_tokens", "1000", "--temperature", "1.5"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, cwd=here, env=env) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(b"/undo\n", timeout=60)
    assert process.returncode == 0
    assert b"(stopped)\ntaken back: 'one' and its answer\n" in told
