"""Tokenising records of instructions: FineTwo's preparation against the Hugging Face fast tokeniser, a process each.

    python benchmarks/data.py [--megabytes 16] [--data FILE] [--tokenizer FOLDER] [--smoke]

Ours is the whole way from records to sequences with targets; the peers get the finished texts and only encode. Where
prompt and answer are encoded apart, counts of tokens must be equal, or the script fails.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import PARTIAL, Bench, Workload, options
from running import emit, script_side
from surroundings import ROOT
from workloads import records, size_of

EMBEDDED = ROOT / "src" / "finetwo" / "assets" / "tiny"
MUST, AIM = 4.0, 6.0


def timed(work: Any) -> tuple[Any, float]:
    """What `work` returns, and the seconds it took."""
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def told(seconds: float, size: int, tokens: int) -> None:
    """Hand over a side's figures."""
    emit({"value": size / seconds / 1e6, "seconds": seconds, "tokens": tokens})


# --- the sides -------------------------------------------------------------------------------------------------------


def ours(content: dict[str, Any], folder: str) -> None:
    """FineTwo's preparation: records to sequences."""
    from finetwo.core.config import TrainConfig
    from finetwo.data.columns import Columns
    from finetwo.data.examples import Example, Loaded
    from finetwo.tasks.registry import find_task
    from finetwo.text.template import Template
    from finetwo.text.tokenizer import Tokenizer
    from finetwo.train.prepare import prepare_records

    tokenizer, task, template = Tokenizer.load(folder), find_task("instruct"), Template.named("alpaca")
    tokenizer.encode_flat(["warm"])
    examples = [Example(fields, "records", n, n) for n, fields in enumerate(content["fields"], 1)]
    loaded = Loaded({"train": examples, "validation": [], "test": []}, Columns(), {}, "", "records")

    def prepare() -> Any:
        return prepare_records(loaded, task, template, tokenizer, TrainConfig(), 1 << 20, lambda _: None)

    prepared, seconds = timed(prepare)
    told(seconds, content["size"], sum(len(prepared.train.get(i, 0)) + 1 for i in range(len(prepared.train))))


def fast(folder: str) -> Any:
    """The Hugging Face fast tokeniser of a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=1 << 30)
    tokenizer(["warm", "up"])
    return tokenizer


def peer_pieces(content: dict[str, Any], folder: str) -> None:
    """The fast tokeniser, batch of prompts and answers, as FineTwo encodes them: apart."""
    texts = [text for pair in content["pieces"] for text in pair]
    tokenizer = fast(folder)
    ids, seconds = timed(lambda: tokenizer(texts)["input_ids"])
    told(seconds, content["size"], sum(map(len, ids)) + len(content["pieces"]))


def peer_whole(content: dict[str, Any], folder: str) -> None:
    """The fast tokeniser, batch of whole records."""
    texts = [prompt + answer for prompt, answer in content["pieces"]]
    tokenizer = fast(folder)
    ids, seconds = timed(lambda: tokenizer(texts)["input_ids"])
    told(seconds, content["size"], sum(map(len, ids)) + len(content["pieces"]))


def peer_tiktoken(content: dict[str, Any], folder: str) -> None:
    """The library tiktoken by itself with GPT-2's usual pattern, one text after another."""
    import tiktoken

    from finetwo.text.tokenizer import Tokenizer
    from finetwo.text.vocabulary import byte_symbols

    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    tokenizer = Tokenizer.load(folder)
    v = tokenizer.vocabulary
    spelled = [*byte_symbols().values(), *(a + b for a, b in v.merges)]
    ranks = {tokenizer.bytes_of(v.ids[token]): v.ids[token] for token in spelled}
    encode = tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary
    texts = [text for pair in content["pieces"] for text in pair]
    encode("warm")
    tokens, seconds = timed(lambda: sum(len(encode(text)) for text in texts))
    told(seconds, content["size"], tokens + len(content["pieces"]))


SIDES = {"finetwo": ours, "hf, in pieces": peer_pieces, "hf, whole": peer_whole, "tiktoken, 1 thread": peer_tiktoken}


# --- the whole -------------------------------------------------------------------------------------------------------


def fields_of(asked: Any) -> list[dict[str, str]]:
    """The records by role: those of a file, or made here."""
    from finetwo.core.config import RowsConfig
    from finetwo.data.columns import detect_columns
    from finetwo.data.selecting import select
    from finetwo.data.source import read_rows

    if asked.data is None:
        found, size = [], 0
        for record in records():
            found.append({"prompt": record["instruction"], "input": record["input"], "completion": record["output"]})
            size += size_of(record)
            if size >= asked.megabytes * 1e6:
                return found
    rows = RowsConfig()
    read = list(read_rows(asked.data, rows))
    columns = detect_columns(list(read[0].fields), rows.columns, read[0].where, "instruct")
    every = (select(row, columns) for row in read)
    return [fields for fields in every if fields["completion"].strip()]


def content_of(asked: Any) -> dict[str, Any]:
    """Records, the texts that are made of them, and how many bytes these have."""
    from finetwo.text.template import Template

    template = Template.named("alpaca")
    found: list[dict[str, str]] = []
    pieces: list[tuple[str, str]] = []
    size = 0
    for fields in fields_of(asked):
        if size >= asked.megabytes * 1e6:
            break
        found.append(fields)
        pieces.append((template.prompt(fields), fields["completion"]))
        size += sum(len(text.encode("utf-8")) for text in pieces[-1])
    return {"fields": found, "pieces": pieces, "size": size}


def main(words: list[str]) -> int:
    """Run one side (hidden words), or all of them in turn."""
    if words[:1] == ["side"]:
        _, name, file, folder = words
        SIDES[name](json.loads(Path(file).read_text(encoding="utf-8")), folder)
        return 0
    sys.path.insert(0, str(ROOT / "src"))
    from finetwo.text.tokenizer import Tokenizer

    parser = options(__doc__)
    parser.add_argument("--megabytes", type=float, default=16.0, help="how much text (16)")
    parser.add_argument("--data", type=Path, help="records of instructions, in place of those made here")
    parser.add_argument("--tokenizer", type=Path, default=EMBEDDED, help="tokenizer files (the embedded base's)")
    asked = parser.parse_args(words)
    if asked.smoke:
        asked.megabytes = 0.1
    name = asked.data.name if asked.data else "made here"
    tokenizer = Tokenizer.load(asked.tokenizer)
    bench = Bench("data", asked, megabytes=asked.megabytes, data=name, vocabulary=tokenizer.vocab_size)
    PARTIAL.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PARTIAL) as work:
        tokenizer.save(work)  # every side reads the same four files
        file = Path(work) / "records"
        content = content_of(asked)
        file.write_text(json.dumps(content), encoding="utf-8")
        sides = [
            script_side(name, __file__, ["side", name, str(file), work], peer=name.startswith("hf")) for name in SIDES
        ]
        pairs = [("finetwo", "hf, in pieces", MUST, AIM), ("finetwo", "hf, whole", MUST, AIM)]
        title = f"tokenise {content['size'] / 1e6:.3g} MB of records"
        settings = {"records": len(content["fields"]), "bytes": content["size"]}
        whole = bench.measure_all([Workload(title, "MB/s", sides, pairs, group="data", settings=settings)])
    if whole:
        counts = {name: side["tokens"] for name, side in bench.workloads[0]["sides"].items()}
        bench.notes.append("tokens: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
        counts.pop("hf, whole", None)  # blanks where prompt and answer meet may become one token there
        bench.finish()
        if any(a != b for a, b in pairwise(counts.values())):
            print(f"data: the counts of tokens differ: {counts}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
