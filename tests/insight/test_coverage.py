"""The certificate: ours passes, each fault is named and alone, and two known preparations are flagged with theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.insight.planted import Words, write

from finetwo.core.config import TrainConfig
from finetwo.data.examples import Loaded, load_splits
from finetwo.data.loader import Loader
from finetwo.data.records import Records
from finetwo.data.sequences import IGNORE
from finetwo.data.sequences import Sequence as Encoded
from finetwo.insight.coverage import Certificate, certify
from finetwo.insight.laid import Laid, Piece, Table, laid, tell
from finetwo.insight.ours import certify_masks, certify_records, certify_stream, count_padding, lay, pieces_of
from finetwo.tasks.registry import find_task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.prepare import Prepared, detect_task
from finetwo.train.prepared import Wanted, prepare

LENGTH = 120


def ready(path: Path, tokenizer: Tokenizer, folder: Path, **settings: Any) -> tuple[Prepared, Loaded | None]:
    """Data as training prepares it, and its records."""
    config = TrainConfig(data=str(path), max_length=LENGTH, **settings)
    task = detect_task(config, path)
    made = prepare(Wanted(config, path, task, tokenizer), folder / "cache", folder / "made", lambda _: None)
    stream = task.layout == "stream"
    return made, None if stream else load_splits(path, config.rows, config.seed, lambda _: None, task.kind)


def failed(certificate: Certificate) -> dict[str, int]:
    return {check.name: check.failed for check in certificate.failures()}


# --- ours ---------------------------------------------------------------------------------------------------------


def talks(words: Words) -> list[dict[str, Any]]:
    def talk(turns: int) -> dict[str, Any]:
        roles = ["system", *["user", "assistant"] * (turns // 2)] if turns % 3 else ["user", "assistant"] * (turns // 2)
        return {"messages": [{"role": role, "content": words.text(3)} for role in roles]}

    return [talk(2 + 2 * (i % 3)) for i in range(24)]


def kinds() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    words = Words(3)
    odd = ["Zoë's crème 猫", " leading and trailing ", "{braces} and \ue000 a private mark", "two\n\nlines", "🙂"]
    plain = [words.record(4, 4) for _ in range(20)] + [{"prompt": t, "completion": t[::-1]} for t in odd]
    inputs = [
        {"instruction": r["prompt"], "input": t, "output": r["completion"]} for r, t in zip(plain, odd * 5, strict=True)
    ]
    long = [*plain, words.record(3, 60), words.record(60, 3), words.record(2, 2)]
    texts = [{"text": words.text(4), "label": "ab"[i % 2]} for i in range(24)] + [
        {"text": words.text(90), "label": "a"}
    ]
    pairs = [{"premise": words.text(4), "hypothesis": words.text(3), "label": i % 3} for i in range(30)]
    pairs += [{"premise": words.text(90), "hypothesis": words.text(3), "label": 1}]
    return {
        "alpaca": (plain, {}),
        "inputs": (inputs, {"template": "dolly"}),
        "plain": (long, {"template": "plain"}),
        "own": (plain, {"template": "Q: {prompt}\nA: "}),
        "talks": (talks(words), {}),
        "classify": (texts, {"task": "classify"}),
        "entail": (pairs, {}),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_our_own_preparation_passes(kind: str, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows, settings = kinds()[kind]
    path = write(tmp_path / "d.jsonl", rows)
    made, loaded = ready(path, tiny_tokenizer, tmp_path, **settings)
    assert loaded is not None
    heard: list[Laid] = []
    found = certify_records(made, loaded, tiny_tokenizer, LENGTH, lambda record, told: heard.append(record))
    assert failed(found) == {}, found.lines()
    assert found.ok and found.records == sum(map(len, made.splits().values())) == len(heard)
    kept = len(rows) - made.counts.get("too_long", 0)
    assert found.records == kept and found.check("all records there").of == kept
    assert sum(not record.whole for record in heard) == made.counts.get("truncated", 0)
    tokens = sum(len(data.get(i, 0)) for data in made.splits().values() for i in range(len(data)))
    learned = sum(data.get(i, 0).learned for data in made.splits().values() for i in range(len(data)))
    assert sum(found.learned.values()) == learned
    if made.labels:
        assert found.learned["class"] == found.records and sum(found.tokens.values()) == tokens
    else:
        assert found.learned["answer"] + found.learned["end"] == learned
        assert found.tokens["answer"] == found.learned["answer"]
        assert found.tokens["header"] > 0


def test_a_stream_passes_and_a_wrong_one_does_not(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    words = Words(4)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"{words.text(200)}\ncafé 🙂\n", encoding="utf-8")
    made, _ = ready(folder, tiny_tokenizer, tmp_path)
    found = certify_stream(made, tiny_tokenizer)
    assert failed(found) == {}
    corpora = [data.corpus for data in made.splits().values()]  # type: ignore[attr-defined]
    assert found.tokens["answer"] + found.tokens["end"] == sum(len(c.tokens) for c in corpora)
    assert found.learned["answer"] + found.learned["end"] == sum(len(c.tokens) - 1 for c in corpora)
    tokens = np.array(corpora[0].tokens)
    tokens[41] = tiny_tokenizer.eot
    corpora[0].tokens = tokens
    assert "text as written" in failed(certify_stream(made, tiny_tokenizer))


def test_padding_is_counted_as_it_is_laid_out(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", kinds()["alpaca"][0])
    made, _ = ready(path, tiny_tokenizer, tmp_path)
    for packing, padding in ((None, False), (False, True)):
        found = Certificate()
        count_padding(found, Loader(made.train, 4, 2, packing, 0), made.train)
        assert failed(found) == {} and bool(found.tokens["padding"]) is padding
    sizes = [len(made.train.get(i, 0)) for i in range(len(made.train))]
    single = Certificate()
    count_padding(single, Loader(made.train, len(made.train), 1, False, 0), made.train)
    assert single.tokens["padding"] == max(sizes) * len(sizes) - sum(sizes)


def test_masks_alone_are_looked_at_where_texts_are_not_there(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    for kind in ("alpaca", "classify"):
        rows, settings = kinds()[kind]
        made, _ = ready(write(tmp_path / f"{kind}.jsonl", rows), tiny_tokenizer, tmp_path / kind, **settings)
        found = certify_masks(made, tiny_tokenizer)
        assert failed(found) == {} and found.records == sum(map(len, made.splits().values()))
        assert isinstance(made.train, Records)
        targets = np.array(made.train.targets)
        at = np.flatnonzero(targets != IGNORE)[0]
        targets[at : at + 1] = IGNORE if kind == "classify" else (targets[at] + 1) % 300
        made.train = replace(made.train, targets=targets)
        assert sum(failed(certify_masks(made, tiny_tokenizer)).values()) == 1


# --- one fault at a time --------------------------------------------------------------------------------------------

Change = Callable[[Encoded, int], Encoded]


def _set(sequence: Encoded, at: int, value: int) -> Encoded:
    targets = sequence.targets.copy()
    targets[at] = value
    return Encoded(sequence.tokens, targets)


def first(s: Encoded) -> int:
    return int(np.flatnonzero(s.targets != IGNORE)[0])


FAULTS: dict[str, tuple[Change, set[str]]] = {
    "the prompt is learned": (lambda s, eot: _set(s, 0, int(s.tokens[1])), {"prompt in loss"}),
    "the header is learned": (
        lambda s, eot: _set(s, first(s) - 1, int(s.tokens[first(s)])),
        {"header in loss"},
    ),
    "a token of the answer is not learned": (
        lambda s, eot: _set(s, first(s) + 1, IGNORE),
        {"answer in loss", "answers byte for byte"},
    ),
    "the end is not learned": (lambda s, eot: _set(s, -1, IGNORE), {"end-of-text there"}),
    "there is no end": (
        lambda s, eot: Encoded(s.tokens[:-1], s.targets[:-1]),
        {"end-of-text there"},
    ),
    "another token is learned": (
        lambda s, eot: _set(s, first(s), (int(s.targets[first(s)]) + 1) % 256),
        {"text as written", "answers byte for byte"},
    ),
    "the beginning is gone": (lambda s, eot: Encoded(s.tokens[2:], s.targets[2:]), {"text as written"}),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_each_fault_is_named(fault: str, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    change, wanted = FAULTS[fault]
    template = "Frage {prompt} Antwort: " if fault == "the header is learned" else "{prompt} Antwort: "
    path = write(tmp_path / "d.jsonl", [Words(i).record(5, 5) for i in range(12)])
    made, loaded = ready(path, tiny_tokenizer, tmp_path, template=template)
    assert loaded is not None
    task, table = find_task("instruct"), Table(tiny_tokenizer)
    example = loaded.splits["train"][0]
    pieces = pieces_of(task, example.fields, made.template)
    good = made.train.get(0, 0)
    assert certify([lay(good, "here", pieces, LENGTH, table)], tiny_tokenizer, 1).ok
    bad = change(good, tiny_tokenizer.eot)
    record = lay(bad, "here", pieces, LENGTH, table)
    found = certify([record], tiny_tokenizer, 1)
    shifts = fault in ("another token is learned", "the beginning is gone")  # and so tells of more than itself
    assert set(failed(found)) >= wanted if shifts else set(failed(found)) == wanted, found.lines()
    assert all(check.places == ["here"] for check in found.failures())


def test_missing_records_are_counted(tiny_tokenizer: Tokenizer) -> None:
    assert failed(certify([], tiny_tokenizer, 3)) == {"all records there": 3}


# --- the preparations of seeds 000 and 002 --------------------------------------------------------------------------


def texts() -> list[tuple[str, str, str]]:
    words = Words(12)
    return [(f"{words.text(4)}?", words.text(5), f"{words.text(4)}.") for _ in range(6)]


def padded(ids: Sequence[int], pad: int, length: int = 200) -> tuple[list[int], list[bool]]:
    assert len(ids) < length
    return [*ids, *[pad] * (length - len(ids))], [i < len(ids) for i in range(length)]


def as_seed_000(tokenizer: Tokenizer) -> list[Laid]:
    """Seed 000: loss from the prefix's end to the end of the padding, a prefix without the last header, no end."""
    found = []
    for prompt, context, answer in texts():
        prefix = f"### Instruction: {prompt}\n\n### Context: {context}"
        header = "\n\n### Response: "
        before = tokenizer.encode(prefix)
        ids, real = padded([*before, *tokenizer.encode(header), *tokenizer.encode(answer)], tokenizer.eot)
        mask = [0 if i < len(before) else 1 for i in range(len(ids))]
        pieces = [
            Piece("header", "### Instruction: "),
            Piece("prompt", prompt),
            Piece("header", "\n\n### Context: "),
            Piece("prompt", context),
            Piece("header", header),
            Piece("answer", answer, end=True),
        ]
        found.append(laid(f"seed 000: {prompt}", ids, mask, real, pieces))
    return found


