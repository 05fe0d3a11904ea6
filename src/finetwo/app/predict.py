"""`finetwo predict`: the classes of texts, from the command line or a data file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError, shown

if TYPE_CHECKING:
    from finetwo.data.columns import Columns, Kind
    from finetwo.data.source import Row
    from finetwo.generate.predict import Prediction, Predictor

_USAGE = "finetwo predict MODEL [TEXT ...] [--data FILE --out predictions.csv] [--option VALUE ...]"
_ABOUT = """Tell the classes of texts with a tuned classifier. Probabilities are calibrated on the validation data of
the training run. A model tuned on pairs of texts takes the words two by two.

examples:
  finetwo predict runs/reviews-classify "What a waste of an evening."
  finetwo predict runs/reviews-classify --data new.csv --out predictions.csv
  finetwo predict runs/reviews-classify --data new.jsonl --abstain 0.9 --json
  finetwo predict runs/pairs-entail "It rained all day." "The streets were wet."
"""
_FURTHER = "with fields that the table has no column for"
_LINES = (".jsonl", ".ndjson")
_SUFFIXES = (".csv", ".tsv", *_LINES)


@dataclass
class PredictArguments:
    """Options of `finetwo predict`."""

    data: str | None = None
    """File of texts to classify; every record gets a prediction, in order, beside its own fields."""
    out: str | None = None
    """File to write: .csv, .tsv or .jsonl (default: standard output)."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    abstain: float = 0.0
    """Give no label where the likeliest class is less probable than this; evaluate shows what it buys."""
    batch_size: int = 32
    """Texts at a time; the predictions do not depend on it."""
    max_length: int | None = None
    """Longest text in tokens (default: as in training); a longer one loses its end."""
    base: str | None = None
    """Where the base of an adapter is."""
    revision: str | None = None
    """Revision of a hub model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    quantize: Literal["int8", "int4"] | None = None
    """Keep the weights in int8 or int4: smaller and faster on a CPU, a little less exact; an adapter is merged."""
    json: bool = False
    """One JSON object per text, with the probability of every class."""


def _settle(arguments: PredictArguments, words: Words) -> PredictArguments:
    """Check everything that needs no model."""
    words.expect("predict", 1, float("inf"), "no model given", _USAGE)
    if not 0 <= arguments.abstain <= 1:
        raise InputError("--abstain", "must be a probability from 0 to 1", arguments.abstain, "0.9 is a strict choice")
    for name in ("batch_size", "max_length"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}", "must be an integer >= 1", value, "give 1 or more")
    arguments.rows.check()
    for name, usual in (("split", None), ("labels", None), ("on_long", "truncate"), ("on_overlap", "warn")):
        value = getattr(arguments.rows, name)
        if value != usual:
            what = "is for training; here every record gets a prediction"
            raise InputError(f"--rows.{name}", what, value, "leave it out")
    if words.print_config:
        return arguments
    if len(words.positional) < 2 and arguments.data is None:
        raise InputError("predict", "no text given", None, f'finetwo predict {words.positional[0]} "TEXT", or --data')
    if len(words.positional) > 1 and arguments.data is not None:
        raise InputError("--data", "texts are given as words too", arguments.data, "give one of them")
    if arguments.out is not None:
        _check_out(arguments)
    return arguments


def _check_out(arguments: PredictArguments) -> None:
    out = Path(str(arguments.out))
    if out.suffix.lower() not in _SUFFIXES:
        raise InputError("--out", f"must end in {', '.join(_SUFFIXES)}", str(out), "name it predictions.csv")
    if arguments.json and out.suffix.lower() not in _LINES:
        raise InputError("--json", "the file to write is a table", str(out), "leave one out, or name it .jsonl")
    if out.exists() or out.is_symlink():
        raise InputError("--out", "exists already", str(out), "give a new name, or remove it")
    if not out.parent.is_dir():
        raise InputError("--out", "its folder is not there", str(out), f"make the folder {out.parent}")


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(PredictArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name, *texts) = asked
    from finetwo.generate.predict import open_predictor
    from finetwo.train.start import pick_device

    device = str(pick_device(arguments.device))
    predictor = open_predictor(name, arguments.base, arguments.revision, device, arguments.quantize)
    if arguments.max_length is not None:
        predictor.max_length = min(arguments.max_length, predictor.network.config.n_positions)
    if arguments.data is None:
        _answer_words(predictor, texts, arguments)
    else:
        _answer_file(predictor, arguments.data, arguments)
    return 0


def _found(predictor: Predictor) -> list[str]:
    """The names of what a prediction adds to a record."""
    return ["prediction", "probability", *(f"p({name})" for name in predictor.labels)]


def _content(document: Mapping[str, Any], found: Prediction | None) -> dict[str, Any]:
    """One line of output: the record's own fields, then what was found; nothing for a record without text."""
    if found is None:
        return {**document, "prediction": None, "probability": None}
    return {
        **document,
        "prediction": found.label,
        "probability": round(found.probability, 6),
        **{f"p({name})": round(value, 6) for name, value in found.probabilities.items()},
    }


