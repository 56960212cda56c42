"""A folder of downloaded text files: finds them with or without `.gz`, parses and hashes each once."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError, DataError


def not_utf8(path: Path) -> DataError:
    """The error for a text file that is not UTF-8: names the first such line and how to convert the file."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                return DataError(
                    f"{path}: it is UTF-16; expected UTF-8: `iconv -f UTF-16 -t UTF-8 {path.name} > NEW` converts it"
                )
            try:
                line.decode()
            except UnicodeDecodeError as e:
                found = f"byte {line[e.start]:#04x} is not UTF-8; in Latin-1 (Windows-1252) it is"
                letter = line[e.start : e.start + 1].decode("cp1252", "replace")
                convert = f"`iconv -f WINDOWS-1252 -t UTF-8 {path.name} > NEW` converts such a file"
                return DataError(f"{path}:{number}: {found} {letter!r}: {convert}")
    return DataError(f"{path}: not UTF-8")


def walk(root: Path) -> Iterator[str]:
    """The files below a folder, as sorted paths relative to it, without hidden ones.

    Links are followed; each folder is visited once. Raises OSError for a folder that cannot be read.
    """
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        raise error  # otherwise its files would be missing silently

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(folder, root)
        for name in sorted(names):
            if not name.startswith("."):
                yield name if inside == "." else os.path.join(inside, name)  # noqa: PTH118 (a hundred thousand times)


class Files:
    """The files below a folder, by relative name. `NAME` finds `NAME.gz` and vice versa. Parsed files are kept.

    Args:
        root: The folder.
    """

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
        """The path of a file or folder. Raises ConfigError if it does not exist."""
        path = self.find(name)
        if path is None:
            raise ConfigError(f"{self.root / name}: no such file")
        return path

    def digest(self, name: str) -> str:
        """sha256 of a file, or of the names and sizes of a folder's files."""
        path = self.path(name)
        if path not in self._digests:
            listing = [[p.name, p.stat().st_size] for p in sorted(path.iterdir())] if path.is_dir() else None
            self._digests[path] = store.sha256_file(path) if listing is None else store.digest_json(listing)
        return self._digests[path]

    def lines(self, name: str) -> Iterator[tuple[str, str]]:
        """(`file:line`, line without its end) of a file. Raises DataError if it is not UTF-8, or a damaged .gz."""
        path = self.path(name)
        number = 0
        try:
            with self._open(path) as file:
                for number, line in enumerate(file, 1):
                    yield f"{path}:{number}", line.rstrip("\r\n")
        except UnicodeDecodeError:
            raise not_utf8(path) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise DataError(f"{path}: a damaged .gz, readable up to line {number} ({e}); get it again") from e

    def document(self, name: str) -> Any:
        """The value in a .json file, or the list of values in a .jsonl file. Raises DataError for invalid JSON."""
        path = self.path(name)
        if path not in self._documents:
            if path.name.removesuffix(".gz").endswith(".jsonl"):
                self._documents[path] = [_parse(line, place) for place, line in self.lines(name) if line.strip()]
            else:
                self._documents[path] = _parse("\n".join(line for _, line in self.lines(name)), str(path))
        return self._documents[path]

    @staticmethod
    def _open(path: Path) -> IO[str]:
        # newline="\n": a lone \r in a caption does not end the line
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
        return path.open(encoding="utf-8-sig", newline="\n")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise DataError(f"{place}: not valid JSON ({e})") from e
