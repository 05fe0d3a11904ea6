"""Twelve failures, each made with a tiny model, are named with their cause; ten healthy runs are left alone."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.models import tiny_config
from tests.train.support import At

from finetwo import NumericError, train
from finetwo.app.cli import main
from finetwo.core.errors import InputError, Stopped
from finetwo.data.sequences import Segment
from finetwo.insight.curves import Curves
from finetwo.insight.evidence import Evidence
from finetwo.insight.explain import Case, explain, explained, judge
from finetwo.insight.verdict import Finding
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.tasks import task as task_module
from finetwo.tasks.task import Fields, Task, register
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

KEYS = "lamp harbour keeper steps wind word wall door".split()
ANSWERS = "nobody answered,the stairs,at nine,counted them,had taken it,she asked,a 猫 sleeps,hangs over".split(",")
FILL = "the a in at to and over on for had it they every done".split()
SETTINGS: dict[str, Any] = {
    "template": "plain",
    "batch_size": 8,
    "lr": 2e-3,
    "save_every": "0",
    "sample_every": "0",
    "eval_every": "20",
    "max_steps": 60,
}


FRESH = {"task": "pretrain", "size": "2,32,2"}


def row(rng: random.Random, index: int) -> dict[str, str]:
    """A question whose answer follows from one of its words."""
    key = rng.randrange(len(KEYS))
    words = [*rng.choices(FILL, k=rng.randint(1, 4)), KEYS[key], *rng.choices(FILL, k=rng.randint(1, 3))]
    return {"prompt": f"{' '.join(words)} {index}?", "completion": ANSWERS[key]}


def rows(count: int = 80, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [row(rng, i) for i in range(count)]


def write(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A base of 2 layers, width 32, context 128."""
    folder = tmp_path_factory.mktemp("explain") / "base"
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=128, n_embd=32, n_layer=2, n_head=2)
    save_model(folder, Network.fresh(shape, 3), tiny_tokenizer, Extras())
    return folder


def damaged(base: Path, folder: Path, harm: Callable[[Network], None]) -> Path:
    """A copy of a base with some weights changed."""
    from finetwo.store.models import open_model

    opened = open_model(str(base))
    with torch.no_grad():
        harm(opened.network)
    save_model(folder, opened.network, opened.tokenizer, opened.extras)
    return folder


