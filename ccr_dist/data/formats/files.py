"""A folder of text files that a user downloaded: finding them with or without `.gz`, reading and hashing them once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ccr_dist.data import store
from ccr_dist.errors import ConfigError, DataError


class Files:
    """The files under `root`, by relative name; `NAME` finds `NAME.gz` and the other way round. Keeps what it parsed."""

    def __init__(self, root: str | Path = ".") -> None:
        self.root = Path(root)
        self._documents: dict[Path, Any] = {}
        self._digests: dict[Path, str] = {}

    def find(self, name: str) -> Path | None:
        """The path of a file or folder, or None."""
        for path in (self.root / name, self.root / f"{name}.gz", self.root / name.removesuffix(".gz")):
            if path.exists():
                return path
        return None

    def path(self, name: str) -> Path:
        """ConfigError when it is not there."""
        path = self.find(name)
        if path is None:
            raise ConfigError(f"{self.root / name}: no such file")
        return path

    def digest(self, name: str) -> str:
        """sha256 of a file; of a folder: of its files' names and sizes."""
        path = self.path(name)
        if path not in self._digests:
            listing = [[p.name, p.stat().st_size] for p in sorted(path.iterdir())] if path.is_dir() else None
            self._digests[path] = store.sha256_file(path) if listing is None else store.digest_json(listing)
        return self._digests[path]

    def lines(self, name: str) -> Iterator[tuple[str, str]]:
        """(`file:line`, line without its end). DataError for what is not UTF-8 or a damaged .gz."""
        path = self.path(name)
        number = 0
        try:
            with self._open(path) as file:
                for number, line in enumerate(file, 1):
                    yield f"{path}:{number}", line.rstrip("\r\n")
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as e:
            raise DataError(f"{path}: not readable as UTF-8 text after line {number} ({e})") from e

    def document(self, name: str) -> Any:
        """The content of a .json file; of a .jsonl file: the list of its lines' values."""
        path = self.path(name)
        if path not in self._documents:
            if path.name.removesuffix(".gz").endswith(".jsonl"):
                self._documents[path] = [_parse(line, place) for place, line in self.lines(name) if line.strip()]
            else:
                self._documents[path] = _parse("\n".join(line for _, line in self.lines(name)), str(path))
        return self._documents[path]

    @staticmethod
    def _open(path: Path) -> IO[str]:
        # newline="\n": captions may hold a lone \r, which is no end of line
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
        return path.open(encoding="utf-8-sig", newline="\n")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise DataError(f"{place}: not valid JSON ({e})") from e
