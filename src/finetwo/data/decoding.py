"""Turns byte pieces into text pieces and lines, exactly.

It knows nothing of files on disk, formats or records. Its invariant: no character is replaced or dropped (but a
leading byte order mark), and a line ends at a line feed only, never at U+2028 or a form feed.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator

from finetwo.core.errors import InputError

MAX_RECORD = 16 << 20
"""Longest line, record or field, in characters."""

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def too_long(where: str, what: str) -> InputError:
    """Return the error for a `what` (line, record, field) beyond `MAX_RECORD` characters."""
    limit = f"longer than the limit of {MAX_RECORD >> 20} MiB ({MAX_RECORD:,} characters)"
    return InputError(where, f"{what} is {limit}", fix="split it into shorter records")


def check_encoding(encoding: str) -> str:
    """Return the canonical name of a text encoding, or raise InputError for --rows.encoding."""
    try:
        name = codecs.lookup(encoding).name
        b"a".decode(name)
    except (LookupError, ValueError) as error:
        if not isinstance(error, UnicodeError):
            raise InputError(
                "--rows.encoding", "not a text encoding", encoding, "use utf-8, utf-16, cp1252, latin-1, ..."
            ) from error
    return name


def decoded(chunks: Iterator[bytes], encoding: str, file: str, on_note: Callable[[str], None]) -> Iterator[str]:
    """Yield the text of `chunks`; a UTF-8 byte order mark is dropped and said.

    Raises:
        InputError: bytes that are not `encoding`, with the byte offset, the line and a guess at the encoding.
    """
    name = check_encoding(encoding)
    decoder = codecs.getincrementaldecoder(name)("strict")
    fed, lines, started = 0, 1, False
    for chunk in _with_end(chunks):
        if fed == 0 and name == "utf-8":
            _refuse_wide(chunk, file)
        fed += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
            if name != "utf-8":
                text.encode()
        except UnicodeEncodeError as error:
            raise InputError(file, f"lone surrogates after decoding as {name}", fix="check --rows.encoding") from error
        except UnicodeError as error:
            raise _not_text(error, file, name, fed, lines) from error
        if text and not started:
            started = True
            if text[0] == "\ufeff":
                text = text[1:]
                on_note(f"{file}: a byte order mark (BOM) at the start is left out")
        lines += text.count("\n")
        if text:
            yield text


def _with_end(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a first piece of at least 64 bytes where there are so many, then the rest, then b'' for the end."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 64:
            yield head
            break
    else:
        if head:
            yield head
    yield from chunks
    yield b""


def _refuse_wide(head: bytes, file: str) -> None:
    """Refuse UTF-16 and UTF-32, told by their byte order mark or by a NUL in every other byte."""
    guess = next((name for bom, name in _BOMS if head.startswith(bom)), "")
    sign = "starts with its byte order mark (BOM)"
    even, odd = head[:64:2], head[1:64:2]
    if not guess and len(odd) >= 2 and any(even) != any(odd):
        guess, sign = ("utf-16-le" if any(even) else "utf-16-be"), "every other byte is NUL"
    if guess:
        raise InputError(
            file, f"not UTF-8 at byte offset 0: {sign}, it looks like {guess}", fix=f"--rows.encoding {guess}"
        )


def _not_text(error: UnicodeError, file: str, name: str, fed: int, lines: int) -> InputError:
    if not isinstance(error, UnicodeDecodeError):
        return InputError(file, f"cannot be decoded as {name}: {error}", fix="check --rows.encoding")
    offset = max(0, fed - len(error.object) + error.start)
    line = lines + error.object[: error.start].count(b"\n")
    bad = error.object[error.start : error.start + 1]
    where = f"not {name.upper()} at byte offset {offset} (line {line})"
    if not bad or error.reason == "unexpected end of data":
        return InputError(file, f"{where}: the last character is cut off", fix="download or write the file again")
    guess = "cp1252" if b"\x80" <= bad < b"\xa0" else "latin-1"
    if name != "utf-8":
        return InputError(file, f"{where}: {error.reason}", fix="give the file's own --rows.encoding, often utf-8")
    what = f"{where}; it looks like {guess}"
    return InputError(file, what, f"byte 0x{bad.hex()}", f"--rows.encoding {guess}, or save the file as UTF-8")


def numbered_lines(chunks: Iterator[str], file: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line feed); raise InputError beyond `MAX_RECORD` characters."""
    number, waiting, size = 1, [""], 0
    for chunk in chunks:
        parts = chunk.split("\n")
        waiting.append(parts[0])
        size += len(parts[0])
        if size > MAX_RECORD:
            raise too_long(f"{file}:{number}", "the line")
        if len(parts) == 1:
            continue
        yield number, "".join(waiting)
        number += 1
        for part in parts[1:-1]:
            yield number, part
            number += 1
        waiting, size = [parts[-1]], len(parts[-1])
    if size:
        yield number, "".join(waiting)