class Bench:
    """Trains in a folder of its own and explains what came of it."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base, self.run = folder, base, folder / "run"

    def go(self, records: Sequence[object], *, answers: int = 0, **settings: Any) -> list[Finding]:
        data = write(self.folder / "data.jsonl", records)
        return self.on(data, answers=answers, **settings)

    def on(self, data: Path, *, answers: int = 0, **settings: Any) -> list[Finding]:
        chosen = {"model": str(self.base), "out": str(self.run)} | SETTINGS | settings
        train(str(data), **{k: v for k, v in chosen.items() if v is not None})
        return explain(self.run, answers)

    def prompts(self, texts: Sequence[str]) -> dict[str, Any]:
        """Settings by which these prompts are answered at the end."""
        path = self.folder / "prompts.txt"
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return {"sample_prompts": str(path), "sample_every": "1000"}


@pytest.fixture
def bench(tmp_path: Path, small: Path) -> Bench:
    return Bench(tmp_path, small)


def only(findings: list[Finding], name: str) -> Finding:
    """The one finding, which must have this name."""
    assert [f.name for f in findings] == [name], "\n".join(line for f in findings for line in f.lines())
    return findings[0]


# --- twelve failures ------------------------------------------------------------------------------------------------


def test_loss_zero(bench: Bench) -> None:
    found = only(bench.go([r | {"completion": "yes."} for r in rows()], lr=1e-2, max_steps=120), "loss 0")
    assert "100% of the answers are the same text ('yes.')" in found.cause


def test_nan(bench: Bench) -> None:
    def harm(network: Network) -> None:
        network.transformer.wpe.weight[60:].fill_(1e25)

    bench.base = damaged(bench.base, bench.folder / "damaged", harm)
    long = {"prompt": "lamp?", "completion": " ".join(KEYS * 12)}
    with pytest.raises(NumericError):
        bench.go([*rows(60), long], rows={"split": "train:61"}, eval_every="0")
    found = only(explain(bench.run), "NaN")
    assert "data.jsonl:61: record 61" in found.check and "one batch whose numbers overflow" in found.cause


def test_flat_loss(bench: Bench) -> None:
    found = only(bench.go(rows(), adam_eps=1.0, max_steps=30), "flat loss")
    assert "--adam_eps 1.0 outweighs every gradient" in found.cause


def test_classes_that_do_not_follow(bench: Bench) -> None:
    rng = random.Random(6)
    chance = [{"text": f"the {rng.choice(KEYS[:3])}", "label": rng.choice(["sea", "land"])} for _ in range(860)]
    split = {"split": "train:800,validation:60"}
    found = only(bench.go(chance, template=None, lr=5e-4, batch_size=32, max_steps=110, rows=split), "flat loss")
    assert "the loss is that of guessing" in found.cause and "guessing costs 0.69" in found.check


def test_a_setting_that_holds_back_is_not_blamed_on_the_classes(bench: Bench) -> None:
    rng = random.Random(6)
    words = [rng.choice(KEYS[:2]) for _ in range(260)]
    told = [{"text": f"the {word}", "label": word} for word in words]
    split = {"split": "train:240,validation:20"}
    settings = {"template": None, "batch_size": 8, "max_steps": 110, "schedule": "constant", "eval_every": "0"}
    found = only(bench.go(told, clip=1e-12, rows=split, **settings), "flat loss")
    assert "--clip 1e-12 cuts a gradient" in found.cause and found.fix == "--clip 1"


def test_learned_to_the_last_word() -> None:
    losses = [3.0 * 0.9**i for i in range(80)]
    steps = [{"step": i + 1, "loss": loss, "lr": 5e-4, "epoch": i} for i, loss in enumerate(losses)]
    told = {0: 4.7, 20: 2.94, 40: 2.96, 60: 3.0, 80: 3.01}
    evaluations = [{"step": step, "loss": loss} for step, loss in told.items()]
    seen = Evidence(Path(), {"task": "instruct"}, steps, evaluations, total_steps=80)
    found = only(judge(Case(seen, Curves.of(steps, evaluations))), "validation rises while training falls")
    assert "rose from 2.940 at step 20 to 3.010" in found.check


def test_overfit(bench: Bench) -> None:
    rng = random.Random(1)
    noise = [{"prompt": f"{rng.choice(KEYS)} {i}?", "completion": " ".join(rng.choices(FILL, k=4))} for i in range(40)]
    split = {"split": "train:20,validation:20"}
    findings = bench.go(noise, lr=5e-3, max_steps=160, rows=split)
    found = only(findings, "validation rises while training falls")
    assert "learned by heart" in found.cause and "best/" in found.fix


def test_all_answers_equal(bench: Bench) -> None:
    records = [r | ({"completion": "nobody knows"} if i % 10 else {}) for i, r in enumerate(rows())]
    findings = bench.go(records, max_steps=120, **bench.prompts([r["prompt"] for r in rows(6, seed=9)]))
    assert "90% of the training answers are 'nobody knows'" in only(findings, "all answers equal").cause


def test_never_stops(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(fields: Fields, template: Template | None) -> list[Segment]:
        assert template is not None
        return [Segment(template.prompt(fields), learn=False), Segment(fields["completion"], learn=True)]

    monkeypatch.setitem(task_module._TASKS, "endless", None)  # so that it is gone after the test
    register(Task("endless", "instruct", "records", endless, "answers without an end", template="plain"))
    findings = bench.go(rows(), task="endless", answers=8)
    assert "without end-of-text" in only(findings, "never stops").cause


def test_gradient_explosion(bench: Bench) -> None:
    def harm(network: Network) -> None:
        network.transformer.ln_f.weight.mul_(3000.0)

    bench.base = damaged(bench.base, bench.folder / "steep", harm)
    found = only(bench.go(rows(), clip=0.0, max_steps=20), "gradient explosion")
    assert "nothing cuts the gradient (--clip 0)" in found.cause and found.fix == "--clip 1"


def test_everything_truncated(bench: Bench) -> None:
    long = [r | {"completion": " ".join([r["completion"]] * 8)} for r in rows()]
    findings = bench.go(long, max_length=24)
    assert findings[0].name == "everything truncated"
    assert "--max_length 24 is shorter" in findings[0].cause and "80 of 80 records were cut" in findings[0].check


def test_label_leak(bench: Bench) -> None:
    rng = random.Random(4)
    leaked = [
        {"text": f"{' '.join(rng.sample(KEYS + FILL, 8))} <{name}> {' '.join(rng.sample(FILL, 4))}", "label": name}
        for name in rng.choices(["sea", "land"], k=80)
    ]
    found = only(bench.go(leaked, template=None, max_steps=40), "label leak")
    assert "'<land>' only in land" in found.check


def test_a_leaked_answer(bench: Bench) -> None:
    leaked = [r | {"prompt": f"{r['prompt']} key: {r['completion']}"} for r in rows()]
    assert "after 'key:'" in only(bench.go(leaked, max_steps=20), "label leak").cause


def test_learning_rate_too_high(bench: Bench) -> None:
    found = only(bench.go(rows(), lr=1.0, schedule="constant", warmup=0.0), "learning rate too high")
    assert "2,000.0 times what is usual" in found.cause and found.fix == "--lr 0.0005"


def test_learning_rate_too_low(bench: Bench) -> None:
    found = only(bench.go(rows(), lr=1e-6, max_steps=30), "learning rate too low")
    assert "1/500 of what is usual" in found.cause


def test_a_run_stopped_in_its_warm_up(bench: Bench) -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        bench.go(rows(), warmup=2000, max_steps=4000, listeners=[At("step", 25, stop)])
    assert not explain(bench.run)


def test_wrong_template(bench: Bench) -> None:
    headed = [r | {"prompt": f"### User:\n{r['prompt']}\n\n### Assistant:\n"} for r in rows()]
    found = only(bench.go(headed, template="chat"), "wrong template")
    assert "'### User:' stands in 100% of the prompts twice" in found.check


def test_a_template_changed_after_training(bench: Bench) -> None:
    bench.go(rows(), max_steps=5)
    for name in ("best", "final"):
        path = bench.run / name / "finetwo.json"
        if path.is_file():
            content = json.loads(path.read_text())
            content["template"] |= {"text": "{prompt} ->", "with_input": "{prompt} ->"}
            path.write_text(json.dumps(content))
    assert "changed after the training" in only(explain(bench.run), "wrong template").cause


# --- ten healthy runs -----------------------------------------------------------------------------------------------


def _choices(count: int) -> list[dict[str, str]]:
    rng = random.Random(2)
    found = []
    for i in range(count):
        pair = rng.sample(KEYS, 2)
        found.append({"prompt": f"{i}: which is longer, {pair[0]} or {pair[1]}?", "completion": max(pair, key=len)})
    return found


def _talks(count: int) -> list[dict[str, Any]]:
    def turns(*records: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"role": role, "content": r[part]}
            for r in records
            for role, part in (("user", "prompt"), ("assistant", "completion"))
        ]

    made = rows(2 * count)
    return [{"messages": turns(a, b)} for a, b in zip(made[::2], made[1::2], strict=True)]


def _classes(count: int, share: float = 0.5) -> list[dict[str, str]]:
    rng = random.Random(3)
    found = []
    for _ in range(count):
        sea = rng.random() < share
        word = rng.choice(["harbour", "wind", "wave", "lamp"] if sea else ["door", "wall", "stairs", "lamp"])
        words = [*rng.choices(FILL, k=5), word, *rng.choices(FILL, k=3)]
        found.append({"text": " ".join(words), "label": "sea" if sea else "land"})
    return found


def _pairs(count: int) -> list[dict[str, str]]:
    rng = random.Random(5)
    found = []
    for _ in range(count):
        a, b = rng.choice(KEYS), rng.choice(KEYS)
        second = a if rng.random() < 0.5 else b
        texts = {"sentence1": f"the {a} {rng.choice(FILL)}", "sentence2": f"a {second} {rng.choice(FILL)}"}
        found.append(texts | {"label": "same" if second == a else "other"})
    return found


def _novel(folder: Path) -> Path:
    text = "\n".join(f"The {a} {b} {c}." for a in KEYS for b in FILL for c in KEYS)
    path = folder / "novel.txt"
    path.write_text(text, encoding="utf-8")
    return path


HEALTHY: dict[str, Callable[[Bench], list[Finding]]] = {
    "instructions": lambda b: b.go(rows(200), max_steps=150, answers=8),
    "adapter": lambda b: b.go(rows(), lora={"rank": 4}, lr=3e-3),
    "multiple choice": lambda b: b.go(_choices(80), answers=8),
    "conversations": lambda b: b.go(_talks(60), template=None, answers=4, max_steps=120),
    "classes": lambda b: b.go(_classes(120), template=None),
    "a rare class": lambda b: b.go(_classes(160, 0.2), template=None, max_steps=100, class_weights="balanced"),
    "pairs": lambda b: b.go(_pairs(120), template=None, lr=5e-4),
    "style": lambda b: b.on(_novel(b.folder), template=None, max_length=64),
    "pretrain": lambda b: b.on(
        _novel(b.folder),
        template=None,
        lr=None,
        task="pretrain",
        model=None,
        max_length=64,
        size="2,32,2",
        tokenizer=str(b.base),
    ),
    "a few steps": lambda b: b.go(rows(20), lr=None, max_steps=5, answers=4),
    "stopped early": lambda b: b.go(rows(), lr=5e-3, max_steps=200, patience=2, answers=4),
    "no validation": lambda b: b.go(rows(), rows={"split": "train:80"}, eval_every="0", answers=4),
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_run_is_left_alone(make: Callable[[Bench], list[Finding]], bench: Bench) -> None:
    findings = make(bench)
    assert not findings, "\n".join(line for f in findings for line in f.lines())


# --- the verb, and what is no run -----------------------------------------------------------------------------------


def test_the_verb(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.go(rows(), lr=1e-6, max_steps=30)
    assert main(["explain", str(bench.run), "--answers", "0"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("learning rate too low: ") and "    seen: " in said and "    fix:  --lr 0.0005" in said
    assert main(["explain", str(bench.run), "--json"]) == 1
    assert [f["name"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["learning rate too low"]
    assert explained(bench.run) == said.splitlines()


def test_what_is_no_run(tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        explain(small)
    assert explained(tmp_path) and "could not be looked at" in explained(tmp_path)[0]
    assert main(["explain", str(tmp_path), "--answers", "-1"]) == 2
    assert "--answers: must be an integer from 0 to 1000" in capsys.readouterr().err


def test_noise_is_no_climb() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        noisy = [max(0.0, 3.0 - 0.01 * i + rng.gauss(0, 0.8)) for i in range(100)]
        steps = [{"step": i + 1, "loss": loss} for i, loss in enumerate(noisy)]
        assert Curves.of(steps, []).climb() == (0.0, 0)
    climbing = [{"step": i + 1, "loss": 3.0 + (0.1 * i if i > 20 else 0.0)} for i in range(60)]
    rise, step = Curves.of(climbing, []).climb()
    assert rise > 5 and step == 60
