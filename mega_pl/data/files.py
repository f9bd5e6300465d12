"""Files of JSON records: a list of them, or one a line, plain or packed by gzip; anything else is named."""

import gzip
import json
import zlib
from collections.abc import Iterator
from decimal import Decimal
from itertools import takewhile
from pathlib import Path

from mega_pl.errors import MegaValueError

_KINDS = {
    b"PK": "a zip archive",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"PAR1": "in Parquet",
    b"ARROW1": "in Arrow",
    b"\x80": "a pickle",
    b"SQLite": "a database of SQLite",
    b"%PDF": "a PDF",
    b"\xff\xfe\x00\x00": "in UTF-32",
    b"\x00\x00\xfe\xff": "in UTF-32",
    b"\xff\xfe": "in UTF-16",
    b"\xfe\xff": "in UTF-16",
    b"{\x00": "in UTF-16",
    b"[\x00": "in UTF-16",
    b"\x00": "in UTF-16 or no text",
    b"<": "a page of HTML or XML",
    b"version https://git-lfs": "a pointer of Git LFS, not yet the file itself",
}
"""What a file is that begins so and holds no records in UTF-8."""

_GZIP, _MARK = b"\x1f\x8b", "\ufeff"
_BLANK = f" \t\r\n{_MARK}"


def read_values(path: Path) -> Iterator[tuple[str, object]]:
    """Pairs of a place ("record 0", "line 1") and what stands there: a JSON value, or the error of what is none.

    Byte order marks between records, which files have that were joined from others, are passed over.

    Args:
        path: The file, in UTF-8, by itself or packed by gzip.

    Raises:
        ValueError: If there is no such file, or it is of another kind or empty.
    """
    text = _text(path)
    if not text.strip(_BLANK):
        raise MegaValueError(f"{path}: the file must hold at least one record, but it is empty.")
    if not text.lstrip(_BLANK).startswith("["):
        # not splitlines(): it would also cut at separators that JSON allows inside a string
        for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
            values, error = _values(line)
            yield from ((f"line {number}", value) for value in ([error] if error else values))
        return
    lists, error = _values(text)
    records = [record for value in lists for record in (value if isinstance(value, list) else [value])]
    if error:
        records = list(takewhile(lambda value: isinstance(value, dict), _values(text, between="[,")[0]))
    elif not records:
        raise MegaValueError(f"{path}: the list must hold at least one record, but it is empty.")
    yield from ((f"record {i}", record) for i, record in enumerate(records))
    if error:
        yield f"record {len(records)} and those after it", error


def check_file(path: str | Path) -> None:
    """Refuse a path that leads to no file.

    Raises:
        ValueError: If there is nothing, or a folder.
    """
    if Path(path).is_dir():
        raise MegaValueError(f"data must come from a file, but {str(path)!r} is a folder; name a file in it.")
    if not Path(path).is_file():
        raise MegaValueError(f"data must come from a file, but there is no {str(path)!r}.")


def _text(path: Path) -> str:
    check_file(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(_GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        raise MegaValueError(f"{path}: the file must be readable, but got {error}; get it anew.") from error
    kind = next((kind for start, kind in _KINDS.items() if data.lstrip().startswith(start)), "")
    if kind:
        raise MegaValueError(f"{path}: the file must be JSON in UTF-8, but is {kind}; convert it.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise MegaValueError(f"{path}: the file must be UTF-8, but {reason}; save it in that encoding.") from error


def _values(text: str, between: str = "") -> tuple[list[object], ValueError | None]:
    """The JSON values that stand in a text one after another, up to what is wrong with it, if anything is.

    Args:
        text: What to read.
        between: Characters to pass over, besides spaces and byte order marks.
    """
    decoder, found = json.JSONDecoder(parse_int=_integer), list[object]()
    rest = text.strip(_BLANK)
    try:
        while rest := rest.lstrip(_BLANK + between):
            value, end = decoder.raw_decode(rest)
            found.append(value)
            rest = rest[end:]
    except (ValueError, RecursionError) as error:
        return found, ValueError(f"must be a JSON list of records or one JSON object a line, but {error}.")
    return found, None


def _integer(digits: str) -> int | Decimal:
    """An integer; one with more digits than Python reads as such stays a decimal, which no reader takes for an id."""
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)
