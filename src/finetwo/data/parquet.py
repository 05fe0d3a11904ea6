"""Reads the records of Parquet and Arrow files, the folders of `datasets` among them; the one place that needs pyarrow.

It knows nothing of folders, hubs or of what a column means, and runs nothing that a file holds. Its invariant: memory
holds one slice of the file, and a value comes out as plain JSON (a class by its name) or as a mark that it has none.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.core.strict_json import parse_json
from finetwo.data.decoding import MAX_RECORD, too_long
from finetwo.data.json_stream import MAX_DEPTH, Unreadable
from finetwo.data.opening import TABLES, SourceFile, fault, refuse_content
from finetwo.data.unpacking import FREE_BYTES, MAX_RATIO

Fields = dict[str, object]
EXTRA = "pip install 'finetwo[data]'"
"""What brings the package that this module needs."""

_ROWS, _BYTES = 1024, 4 << 20
"""Records, and about how many bytes of them, that are taken at a time."""
_SMALL = 16
"""Bytes of a value below which it is probably a repeated one."""
_STREAM, _STREAM_END = b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\0"
_AGAIN = "download or write it again"
_CHAT = ({"role", "content"}, {"from", "value"})


def table_kind(source: SourceFile) -> str | None:
    """Return 'Parquet', 'Arrow' or 'Arrow stream' by the first bytes of an open file; None for anything else.

    Raises:
        InputError: the name says Parquet or Arrow and the content is not, or is encrypted or cut off.
    """
    name, suffix = str(source.path), source.path.suffix.lower()
    head, tail = source.ends(512)
    if head.startswith(b"PARE"):
        raise InputError(name, "an encrypted Parquet file is not read", fix="write it without encryption")
    kind = "Parquet" if head.startswith(b"PAR1") else "Arrow" if head.startswith(b"ARROW1") else None
    if kind is None and head.startswith(_STREAM) and suffix in TABLES:
        if not tail.endswith(_STREAM_END):
            raise InputError(name, "truncated Arrow stream: its end mark is missing", fix=_AGAIN)
        return "Arrow stream"
    if kind is None and suffix in TABLES and head:
        refuse_content(name, head)
        raise InputError(name, f"the name ends in {suffix} but the content is neither Parquet nor Arrow", fix=_AGAIN)
    return kind


def read_table(file: BinaryIO, name: str, kind: str, on_note: Callable[[str], None]) -> Iterator[Fields]:
    """Yield the records of an open file of the given kind (see `table_kind`).

    Raises:
        InputError: a truncated or damaged file, or a value that cannot be read, with its column and type.
        EnvironmentFault: pyarrow is not installed.
    """
    pa = _pyarrow(name, kind)
    number, features = 0, dict[str, object]()
    try:
        batches = _parquet(file, name, on_note) if kind == "Parquet" else _arrow(file, kind, name, on_note)
        for batch in batches:
            features = _features(batch.schema, name) if not number else features
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, _ROWS)
                yield from _records(part, features, name, number)
                number += part.num_rows
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of pyarrow
            raise fault(Path(name), error) from error
        what = f"truncated or damaged {kind} file after record {number}: {_first_line(error)}"
        raise InputError(name, what, fix=_AGAIN) from error


def _pyarrow(name: str, kind: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentFault(name, f"{kind} needs the package pyarrow, which is not installed", fix=EXTRA) from error
    return pyarrow


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")


# --- the file, slice by slice ----------------------------------------------------------------------------------------


def _parquet(file: BinaryIO, name: str, on_note: Callable[[str], None]) -> Iterator[Any]:
    """Yield the record batches of a Parquet file, of about `_BYTES` each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = {"buffer_size": 1 << 18, "pre_buffer": False, "page_checksum_verification": True}
    whole = pq.ParquetFile(file, **settings)
    wanted = _columns(whole.schema_arrow, name, on_note)
    # of a column's own sizes nothing is asked: pyarrow ends the process over some damaged ones
    groups = [whole.metadata.row_group(index) for index in range(whole.num_row_groups)]
    size, count = sum(group.total_byte_size for group in groups), whole.metadata.num_rows
    packed = os.fstat(file.fileno()).st_size
    if size > max(FREE_BYTES, MAX_RATIO * packed):
        what = f"unpacks to more than {MAX_RATIO}:1 (limit beyond {FREE_BYTES >> 20} MiB): a decompression bomb?"
        raise InputError(name, what, f"{size:,} bytes out of {packed:,}", "write the file anew")
    # so small only where texts are repeated: each is kept once, or a bomb of a long one would fill the memory
    plain = [n for n in wanted if not whole.schema_arrow.field(n).type.num_fields]
    words = plain if size < _SMALL * len(wanted) * count else []
    table = pq.ParquetFile(file, metadata=whole.metadata, read_dictionary=words, **settings)
    for group, about in enumerate(groups):
        rows = max(1, min(_ROWS, _BYTES * about.num_rows // max(1, about.total_byte_size)))
        try:
            yield from table.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            named = _name_column(table, group, wanted, name)
            if named is None:
                raise
            raise named from error


def _name_column(table: Any, group: int, wanted: list[str], name: str) -> InputError | None:
    """Return the error for the first column of a group that cannot be read by itself."""
    import pyarrow as pa

    for column in wanted:
        try:
            for _ in table.iter_batches(_ROWS, row_groups=[group], columns=[column], use_threads=False):
                pass
        except (pa.ArrowException, OSError, ValueError) as error:
            kind = _shown(table.schema_arrow.field(column).type)
            what = f"column '{column}' of type {kind} cannot be read in row group {group}: {_first_line(error)}"
            return InputError(name, what, fix=_AGAIN)
    return None


def _shown(kind: Any) -> str:
    """The type of a column as it was written: we read some texts as places in a list of them."""
    return str(getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind)


def _arrow(file: BinaryIO, kind: str, name: str, on_note: Callable[[str], None]) -> Iterator[Any]:
    """Yield the record batches of an Arrow file or stream, each proven sound before it is looked into."""
    from pyarrow import ipc

    if kind == "Arrow":
        with ipc.open_file(file) as table:
            wanted = _columns(table.schema, name, on_note)
            batches = (table.get_batch(index) for index in range(table.num_record_batches))
            yield from ((batch.validate(full=True) or batch).select(wanted) for batch in batches)
    else:
        with ipc.open_stream(file) as stream:
            wanted = _columns(stream.schema, name, on_note)
            yield from ((batch.validate(full=True) or batch).select(wanted) for batch in stream)


def _columns(schema: Any, name: str, on_note: Callable[[str], None]) -> list[str]:
    """Return the columns to read; InputError for two of one name, or for a type that is nested too deeply."""
    names = list(schema.names)
    double = next((n for n in names if names.count(n) > 1), None)
    if double is not None:
        raise InputError(name, f"duplicate column name '{double}'", fix="rename one of them")
    for field in schema:
        wrong = _type_fault(field.type, MAX_DEPTH)
        if wrong:
            raise InputError(name, f"column '{field.name}' of a nested type: {wrong}", fix="write it as plain columns")
    wanted = [n for n in names if not n.startswith("__index_level_")]
    if len(wanted) < len(names):
        on_note(f"{name}: the index column that pandas wrote is left out")
    if not wanted:
        raise InputError(name, "0 columns", fix="give a file that holds records")
    return wanted


def _type_fault(kind: Any, levels: int) -> str:
    """Say what is wrong with a type however deep inside: too many levels, or one name twice; '' where nothing is."""
    from pyarrow import types

    if not levels:
        return f"deeper than the limit of {MAX_DEPTH} levels"
    inner = [kind.field(index) for index in range(kind.num_fields)]
    names = [field.name for field in inner]
    if types.is_struct(kind) and len(set(names)) != len(names):
        return f"duplicate name '{next(n for n in names if names.count(n) > 1)}'"
    return next((wrong for field in inner if (wrong := _type_fault(field.type, levels - 1))), "")


# --- from columns to records -----------------------------------------------------------------------------------------


def _records(batch: Any, features: Fields, name: str, before: int) -> Iterator[Fields]:
    """Yield the rows of a batch whose first is record `before` + 1."""
    columns: list[list[object]] = []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        try:
            columns.append(_plain(column, features.get(field.name)))
        except (ValueError, TypeError, NotImplementedError) as error:
            row = next((i for i in range(batch.num_rows) if not _fits(column.slice(i, 1), features.get(field.name))), 0)
            what = f"column '{field.name}' of type {_shown(field.type)}: {_first_line(error)}"
            raise InputError(f"{name}: record {before + row + 1}", what, fix="correct the value") from error
    names = batch.schema.names
    for number, values in enumerate(zip(*columns, strict=True), start=before + 1):
        long = next((n for n, v in zip(names, values, strict=True) if isinstance(v, str) and len(v) > MAX_RECORD), None)
        if long is not None:
            raise too_long(f"{name}: record {number}", f"the field '{long}'")
        yield dict(zip(names, values, strict=True))


def _fits(column: Any, feature: object) -> bool:
    try:
        _plain(column, feature)
    except (ValueError, TypeError, NotImplementedError):
        return False
    return True


def _features(schema: Any, name: str) -> Fields:
    """Return what `datasets` noted of the columns (the names of classes), {} where it noted nothing."""
    noted = (schema.metadata or {}).get(b"huggingface")
    if noted is None:
        return {}
    try:
        table = parse_json(noted.decode("utf-8"), f"{name}: its note 'huggingface'")
    except (FineTwoError, UnicodeDecodeError) as error:
        raise InputError(name, f"the note of `datasets` in it is damaged: {_first_line(error)}", fix=_AGAIN) from error
    for key in ("info", "features"):
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}


def _plain(array: Any, feature: object = None) -> list[object]:
    """Return a column as plain values; classes by name, lists of structs as lists of dictionaries.

    Raises:
        ValueError: text that is not UTF-8, or a class beyond the names.
    """
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        words = _plain(array.dictionary, feature)
        return [None if index is None else words[index] for index in array.indices.to_pylist()]
    if hasattr(kind, "storage_type"):
        return _plain(array.storage, feature)
    if types.is_struct(kind):
        return _structs(array, feature)
    if hasattr(kind, "value_field"):  # each kind of list
        return _lists(array, feature)
    if types.is_integer(kind):
        return _classes(array.to_pylist(), feature)
    if types.is_floating(kind):
        return [None if value is None else float(value) for value in array.to_pylist()]
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind) or types.is_null(kind):
        return list(array.to_pylist())
    if types.is_string_view(kind):
        return list(array.cast("large_string").to_pylist())
    mark = Unreadable(str(kind))
    return [mark if there else None for there in array.is_valid().to_pylist()]


