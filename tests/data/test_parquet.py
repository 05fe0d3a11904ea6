"""Parquet and Arrow files as records: the same values as `datasets` reads, and one line for what is damaged."""

from __future__ import annotations

import datetime
import os
import random
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from finetwo.core.config import ColumnsConfig, RowsConfig
from finetwo.core.errors import FineTwoError, InputError
from finetwo.data.columns import detect_columns
from finetwo.data.json_stream import Unreadable
from finetwo.data.selecting import select
from finetwo.data.source import find_files, read_rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")
datasets = pytest.importorskip("datasets")

RECORDS: list[dict[str, Any]] = [
    {"text": "é\u2028\U0001f600\x00", "number": 1, "share": 0.5, "flag": True, "list": ["a", None], "deep": {"x": [1]}},
    {"text": "", "number": None, "share": None, "flag": None, "list": None, "deep": None},
    {"text": None, "number": -(2**63), "share": 1e300, "flag": False, "list": [], "deep": {"x": None}},
]


def read(path: Path, notes: list[str] | None = None, **rows: Any) -> list[dict[str, object]]:
    said: list[str] = [] if notes is None else notes
    return [row.fields for row in read_rows(path, RowsConfig(**rows), said.append)]


def refusal(path: Path, **rows: Any) -> str:
    with pytest.raises(FineTwoError) as caught:
        read(path, **rows)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(str(path), path.name)


def write(table: Any, path: Path) -> Path:
    """Write a table as the ending of `path` says."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, compression="lz4", chunksize=2)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    return path


# --- what is well formed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_records_come_back_exactly(tmp_path: Path, name: str) -> None:
    path = write(pa.Table.from_pylist(RECORDS), tmp_path / name)
    assert read(path) == RECORDS
    rows = list(read_rows(path, RowsConfig(limit=2)))
    assert [row.number for row in rows] == [1, 2]
    assert rows[1].where == f"{path}: record 2"


@pytest.mark.parametrize(
    "kind",
    ["string", "large_string", "dictionary", "string_view"],
)
def test_every_kind_of_text_is_text(tmp_path: Path, kind: str) -> None:
    types = {"dictionary": pa.dictionary(pa.int8(), pa.string()), "string_view": pa.string_view()}
    column = pa.array(["a", None, "bé", "a"]).cast(types.get(kind) or getattr(pa, kind)())
    for name in ("a.parquet", "a.arrow"):
        assert read(write(pa.table({"text": column}), tmp_path / name)) == [{"text": t} for t in ("a", None, "bé", "a")]


def test_every_kind_of_list_and_number(tmp_path: Path) -> None:
    kinds = [pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 2), pa.list_view(pa.int8())]
    values = [[1, 2], None, [3, 4]]
    for kind in kinds:
        table = pa.table({"a": pa.array(values, kind)}).slice(1)
        assert [r["a"] for r in read(write(table, tmp_path / "a.arrow"))] == values[1:], kind
    table = pa.table({"a": pa.array([1.5, float("inf")], pa.float16()), "b": pa.array([True, None])})
    assert read(write(table, tmp_path / "b.arrow")) == [{"a": 1.5, "b": True}, {"a": float("inf"), "b": None}]


def hub_table() -> Any:
    """What `datasets` writes of classes and conversations, in its newer form."""
    value = datasets.Value("string")
    features = datasets.Features(
        {
            "text": value,
            "label": datasets.ClassLabel(names=["sad", "glad"]),
            "tags": datasets.List(datasets.ClassLabel(names=["x", "y"])),
            "messages": datasets.List({"role": value, "content": value}),
            "conversations": datasets.Sequence({"from": value, "value": value}),
        }
    )
    rows = [
        {
            "text": f"t{index}",
            "label": [0, 1, -1, None][index % 4],
            "tags": [1, 0],
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}],
            "conversations": {"from": ["human", "gpt"], "value": ["hi", "yo"]},
        }
        for index in range(9)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def check_hub_rows(rows: list[dict[str, object]]) -> None:
    reference = hub_table()
    name = reference.features["label"].int2str
    assert [r["label"] for r in rows] == [name(n) if n in (0, 1) else None for n in reference["label"]]
    assert [r["text"] for r in rows] == list(reference["text"])
    assert [r["messages"] for r in rows] == list(reference["messages"])
    assert {str(r["tags"]) for r in rows} == {"['y', 'x']"}
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    assert all(r["conversations"] == turns for r in rows)


def test_classes_by_name_and_conversations_as_lists(tmp_path: Path) -> None:
    data = hub_table()
    data.to_parquet(tmp_path / "a.parquet")
    check_hub_rows(read(tmp_path / "a.parquet"))
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    files = find_files(tmp_path / "saved")
    assert [f.name for f in files["train"]] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    check_hub_rows([row for file in files["train"] for row in read(file)])
    both = datasets.DatasetDict(train=data, dev=data, unsupervised=data)
    both.save_to_disk(tmp_path / "both")
    found = find_files(tmp_path / "both")
    assert list(found) == ["train", "validation"]
    check_hub_rows(read(found["validation"][0]))


def test_conversations_of_older_versions(tmp_path: Path) -> None:
    note = (
        b'{"info": {"features": {"turns": {"feature": {"who": {"names": ["a", "b"], "_type": "ClassLabel"}, "what": '
        b'{"dtype": "string", "_type": "Value"}}, "_type": "Sequence"}, "old": [{"k": {"names": ["p"], "_type": '
        b'"ClassLabel"}}]}}}'
    )
    rows = [{"turns": {"who": [1, 0], "what": ["x", "y"]}, "old": [{"k": 0}]}, {"turns": None, "old": None}]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({b"huggingface": note})
    assert read(write(table, tmp_path / "a.parquet")) == [
        {"turns": [{"who": "b", "what": "x"}, {"who": "a", "what": "y"}], "old": [{"k": "p"}]},
        {"turns": None, "old": None},
    ]
    uneven = pa.table({"conversations": [{"from": ["a"], "value": ["b", "c"]}]})
    assert read(write(uneven, tmp_path / "b.parquet")) == [{"conversations": {"from": ["a"], "value": ["b", "c"]}}]


def test_the_index_of_pandas_is_left_out(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "kind": pandas.Categorical(["x", "y"])}, index=[5, 7])
    frame.to_parquet(tmp_path / "a.parquet")
    notes: list[str] = []
    assert read(tmp_path / "a.parquet", notes) == [{"text": "a", "kind": "x"}, {"text": "b", "kind": "y"}]
    assert notes == [f"{tmp_path / 'a.parquet'}: the index column that pandas wrote is left out"]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """The whole file is many times what reading it may add."""
    path = tmp_path / "big.parquet"
    words = [random.Random(n).randbytes(500).hex() for n in range(4000)]
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()}), use_dictionary=False) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"text": words}))
    assert path.stat().st_size > 40_000_000
    program = f"""
        import resource
        from pathlib import Path
        import pyarrow.parquet
        from finetwo.core.config import RowsConfig
        from finetwo.data.source import read_rows
        used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        rows = read_rows(Path({str(path)!r}), RowsConfig())
        next(rows)
        before = used()
        print(sum(1 for _ in rows) + 1, used() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 80_000
    assert grown < (30 if sys.platform == "linux" else 30 << 10)


def test_a_repeated_long_text_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    indices = pa.array([0] * 50_000, pa.int32())
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(indices, ["x" * 1_000_000])}), path)
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        assert sum(len(str(row.fields["text"])) for row in read_rows(path, RowsConfig())) == 50_000_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000