def as_seed_002(tokenizer: Tokenizer, *, ended: bool) -> list[Laid]:
    """Seed 002: labels are a copy of the tokens, -100 where a token is the padding's, which is end-of-text."""
    found = []
    for prompt, context, answer in texts():
        head, middle, tail = "### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:\n"
        parts = [head, prompt, middle, context, tail, answer]
        own = [i for part in parts for i in tokenizer.encode(part)] + ([tokenizer.eot] if ended else [])
        ids, real = padded(own, tokenizer.eot)
        labels = np.where(np.array(ids) == tokenizer.eot, -100, ids)
        pieces = [
            Piece("answer" if p is answer else "prompt" if p in (prompt, context) else "header", p) for p in parts
        ]
        pieces[-1] = replace(pieces[-1], end=True)
        served = f"{head}{prompt}\n### Input:\n{context}{tail}"  # the other template of the same file
        found.append(laid(f"seed 002: {prompt}", ids, labels != -100, real, pieces, served=served))
    return found


def test_seed_000_is_flagged_fault_by_fault(tiny_tokenizer: Tokenizer) -> None:
    records = as_seed_000(tiny_tokenizer)
    found = certify(records, tiny_tokenizer, len(records))
    real = sum(int(record.real.sum()) for record in records)
    header = sum(len(tiny_tokenizer.encode("\n\n### Response: ")) for _ in records)
    assert failed(found) == {
        "padding in loss": 200 * len(records) - real,
        "header in loss": header,
        "end-of-text there": len(records),
    }
    lines = "\n".join(found.lines())
    assert "padding tokens carry loss: seed 000: " in lines and "never learns to stop" in lines


