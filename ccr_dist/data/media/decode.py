"""Converts bytes to values and back, by one rule per kind of column. Reads and writes no files; needs no torch.

`pictures.py` decodes pictures, `video.py` videos.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ccr_dist.data.media.pictures import decode_image as decode_image
from ccr_dist.data.media.pictures import picture_extension
from ccr_dist.data.media.text import has_text, is_unicode, texts_of
from ccr_dist.errors import DataError

KINDS = {
    "image": "the bytes of a picture",
    "video": "the bytes of a video file",
    "texts": "JSON list of strings, or null",
    "views": 'JSON {"views": {name: text}}, with or without "tokens": {name: int} and "finish": {name: str}, or null',
    "label": "JSON string, or null",
    "matrix": "float16 (or float32) vectors, (n, D) per row",
}
DTYPES = ("float16", "float32")  # of the vectors of a matrix
LINES = "lines"  # `field` of plain text with one caption per line
BINARY = ("image", "video")  # kinds whose values are bytes; null has no bytes
_VIEWS = {"views": str, "tokens": int, "finish": str}


def check(kind: str, value: Any, what: object) -> None:
    """Raises DataError, naming `what`, unless `value` is a non-null value of a column of this kind."""
    if kind in BINARY:
        good = isinstance(value, bytes)
    elif kind == "texts":
        good = isinstance(value, list) and all(isinstance(text, str) for text in value)
    elif kind == "views":
        good = (
            isinstance(value, dict)
            and {"views"} <= value.keys() <= _VIEWS.keys()
            and all(_named(value[p], _VIEWS[p]) for p in value)
        )
    elif kind == "label":
        good = isinstance(value, str)
    else:
        raise DataError(
            f"{what}: the rows of a column of kind {kind} have no bytes of their own; expected one of"
            f" {', '.join(k for k in KINDS if k != 'matrix')}"
        )
    if not good:
        raise DataError(f"{what}: expected {KINDS[kind]}; found {repr(value)[:120]}")


def _named(part: Any, of: type) -> bool:
    return isinstance(part, dict) and all(
        isinstance(name, str) and type(content) is of for name, content in part.items()
    )


def encode(kind: str, value: Any, what: object = "value") -> bytes:
    """The stored bytes of a value.

    Args:
        kind: Kind of the column, see `KINDS`.
        value: The value; None is stored as JSON `null`, or for a picture or video as no bytes.
        what: Name of the value in messages.

    Raises:
        DataError: The value does not fit the kind, or is not valid Unicode.
    """
    if value is not None:
        check(kind, value, what)
    if kind in BINARY:
        return value or b""
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{what}: not valid Unicode text ({e})") from e


def decode(kind: str, data: bytes, what: object = "value", *, extension: str = "json", field: str | None = None) -> Any:
    """The value in stored bytes.

    Args:
        kind: Kind of the column, see `KINDS`.
        data: The stored bytes.
        what: Name of the value in messages.
        extension: Extension of the member; unless its last part is `json`, the bytes are plain text.
        field: For plain text, `lines` makes each line that is not blank a text, None the whole one text. For JSON, the
            key of an object (`a.b`: of a nested one) whose value is a string or a list of strings, as in img2dataset's
            `.json` members.

    Returns:
        Encoded bytes (image, video), list[str] (texts), {"views": {...}} (views), str (label), or None for null.

    Raises:
        DataError: The bytes are anything else.
    """
    if kind in BINARY:
        return data or None
    try:
        text = data.decode("utf-8-sig")
        plain = is_plain(extension)
        value = text.strip() if plain else json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{what}: expected {KINDS[kind]}; not readable as UTF-8 {extension} ({e})") from e
    if plain and field == LINES:
        value = [line.strip() for line in re.split(r"\r\n|\r|\n", value) if has_text(line)]
    elif field is not None:
        if not isinstance(value, dict):
            raise DataError(f"{what}: expected a JSON object with the field {field!r}; found {repr(value)[:120]}")
        value = field_of(value, field)
    if kind == "texts" and isinstance(value, str) and (field is not None or plain):
        value = [value]
    if value is not None:
        check(kind, value, what)
        if b"\\u" in data and not is_unicode(json.dumps(value, ensure_ascii=False)):
            raise DataError(
                f"{what}: not valid Unicode text: half of a surrogate pair in {ascii(value)[:120]}; write the row again"
            )
    return value


def is_plain(extension: str) -> bool:
    """Whether members of this extension hold plain text, not JSON."""
    return extension.rpartition(".")[2] != "json"


def field_of(value: Any, field: str) -> Any:
    """The value of a key of a JSON object (`a.b`: of `b` in the object under `a`), or None."""
    if not isinstance(value, dict):
        return None
    if field in value:
        return value[field]
    first, dot, rest = field.partition(".")
    return field_of(value.get(first), rest) if dot else None


def is_present(kind: str, value: Any) -> bool:
    """Whether a decoded value is neither null nor blank (`text.has_text`)."""
    if value is None or kind in BINARY:
        return bool(value)
    return any(map(has_text, texts_of(value)))


def file_extension(kind: str, data: bytes, what: object = "value") -> str:
    """The extension of a picture or video by its first bytes. Raises DataError for unknown formats."""
    return picture_extension(data, what) if kind == "image" else video_extension(data, what)


def video_extension(data: bytes, what: object = "video") -> str:
    """The format of a video by its first bytes: mp4, mov, webm, mkv, avi or gif. Raises DataError for others."""
    if data[4:8] == b"ftyp":
        return "mov" if data[8:10] == b"qt" else "mp4"
    if data.startswith(b"\x1aE\xdf\xa3"):  # EBML; its header names the document type
        return "webm" if b"webm" in data[:64] else "mkv"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data.startswith(b"GIF8"):
        return "gif"
    raise DataError(f"{what}: not an MP4, MOV, WebM, Matroska, AVI or GIF video (first bytes {data[:12]!r})")