# --- bad input: row 52 and its kin -----------------------------------------------------------------------------------


def select_text(path: Path) -> str:
    row = next(iter(read_rows(path, RowsConfig())))
    with pytest.raises(InputError) as caught:
        select(row, detect_columns(list(row.fields), ColumnsConfig(text="text"), row.where))
    return str(caught.value).replace(str(path), path.name)


def test_row_52_a_column_of_a_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for value, said in (
        (5, "(got a number: 5)"),
        (datetime.datetime(2020, 1, 1), "(got a value of type timestamp[us]: no JSON form)"),
        (b"x", "(got a value of type binary: no JSON form)"),
        ({"a": "b"}, "(got a nested object: {'a': 'b'})"),
        (["a"], "(got a list: ['a'])"),
        (None, "(got null)"),
    ):
        write(pa.table({"text": [value], "other": ["x"]}), path)
        assert f"a.parquet: record 1: the field 'text' (text) must be text {said}" in select_text(path)
    marked = read(write(pa.table({"when": [datetime.date(2020, 1, 1), None], "text": ["a", "b"]}), path))
    assert marked == [{"when": Unreadable("date32[day]"), "text": "a"}, {"when": None, "text": "b"}]


def test_row_52_truncated_and_damaged(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS * 50)
    whole = write(table, tmp_path / "a.parquet").read_bytes()
    for cut in (5, 100, len(whole) - 1):
        (tmp_path / "a.parquet").write_bytes(whole[:cut])
        assert "a.parquet: truncated or damaged Parquet file after record 0" in refusal(tmp_path / "a.parquet")
    pq.write_table(pa.table({"good": ["x"] * 9, "bad": [f"y{n}" for n in range(9)]}), tmp_path / "b.parquet")
    raw = bytearray((tmp_path / "b.parquet").read_bytes())
    at = pq.ParquetFile(tmp_path / "b.parquet").metadata.row_group(0).column(1).dictionary_page_offset
    raw[at : at + 12] = b"\xff" * 12
    (tmp_path / "b.parquet").write_bytes(raw)
    assert "column 'bad' of type string cannot be read in row group 0" in refusal(tmp_path / "b.parquet")
    stream = write(table, tmp_path / "c.arrow").read_bytes()
    (tmp_path / "c.arrow").write_bytes(stream[:-8])
    assert "c.arrow: truncated Arrow stream: its end mark is missing" in refusal(tmp_path / "c.arrow")
    file = write(table, tmp_path / "d.feather").read_bytes()
    (tmp_path / "d.feather").write_bytes(file[:-30])
    assert "truncated or damaged Arrow file" in refusal(tmp_path / "d.feather")