def test_seed_002_is_flagged_fault_by_fault(tiny_tokenizer: Tokenizer) -> None:
    records = as_seed_002(tiny_tokenizer, ended=False)
    found = certify(records, tiny_tokenizer, len(records))
    assert set(failed(found)) == {"prompt in loss", "header in loss", "end-of-text there", "prompt as served"}
    records = as_seed_002(tiny_tokenizer, ended=True)  # an end that the collator takes for padding
    found = certify(records, tiny_tokenizer, len(records))
    assert set(failed(found)) == {"prompt in loss", "header in loss", "end-of-text learned", "prompt as served"}
    assert failed(found)["end-of-text learned"] == failed(found)["prompt as served"] == len(records)
    assert "is padding told by the end-of-text id?" in "\n".join(found.lines())


def test_a_preparation_without_fault_passes_in_the_same_form(tiny_tokenizer: Tokenizer) -> None:
    found = []
    for record in as_seed_002(tiny_tokenizer, ended=True):
        table = Table(tiny_tokenizer)
        told = tell(record, table)
        mask = np.isin(told.roles, (2, 3))
        served = "".join(p.text for p in record.pieces[:-1])
        found.append(laid(record.where, record.tokens, mask, record.real, record.pieces, served=served))
    assert failed(certify(found, tiny_tokenizer, len(found))) == {}


def test_lines_and_json_tell_the_same(tiny_tokenizer: Tokenizer) -> None:
    records = as_seed_000(tiny_tokenizer)
    records[0] = replace(records[0], where="hostile \x1b[31m\n name")
    found = certify(records, tiny_tokenizer, len(records))
    content = json.loads(json.dumps(found.to_dict()))
    assert content["ok"] is False and content["records"] == len(records)
    by_name = {check["name"]: check for check in content["checks"]}
    assert {n for n, c in by_name.items() if not c["ok"]} == set(failed(found))
    for line in found.lines():
        assert line.isprintable()
    assert found.check("padding in loss").brief().startswith("padding in loss: ")
    assert Template.named("dolly").text.startswith("### Instruction")
