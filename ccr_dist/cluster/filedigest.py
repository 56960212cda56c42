"""Digests of the files that a command reads: of YAML what it says, not how; and which files such a file names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccr_dist import yamlfile
from ccr_dist.data.storage.store import digest_json, sha256_file
from ccr_dist.errors import ConfigError

WHOLE = 64 * 2**20  # bytes up to which a file is read; larger ones (weights) are told by size and time


def named(path: Path, overrides: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files that the values of a YAML file name, from the working folder or from its own."""
    for text in texts(merged(path, overrides)):
        for place in {Path(), path.parent}:
            if is_file(str(place / text)):
                yield place / text


def is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def merged(path: Path, overrides: tuple[str, ...] = ()) -> Any:
    """What a YAML file says with its bases; None for a file of another kind."""
    try:
        return yamlfile.load(path, overrides).data
    except ConfigError:
        return None


def content(path: Path) -> str:
    """Of YAML what it says, its bases included, however it is written."""
    said = merged(path) if path.suffix in (".yaml", ".yml") else None
    if said is not None:
        return digest_json(said) if _is_json(said) else repr(said)
    facts = path.stat()
    return sha256_file(path) if facts.st_size <= WHOLE else f"{facts.st_size} bytes of {facts.st_mtime_ns}"


def _is_json(value: Any) -> bool:
    try:
        digest_json(value)
    except (TypeError, ValueError):  # dates, NaN
        return False
    return True
