"""Imports a JSONL file of texts that were made elsewhere, with their provenance.

{"key": "1F34B", "value": "a lemon"}        or ["a lemon", ...]      -> texts
{"key": "1F34B", "value": {"views": {"detail": "..."}}}              -> views
"""

from __future__ import annotations

import json
import os
from collections.abc import Set
from pathlib import Path
from typing import Any

from ccr_dist.data.media import decode
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataBudgetError, DataError, let_pass
from ccr_dist.generate.processor import Processor, RowOutcome


class Replay(Processor):
    """Gives each row its value in a file. Rows whose key is not in it become null rows (counter `missing`).

    Args:
        file: The JSONL file.
        source: Where the texts come from; part of the plan, like the file's sha256.
        licence: Their licence; part of the plan.
        note: A remark; part of the plan.
        max_missing: How many rows of a dataset may be missing in the file.
        label: Whether the values are labels.

    Raises:
        DataError: The file cannot be read, or a line is malformed.
        ConfigError: It was changed meanwhile.
    """

    batch = 1024

    def __init__(
        self,
        file: str | Path,
        *,
        source: str | None = None,
        licence: str | None = None,
        note: str | None = None,
        max_missing: int = 0,
        label: bool = False,
    ) -> None:
        self.file = Path(file)
        self.about = {k: v for k, v in {"source": source, "licence": licence, "note": note}.items() if v}
        self.max_missing = max_missing
        self._state = _state(self.file)
        self.kind, self._places, self._bad = _scan(self.file, label)
        self._sha256 = store.sha256_file(self.file)
        self._require_same(_state(self.file))

    def keys(self) -> Set[str]:
        """The keys in the file."""
        return self._places.keys()

    def plan(self) -> dict[str, Any]:
        return {"processor": "replay", "sha256": self._sha256, **self.about}

    def provenance(self) -> dict[str, Any]:
        return {"file": self.file.name}

    def check(self, dataset: Dataset) -> None:
        keys = {key for shard in range(len(dataset.shards)) for key in dataset.keys(shard)}
        missing = sorted(keys - self._places.keys())
        if len(missing) > self.max_missing:
            names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise DataBudgetError(
                f"{self.file}: {len(missing)} of the {len(keys)} keys of {dataset.root} are not in the file ({names}),"
                f" {self.max_missing} may be missing; complete the file, or allow more with --max-missing (their rows"
                " become null)"
            )

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        if key not in self._places:
            return RowOutcome(counts={"missing": 1})
        if key in self._bad:
            raise DataError(self._bad[key])
        offset, size = self._places[key]
        with self.file.open("rb") as file:
            self._require_same(_state(file.fileno()))
            file.seek(offset)
            return _value(self.kind, json.loads(file.read(size))["value"])

    def process(self, items: list[Any]) -> list[RowOutcome]:
        return [RowOutcome(item) for item in items]

    def _require_same(self, state: tuple[int, int, int]) -> None:
        """Raises ConfigError, which ends the job, if the file is not the one whose lines were counted: a row would get
        another one's value.
        """
        if state != self._state:
            raise ConfigError(
                f"{self.file}: changed while it was replayed; start again, under another --column unless the file is"
                " put back"
            )


def _state(file: Path | int) -> tuple[int, int, int]:
    """Inode, bytes and modification time (ns) of a file; zeros if it cannot be looked at, which opening it will say."""
    try:
        found = os.stat(file)  # noqa: PTH116 (of an open file, too)
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns


def _value(kind: str, value: Any) -> Any:
    return [value] if kind == "texts" and isinstance(value, str) else value


def _scan(path: Path, label: bool) -> tuple[str, dict[str, tuple[int, int]], dict[str, str]]:
    """Scan a file.

    Args:
        path: The file.
        label: Whether the values are labels.

    Returns:
        Kind of the values (of the first good one); (offset, bytes) of each line by key; what is wrong with bad values
        by key.

    Raises:
        DataError: A line is malformed, a key occurs twice, or texts and views are mixed; names the line.
    """
    places: dict[str, tuple[int, int]] = {}
    bad: dict[str, str] = {}
    kind = "label" if label else ""
    try:
        file = path.open("rb")
    except OSError as e:
        let_pass(e, path)
        raise DataError(f"{path}: cannot read the file to replay ({e.strerror})") from e
    with file:
        offset = 0
        for number, line in enumerate(file, 1):
            what = f"{path}:{number}"
            if line.strip():
                key, value = _entry(line, what)
                if key in places:
                    raise DataError(f"{what}: the key {key!r} occurs a second time")
                if value is not None:
                    kinds = [kind] if kind else ["views" if isinstance(value, dict) else "texts"]
                    try:
                        decode.check(kinds[0], _value(kinds[0], value), f"{what}: key {key!r}")
                        (kind,) = kinds
                    except DataError as e:
                        # not one bad row, but two files in one
                        if kind and isinstance(value, dict) != (kind == "views"):
                            raise
                        bad[key] = str(e)
                places[key] = (offset, len(line))
            offset += len(line)
    if not kind:
        raise DataError(
            f"{path}: holds no values"
            + (f" that can be used; the first one: {next(iter(bad.values()))}" if bad else "")
        )
    return kind, places, bad


def _entry(line: bytes, what: str) -> tuple[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as e:
        raise DataError(f"{what}: not JSON ({e})") from e
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or "value" not in entry:
        raise DataError(f'{what}: expected {{"key": ..., "value": ...}}, found {line[:100].decode(errors="replace")!r}')
    return entry["key"], entry["value"]