def _answer_words(predictor: Predictor, texts: list[str], arguments: PredictArguments) -> None:
    documents: list[dict[str, str]] = [{"text": text} for text in texts]
    if predictor.pairs:
        if len(texts) % 2:
            fix = 'finetwo predict MODEL "FIRST" "SECOND"'
            raise InputError("predict", "this model reads pairs of texts", f"{len(texts)} texts", fix)
        documents = [{"first": a, "second": b} for a, b in zip(texts[::2], texts[1::2], strict=True)]
    answers = predictor.predict(documents, batch_size=arguments.batch_size, abstain=arguments.abstain)
    if not arguments.json and arguments.out is None:
        for document, found in zip(documents, answers, strict=True):
            label = "(abstains)" if found.label is None else found.label
            text = " | ".join(shown(value) for value in document.values())
            sys.stdout.write(f"{shown(label):<16} {found.probability:6.1%}  {text}\n")
        return
    with _writer(arguments, [*documents[0], *_found(predictor)]) as write:
        for document, found in zip(documents, answers, strict=True):
            write(_content(document, found))


def _answer_file(predictor: Predictor, name: str, arguments: PredictArguments) -> None:
    """Stream a file's records through the model; each gives one line of output."""
    from finetwo.app.console import say
    from finetwo.data.columns import detect_columns
    from finetwo.data.source import find_files, read_rows
    from finetwo.store.hub_data import data_path

    path = data_path(name, say)
    files = [file for group in find_files(path).values() for file in group]
    rows = chain.from_iterable(read_rows(file, arguments.rows, say) for file in files)
    first = next(rows)
    kind: Kind = "entail" if predictor.pairs else "classify"
    columns = detect_columns(list(first.fields), arguments.rows.columns, first.where, kind, labelled=False)
    columns = replace(columns, label=None)
    say(columns.describe())
    own = list(first.fields)
    counts = {"records": 0, "empty": 0, "abstained": 0, "truncated": 0, _FURTHER: 0}
    if double := sorted(set(own) & set(_found(predictor))):
        say(f"{path}: has {', '.join(double)} already; the new ones take their place")
    with _writer(arguments, list(dict.fromkeys([*own, *_found(predictor)]))) as write:
        for row, found in _predicted(predictor, chain([first], rows), columns, arguments):
            counts["records"] += 1
            counts["empty"] += found is None
            counts["abstained"] += found is not None and found.label is None
            counts["truncated"] += found is not None and found.truncated
            counts[_FURTHER] += not (_as_json(arguments) or row.fields.keys() <= first.fields.keys())
            write(_content(row.fields, found))
    left = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number and name != "records")
    where = f" written to {arguments.out}" if arguments.out else ""
    say(f"{path}: {counts['records']:,} predictions{where}" + (f" ({left})" if left else ""))


def _predicted(
    predictor: Predictor, rows: Iterator[Row], columns: Columns, arguments: PredictArguments
) -> Iterator[tuple[Row, Prediction | None]]:
    """Every row with its prediction, some thousand at a time; None for a row whose text is empty."""
    from itertools import islice

    from finetwo.data.selecting import select

    while window := list(islice(rows, 2048)):
        fields = [select(row, columns) for row in window]
        needed = ("first", "second") if predictor.pairs else ("text",)
        full = [all(taken[name].strip() for name in needed) for taken in fields]
        if arguments.rows.on_empty == "error" and not all(full):
            raise InputError(window[full.index(False)].where, "empty text", None, "fill it in, or --rows.on_empty skip")
        documents = [taken for taken, there in zip(fields, full, strict=True) if there]
        answers = predictor.predict(documents, batch_size=arguments.batch_size, abstain=arguments.abstain)
        for row, there in zip(window, full, strict=True):
            yield row, next(answers) if there else None


@contextmanager
def _writer(arguments: PredictArguments, names: list[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes one record as the options say; a file appears only when all of it is written."""
    from io import TextIOWrapper

    from finetwo.core.files import replacing

    if arguments.out is None:
        yield _lines(sys.stdout) if _as_json(arguments) else _table(sys.stdout, ",", names)
        return
    out = Path(arguments.out)
    with replacing(out) as raw:
        stream = TextIOWrapper(raw, encoding="utf-8", newline="")
        delimiter = "\t" if out.suffix.lower() == ".tsv" else ","
        yield _lines(stream) if _as_json(arguments) else _table(stream, delimiter, names)
        stream.flush()
        stream.detach()


def _as_json(arguments: PredictArguments) -> bool:
    return arguments.json if arguments.out is None else Path(arguments.out).suffix.lower() in _LINES


def _lines(stream: Any) -> Callable[[Mapping[str, Any]], None]:
    """Write records as JSON lines."""
    return lambda record: stream.write(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n")


def _table(stream: Any, delimiter: str, names: list[str]) -> Callable[[Mapping[str, Any]], None]:
    """Write records as a table with a header, what is no text or number as JSON."""
    import csv
    from io import StringIO

    line = StringIO()
    # with this line end the module puts quotes around a carriage return, too
    writer = csv.writer(line, delimiter=delimiter, lineterminator="\r\n")

    def put(cells: Sequence[object]) -> None:
        writer.writerow(cells)
        stream.write(line.getvalue().removesuffix("\r\n") + "\n")
        line.seek(0)
        line.truncate()

    def write(record: Mapping[str, Any]) -> None:
        values = (_plain(record.get(name)) for name in names)
        put([json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for v in values])

    put(names)
    return write


def _plain(value: object) -> Any:
    """A value of a record as JSON content; None for what has no such form."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if isinstance(value, str | int | float | None) and is_finite else None