def _lists(array: Any, feature: object) -> list[object]:
    from pyarrow import compute

    inner = feature.get("feature") if isinstance(feature, dict) else None
    if isinstance(feature, list) and len(feature) == 1:  # how older versions of `datasets` write a list
        inner = feature[0]
    values = iter(_plain(array.flatten(), inner))
    lengths = compute.list_value_length(array).to_pylist()
    return [None if length is None else list(itertools.islice(values, length)) for length in lengths]


def _structs(array: Any, feature: object) -> list[object]:
    """Structs as dictionaries; one of lists, as `datasets` stores a conversation, as the list it was."""
    names = [array.type.field(index).name for index in range(array.type.num_fields)]
    inner: Mapping[str, object] = feature if isinstance(feature, dict) else {}
    turned = inner.get("_type") == "Sequence" and isinstance(inner.get("feature"), dict)
    if turned:
        listed = inner["feature"]
        inner = {key: {"feature": value} for key, value in listed.items()} if isinstance(listed, dict) else {}
    columns = [_plain(part, inner.get(name)) for name, part in zip(names, array.flatten(), strict=True)]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)] or [{} for _ in array]
    if turned or set(names) in _CHAT:
        rows = [_turn(row) for row in rows]  # type: ignore[misc]
    return [row if there else None for row, there in zip(rows, array.is_valid().to_pylist(), strict=True)]


def _turn(row: Fields) -> object:
    """A dictionary of equally long lists as a list of dictionaries; anything else as it is."""
    lengths = {len(value) if isinstance(value, list) else -1 for value in row.values()}
    if len(lengths) != 1 or -1 in lengths:
        return row
    return [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]


def _classes(values: list[Any], feature: object) -> list[object]:
    """Whole numbers as the names of their classes where the column has such names; -1 stands for no class."""
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return values
    bad = next((v for v in values if v is not None and not -1 <= v < len(names)), None)
    if bad is not None:
        raise ValueError(f"{bad} is not one of its {len(names)} classes")
    return [None if v is None or v == -1 else names[v] for v in values]
