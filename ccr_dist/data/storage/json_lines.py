"""Files of JSON lines that a running process appends to: logs, starts, attempts. Each line carries a CRC-32."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import DataError


def line_of(values: Mapping[str, Any]) -> bytes:
    """A JSON line whose last value, `"crc": "0123abcd"`, is the CRC-32 of the rest."""
    text = json.dumps(values, ensure_ascii=False)
    separator = ", " if values else ""
    return f'{text[:-1]}{separator}"crc": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Appends `line_of(values)` to a file, on a line of its own even if a crash left the line before incomplete.

    Raises:
        StorageError: The disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(line_of(values))


class JsonLines(NamedTuple):
    """The content of a file of JSON lines.

    Attributes:
        values: Values of the intact lines, without their CRC.
        damaged: Numbers of the damaged lines, counted from 1.
    """

    values: list[dict[str, Any]]
    damaged: list[int]

    def require(
        self, path: Path, what: str, because: str = "so numbers computed from it would be wrong"
    ) -> list[dict[str, Any]]:
        """The values, for what must be whole.

        Args:
            path: The file.
            what: What to do about a damaged line.
            because: Why it is not left out.

        Raises:
            DataError: A line is damaged.
        """
        if self.damaged:
            which = ", ".join(map(str, self.damaged[:5]))
            raise DataError(f"{path}: damaged in line {which}, {because}; {what}")
        return self.values


def has_types(values: Mapping[str, Any], types: Mapping[str, type | UnionType]) -> bool:
    """Whether the values that are there are of these types. True and false are no numbers."""
    return all(
        isinstance(value := values[key], kind) and not (isinstance(value, bool) and kind is not bool)
        for key, kind in types.items()
        if key in values
    )


def read_lines(path: Path, sound: Callable[[dict[str, Any]], bool] = lambda values: True) -> JsonLines:
    """Reads the lines of `append_line`; a missing file has none.

    Args:
        path: The file.
        sound: Whether the values of a line are what its writer writes; a line of others counts as damaged.

    A last line that a crash left incomplete is ignored and does not count as damaged. Lines of earlier versions carry
    no CRC; they are accepted up to the first line that carries one.
    """
    found, sealed = JsonLines([], []), False
    texts = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        values, carries = _line(text)
        if values is not None and (carries or not sealed) and sound(values):
            found.values.append(values)
            sealed = sealed or carries
        elif number < len(texts) or carries:
            found.damaged.append(number)
    return found


_CRC = re.compile(rb'(?:, )?"crc": "([0-9a-f]{8})"\}$')


def _line(text: bytes) -> tuple[dict[str, Any] | None, bool]:
    """(the object in a line, or None if it is not one or its CRC does not match; whether it carries a CRC)."""
    carried = _CRC.search(text)
    if carried and zlib.crc32(text[: carried.start()] + b"}") != int(carried[1], 16):
        return None, True
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None, carried is not None
    if not isinstance(values, dict):
        return None, carried is not None
    if carried:
        del values["crc"]
    return values, carried is not None
