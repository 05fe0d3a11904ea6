"""The plan of a job: what training would say, find and refuse, and nothing written."""

from __future__ import annotations

import json
import signal
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.insight.planted import Words, classes, instructions, write
from tests.standins.models import tiny_config

from finetwo import train
from finetwo.app.cli import main
from finetwo.core.config import RowsConfig, TrainConfig
from finetwo.core.errors import InputError, Stopped
from finetwo.insight.plan import Plan, make_plan
from finetwo.insight.plan_page import page
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A base of 2 layers, width 32, context 512."""
    folder = tmp_path_factory.mktemp("plan") / "base"
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=512, n_embd=32, n_layer=2, n_head=2)
    save_model(folder, Network.fresh(shape, 3), tiny_tokenizer, Extras())
    return folder


def planned(base: Path, data: Path, samples: int = 3, **settings: Any) -> Plan:
    fresh = settings.get("task") == "pretrain"
    model = {} if fresh else {"model": str(base)}
    return make_plan(TrainConfig(**model, **settings), data, lambda _: None, samples)


def counts(plan: Plan) -> dict[str, int]:
    return {f.kind: f.count for f in plan.findings}


def test_everything_planted_is_in_the_plan(base: Path, tmp_path: Path) -> None:
    wanted = instructions(tmp_path / "d")
    words = Words(77)
    path = tmp_path / "d" / "train.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for prompt, answer in ((2, 100), (2, 105), (100, 2)):  # two are cut in their answers, one has no room for any
            file.write(json.dumps(words.record(prompt, answer)) + "\n")
    plan = planned(base, tmp_path / "d")
    assert counts(plan) == wanted | {"cut": 2, "too long": 1}
    total = len(path.read_text().splitlines())
    named = {f.kind: [s.where for s in f.spots] for f in plan.findings}
    assert named["cut"] == [f"{path}:{n}: record {n}" for n in (total - 2, total - 1)]
    assert named["too long"] == [f"{path}:{total}: record {total}"]
    assert plan.counts["left out, too long"] == 1 and plan.counts["cut at max_length"] == 2
    assert plan.counts["left out, empty"] == 3 and plan.counts["train"] == total - 4
    assert (
        sum(plan.lengths.values())
        == plan.certificate.records
        == sum(plan.counts[s] for s in ("train", "validation", "test"))
    )
    assert plan.certificate.ok and plan.certificate.proof is not None and plan.certificate.proof["ok"]
    assert {r.split(":")[0] for r in plan.refused} == {"empty answer", "duplicate", "overlap"}
    assert all(str(tmp_path) in reason for reason in plan.refused)
    assert [f.kind for f in plan.findings][:3] == ["empty answer", "empty prompt", "duplicate"]


def test_clean_data_has_nothing_to_find(base: Path, tmp_path: Path) -> None:
    words = Words(5)
    data = write(tmp_path / "d.jsonl", [words.record() for _ in range(40)])
    plan = planned(base, data)
    assert plan.findings == [] and plan.refused == [] and plan.notes == []
    assert plan.to_dict()["strict"] == {"ok": True, "refused": []}


def test_it_says_what_training_says(base: Path, tmp_path: Path) -> None:
    words = Words(6)
    data = write(tmp_path / "d.jsonl", [words.record() for _ in range(40)])
    said: list[str] = []
    train(str(data), model=str(base), out=str(tmp_path / "runs"), max_steps=1, say=said.append)
    plan = planned(base, data, out=str(tmp_path / "runs"), max_steps=1)
    assert plan.said == [line for line in said if not line.startswith(("plan:", "trainable"))]


def test_nothing_is_written(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(7)
    (tmp_path / "w").mkdir()
    (tmp_path / "t").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    data = write(tmp_path / "d.jsonl", [words.record() for _ in range(20)])
    before = {p: p.stat().st_mtime_ns for p in base.rglob("*")}
    planned(base, data)
    with pytest.raises(InputError):
        planned(base, data, max_length=100_000)
    assert list((tmp_path / "w").rglob("*")) == [] and list((tmp_path / "t").rglob("*")) == []
    assert {p: p.stat().st_mtime_ns for p in base.rglob("*")} == before


def test_a_signal_leaves_nothing_behind(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    words = Words(7)
    data = write(tmp_path / "data.jsonl", [words.record() for _ in range(20)])
    seen: list[list[Path]] = []

    def stop(*given: Any) -> None:
        seen.append(list((tmp_path / "temporary").iterdir()))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("finetwo.insight.plan.estimate", stop)
    with pytest.raises(Stopped) as caught:
        planned(base, data)
    assert caught.value.exit_code == 143
    assert len(seen[0]) == 1 and list((tmp_path / "temporary").iterdir()) == []


def test_classes(base: Path, tmp_path: Path) -> None:
    wanted = classes(tmp_path / "d")
    plan = planned(base, tmp_path / "d")
    assert plan.task == "classify" and counts(plan) == wanted
    assert plan.labels["train"] == {"awe": 4, "fear": 27, "joy": 41}
    assert plan.certificate.ok and plan.certificate.learned["class"] == plan.certificate.records
    assert plan.samples[0].stretches[-1] == ("class", "joy")
    assert {r.split(":")[0] for r in plan.refused} == {"duplicate", "overlap", "label conflict"}


@pytest.mark.parametrize("task", ["style", "pretrain"])
def test_texts(base: Path, tmp_path: Path, task: str) -> None:
    words = Words(8)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(words.text(150), encoding="utf-8")
    (folder / "copy.txt").write_text((folder / "3.txt").read_text(), encoding="utf-8")
    (folder / "marked.txt").write_text(words.text(20) + " &amp; ", encoding="utf-8")
    shape = {"size": "1,16,2", "context": 64} if task == "pretrain" else {}
    plan = planned(base, folder, task=task, batch_size=2, max_steps=2, **shape)
    assert counts(plan) == {"duplicate": 1, "html": 1}
    assert plan.counts["texts"] == 14 == sum(plan.lengths.values())
    assert plan.certificate.ok and plan.certificate.tokens["end"] > 0
    assert {r for s in plan.samples for r, _ in s.stretches} <= {"answer", "end"}


def test_a_prepared_folder(base: Path, tmp_path: Path) -> None:
    words = Words(9)
    data = write(tmp_path / "d.jsonl", [words.record() for _ in range(30)])
    ready = tmp_path / "ready"
    assert main(["prepare", str(data), "--model", str(base), "--out", str(ready)]) == 0
    plan = planned(base, ready)
    assert plan.certificate.ok and plan.certificate.records == 30
    assert "holds no texts" in plan.notes[0] and plan.samples[0].where == "train: record 1"
    assert [role for role, _ in plan.samples[0].stretches] == ["prompt", "answer"]
    assert plan.estimate.steps == planned(base, data).estimate.steps


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"patience": 3, "rows": RowsConfig(split="train:1.0")}, "no validation data"),
        ({"task": "style", "template": "plain"}, "--template"),
        ({"class_weights": "balanced"}, "only for classifiers"),
        ({"max_length": 9999}, "the context"),
        ({"freeze": "nothing-is-called-so"}, "--freeze"),
        ({"template": "{nothing}"}, "no such field"),
    ],
)
def test_what_training_refuses_is_refused(base: Path, tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    words = Words(10)
    rows = [words.record() for _ in range(20)]
    data = write(tmp_path / "d.jsonl", [{"text": r["prompt"]} for r in rows] if "task" in settings else rows)
    with pytest.raises(InputError) as mine:
        planned(base, data, **settings)
    assert what in str(mine.value)
    named = settings | ({"rows": {"split": settings["rows"].split}} if "rows" in settings else {})
    with pytest.raises(InputError) as theirs:
        train(str(data), model=str(base), out=str(tmp_path / "run"), **named)
    assert str(theirs.value) == str(mine.value)


def test_without_datasketch_the_rest_is_told(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    wanted = instructions(tmp_path / "d")
    plan = planned(base, tmp_path / "d")
    assert counts(plan) == {k: n for k, n in wanted.items() if not k.startswith("near ")}
    assert any("datasketch" in note and "pip install" in note for note in plan.notes)


class Reader(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_hostile_text_and_needs_nothing(base: Path, tmp_path: Path) -> None:
    words = Words(11)
    rows = [words.record() for _ in range(20)]
    rows[0] = {
        "prompt": "<script>alert(1)</script> \x1b[31m \u202e",
        "completion": '"><img src=x onerror=y> ' + "z" * 9000,
    }
    plan = planned(base, write(tmp_path / "d.jsonl", rows), rows=RowsConfig(split="train:18,validation:2"))
    html = page(plan.to_dict())
    reader = Reader()
    reader.feed(html)
    assert not reader.tags & {"script", "img", "iframe", "link", "object"}
    assert reader.attributes <= {"class", "style", "lang", "charset"}
    text = "".join(reader.text)
    assert "<script>alert(1)</script>" in text and r"\x1b[31m" in text and r"\u202e" in text
    assert "\x1b" not in html and "\u202e" not in html and "http" not in html
    assert len(html) < 60_000
    for word in ("Loss-coverage certificate", "numeric proof", "Estimate", "Findings"):
        assert word in text