def test_row_52_nested_and_named_twice(tmp_path: Path) -> None:
    kind = pa.string()
    for _ in range(70):
        kind = pa.struct([("a", kind)])
    write(pa.table({"deep": pa.array([None], kind)}), tmp_path / "a.parquet")
    assert "column 'deep' of a nested type: deeper than the limit of 64 levels" in refusal(tmp_path / "a.parquet")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["t", "t"])
    assert "duplicate column name 't'" in refusal(write(twice, tmp_path / "b.parquet"))
    inner = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["t", "t"])
    assert "duplicate name 't'" in refusal(write(pa.table({"s": inner}), tmp_path / "c.arrow"))


def test_text_that_is_not_utf8_and_a_class_that_is_not_there(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    line = refusal(write(pa.table({"text": bad}), tmp_path / "a.parquet"))
    assert "a.parquet: record 2: column 'text' of type string: 'utf-8' codec can't decode byte 0xe9" in line
    note = b'{"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}'
    table = pa.table({"label": [0, 1, 7]}).replace_schema_metadata({b"huggingface": note})
    line = refusal(write(table, tmp_path / "b.parquet"))
    assert "b.parquet: record 3: column 'label' of type int64: 7 is not one of its 2 classes" in line
    table = table.replace_schema_metadata({b"huggingface": b"{oops"})
    assert "the note of `datasets` in it is damaged" in refusal(write(table, tmp_path / "b.parquet"))


def test_names_and_settings_that_do_not_fit(tmp_path: Path) -> None:
    good = write(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    assert "--rows.names: has no meaning for a.parquet, which is Parquet" in refusal(good, names="text")
    for name, value in (("format", "csv"), ("delimiter", ";"), ("encoding", "latin-1")):  # a recipe may hold these
        notes: list[str] = []
        rows = [row.fields for row in read_rows(good, RowsConfig(**{name: value}), notes.append)]  # type: ignore[arg-type]
        assert rows == [{"text": "a"}]
        assert any(f"--rows.{name} is not needed, as the file is Parquet" in note for note in notes)
    (tmp_path / "b.parquet").write_text("text\nhello\n" * 9)
    assert "the content is neither Parquet nor Arrow" in refusal(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refusal(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PARE" + b"\0" * 40)
    assert "an encrypted Parquet file is not read" in refusal(tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"")
    assert "0 records: the file is empty" in refusal(tmp_path / "e.parquet")
    none = write(pa.table({"text": pa.array([], pa.string())}), tmp_path / "f.parquet")
    assert "0 records: the table has no rows" in refusal(none)
    (tmp_path / "g.parquet.gz").write_bytes(b"\x1f\x8b")
    assert "Parquet and Arrow are not read packed" in refusal(tmp_path / "g.parquet.gz")
    os.rename(good, tmp_path / "a.what")
    assert read(tmp_path / "a.what") == [{"text": "a"}]


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = write(pa.table({"text": ["a"] * 9}), tmp_path / "a.parquet")
    rows = read_rows(path, RowsConfig())
    next(rows)
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match="changed while it was being read"):
        list(rows)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "Parquet needs the package pyarrow, which is not installed. Fix: pip install 'finetwo[data]'" in refusal(
        path
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_any_damage_gives_records_or_one_line(tmp_path: Path, name: str) -> None:
    """pyarrow ends the process over some damage; in a process of its own that would show."""
    write(pa.Table.from_pylist(RECORDS * 3), tmp_path / name)
    program = """
        import random, sys
        from pathlib import Path
        from finetwo.core.config import RowsConfig
        from finetwo.core.errors import InputError
        from finetwo.data.source import read_rows
        whole, path, chance, refused = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(7), 0
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(chance.choice([1, 1, 3])):
                data[chance.randrange(len(data))] = chance.choice([0, 255, chance.randrange(256)])
            path.write_bytes(data[: chance.choice([len(data), len(data), chance.randrange(len(data))])])
            try:
                list(read_rows(path, RowsConfig()))
            except InputError as error:
                assert "\\n" not in str(error)
                refused += 1
        print(refused)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / name), str(tmp_path / f"damaged-{name}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 100 < int(done.stdout) < 400
