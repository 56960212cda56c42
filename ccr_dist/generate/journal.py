"""Journals: the results of an unfinished shard, in lines that are only appended to, per generation of its lease.

    {"journal": 2, "column": "caption.es.apertium", "shard": "000003", "keys": sha256, "plan": sha256, "inputs": {...},
     "merged": 1}
    {"row": 0, "value": ["Un limón."], "counts": {"captions": 1}}
    {"row": 1, "error": "..."}

The first `merged` rows come from older generations. A batch is written at once (one fsync, or one object), so a killed
job loses at most the batch in flight. Leases decide which worker may write, and where the lines lie;
`shard_work.py` turns a journal into a shard.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ccr_dist.data.media import decode
from ccr_dist.data.storage import store
from ccr_dist.errors import DataError
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.traces.base import Appender

FORMAT = 2
_STORED = {16: "<f2", 32: "<f4"}  # vectors, by the bits of a value


def pack(kind: str, value: Any) -> Any:
    """A value as JSON: vectors and media in base64, everything else unchanged."""
    if value is None:
        return None
    if kind == "matrix":
        size = 8 * value.itemsize
        data = np.ascontiguousarray(value, _STORED[size]).tobytes()
        return {"shape": list(value.shape), f"f{size}": base64.b64encode(data).decode()}
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def unpack(kind: str, packed: Any) -> Any:
    """The value from its packed form."""
    if packed is None:
        return None
    if kind == "matrix":
        size = 16 if "f16" in packed else 32
        return np.frombuffer(base64.b64decode(packed[f"f{size}"]), _STORED[size]).reshape(packed["shape"])
    return base64.b64decode(packed) if kind in ("image", "video") else packed


@dataclass
class Past:
    """The contents of a shard's journals.

    Attributes:
        outcomes: Results by row.
        fresh: Number of rows that only the newest journal has.
        dropped: Number of incomplete lines.
    """

    outcomes: dict[int, RowOutcome] = field(default_factory=dict)
    fresh: int = 0
    dropped: int = 0

    def add(self, row: int, outcome: RowOutcome) -> None:
        """Add a result; an error never replaces a value, otherwise the later one counts."""
        if outcome.error is None or self.outcomes.get(row, outcome).error is not None:
            self.outcomes[row] = outcome


def read(contents: Iterable[tuple[Any, bytes]], kind: str, header: dict[str, Any], rows: int | None = None) -> Past:
    """Read the journals of a shard.

    Args:
        contents: (name for messages, content) of journals in the order of their generations.
        kind: Kind of the column.
        header: The header that each must have.
        rows: Number of rows of the shard; None if unknown. What follows a line that no row of it has is not read: a
            damaged line ends a journal, and the rows after it are made again.

    Raises:
        DataError: A journal belongs to other work; shows the difference.
    """
    past = Past()
    for path, data in contents:
        past.fresh = 0
        lines = data.split(b"\n")[:-1]  # what follows the last newline is incomplete
        merged = good = 0
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
                if not number:
                    merged = _whole(entry.pop("merged"))
                else:
                    row, outcome = _outcome(kind, rows, entry)
            except (
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
            ):  # a crash of the machine may leave blocks of zeros
                break
            if not number:
                _check(path, entry, header)
            else:
                if number > merged and row not in past.outcomes:
                    past.fresh += 1
                past.add(row, outcome)
            good += len(line) + 1
        past.dropped += data[good:].count(b"\n")
        if good < len(data) and not data.endswith(b"\n"):  # a last line without its end
            past.dropped += 1
    return past


def _whole(value: Any) -> int:
    """The value. Raises ValueError unless it is a whole number from 0 on."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r}: no whole number")
    return value


def _outcome(kind: str, rows: int | None, entry: dict[str, Any]) -> tuple[int, RowOutcome]:
    """(row, result) of a line. Raises ValueError, KeyError, TypeError or AttributeError unless it is what `_entry`
    makes, of a row of the shard: a value of another type would be committed, or end every job that reads it.
    """
    row, lacks = _whole(entry["row"]), entry.get("lacks")
    if rows is not None and row >= rows:
        raise ValueError(f"row {row} of {rows}")
    if "error" in entry:
        error, final = entry["error"], entry.get("final", False)
        if not isinstance(error, str) or not isinstance(final, bool):
            raise TypeError("error")
        return row, RowOutcome(error=error, final=final)
    value, counts = unpack(kind, entry["value"]), entry.get("counts", {})
    if not all(isinstance(count, int) for count in counts.values()) or not isinstance(lacks, str | None):
        raise TypeError("counts")
    if value is not None and kind != "matrix":
        decode.check(kind, value, "value")
    return row, RowOutcome(value, None, counts, lacks)


def _check(path: object, there: dict[str, Any], header: dict[str, Any]) -> None:
    if lines := store.differences(there, {"journal": FORMAT, **header}):
        shown = "\n  ".join(lines)
        raise DataError(f"{path}: made by other work; the difference:\n  {shown}\nremove it to make its rows again")


class Journal:
    """An open journal. It is created once, with all rows of older generations, and appended to until its shard is
    committed.
    """

    def __init__(self, kind: str, lines: Appender) -> None:
        self.kind, self._lines = kind, lines

    @staticmethod
    def create(
        create: Callable[[bytes], Appender | None], kind: str, header: dict[str, Any], merged: dict[int, RowOutcome]
    ) -> Journal | None:
        """Create a journal atomically.

        Args:
            create: Creates it with its first lines; returns None if it already exists.
            kind: Kind of the column.
            header: Its header.
            merged: Results of older generations by row.

        Returns:
            The journal, or None if it already exists.

        Raises:
            StorageError: The disk is full.
        """
        entries = [_entry(kind, row, outcome) for row, outcome in sorted(merged.items())]
        lines = create(_lines([{"journal": FORMAT, **header, "merged": len(entries)}, *entries]))
        return None if lines is None else Journal(kind, lines)

    def append(self, outcomes: Iterable[tuple[int, RowOutcome]]) -> None:
        """Append results durably. Earlier results stay readable, whatever happens.

        Args:
            outcomes: (row, result).

        Raises:
            StorageError: The disk is full.
        """
        self._lines.append(_lines([_entry(self.kind, row, outcome) for row, outcome in outcomes]))

    def close(self) -> None:
        """Close it; it stays for the next generation."""
        self._lines.close()


def _entry(kind: str, row: int, outcome: RowOutcome) -> dict[str, Any]:
    if outcome.error is not None:
        return {"row": row, "error": outcome.error, **({"final": True} if outcome.final else {})}
    further = {"counts": outcome.counts, "lacks": outcome.lacks}
    return {"row": row, "value": pack(kind, outcome.value), **{name: about for name, about in further.items() if about}}


def _lines(entries: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries).encode()
