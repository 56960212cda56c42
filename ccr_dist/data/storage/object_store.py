"""Client of object stores: s3://, gs:// and all others that fsspec knows.

Knows neither datasets nor tables (`remote.py`, `table/push.py`, `table/pull.py`). Credentials, endpoints and other
options are given as fsspec and its client libraries expect them (AWS_ENDPOINT_URL, ~/.aws, FSSPEC_S3_...,
~/.config/fsspec).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ccr_dist.data.storage import store
from ccr_dist.errors import CcrError, ConfigError, StorageError

T = TypeVar("T")

_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/{1,2}(?=.)")
_NO_BUCKET = re.compile(r"NoSuchBucket|bucket does not exist|bucket .*not found", re.I)
# Errors of the clients' own classes that say what a user has to set, or has mistyped.
_UNSET = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError", "ParamValidationError",
    "DefaultCredentialsError", "ClientAuthenticationError",
})  # fmt: skip
_ATTEMPTS = 4
_TOGETHER = 64  # small objects requested at once
_PART, _PARTS = 8 << 20, 4  # bytes in a range of a payload; ranges requested at once


def as_url(path: str | Path) -> str | None:
    """`path` as a URL without a trailing slash, or None for a local path.

    Accepts `s3:/a` as well, which is what pathlib makes of `s3://a`.
    """
    match = _URL.match(str(path))
    if match is None:
        return None
    slashes = "///" if match[1] == "file" else "//"
    return f"{match[1]}:{slashes}{str(path)[match.end() :].strip('/')}"


def require_local(path: str | Path, what: str) -> None:
    """Refuse a URL where the work must be done in a folder and pushed.

    Args:
        path: What the user gave.
        what: Beginning of the message's sentence, such as "datasets are built".

    Raises:
        ConfigError: `path` is a URL.
    """
    if url := as_url(path):
        raise ConfigError(
            f"{url}: {what} on a POSIX folder only; use a folder, then `ccr-dist shards push FOLDER {url}`"
        )


class Store:
    """A folder of an object store. Holds no connection, so it is safe in threads and after a fork.

    Every call is retried unless no second try mends it. All methods raise StorageError, naming the object, if it is
    missing, may not be used, or requests keep failing, and ConfigError if there is no such bucket, what the store's
    client needs is not set, or the installed fsspec cannot open the URL.

    Args:
        url: URL of the folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def listing(self) -> dict[str, tuple[int, int]]:
        """(bytes, stamp) of all objects at any depth, by name in the folder. Writing an object changes its stamp."""

        def find(fs: Any, root: str) -> dict[str, tuple[int, int]]:
            found = fs.find(root, detail=True).items()
            return {name[len(root) :].lstrip("/"): (int(info["size"] or 0), _stamp(info)) for name, info in found}

        return self._do(self.url, find)

    def folders(self) -> list[str]:
        """The names of the folders directly below this one."""

        def ls(fs: Any, root: str) -> list[str]:
            try:
                return [
                    entry["name"].rstrip("/").rsplit("/", 1)[-1]
                    for entry in fs.ls(root, detail=True)
                    if entry["type"] == "directory"
                ]
            except FileNotFoundError as e:
                if _NO_BUCKET.search(str(e)):
                    raise
                return []

        return self._do(self.url, ls)

    def has(self, name: str) -> bool:
        """Whether an object exists."""

        def look(fs: Any, root: str) -> bool:
            try:
                fs.info(f"{root}/{name}")
            except FileNotFoundError as e:
                if _NO_BUCKET.search(str(e)):
                    raise
                return False
            return True

        return self._do(f"{self.url}/{name}", look)

    def read(self, names: Sequence[str]) -> list[bytes]:
        """The contents of small objects, in the order of `names`."""
        contents: list[bytes] = []
        for i in range(0, len(names), _TOGETHER):
            contents += self._ranges([(name, None, None) for name in names[i : i + _TOGETHER]])
        return contents

    def _ranges(self, ranges: Sequence[tuple[str, int | None, int | None]]) -> list[bytes]:
        """Parts of objects, requested concurrently if the store's client can.

        Args:
            ranges: (name, first byte, byte after the last one); (name, None, None) is the whole object.
        """

        def cat(fs: Any, root: str) -> list[bytes]:
            names, starts, ends = zip(*ranges, strict=True)
            return fs.cat_ranges([f"{root}/{name}" for name in names], list(starts), list(ends), on_error="raise")

        return self._do(f"{self.url}/{ranges[0][0]}", cat)

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object. Object stores show it in full or not at all."""
        self._do(f"{self.url}/{name}", lambda fs, root: fs.pipe_file(f"{root}/{name}", data))

    def upload(self, name: str, path: Path) -> None:
        """Create or replace an object with the bytes of a local file."""
        self._do(f"{self.url}/{name}", lambda fs, root: fs.put_file(str(path), f"{root}/{name}"))

    def download(self, name: str, fd: int, record: dict[str, Any]) -> None:
        """Write an object's bytes to an open file.

        Args:
            name: Name of the object.
            fd: Descriptor of the file.
            record: The commit record, with `bytes` and `sha256`.

        Raises:
            StorageError: The bytes do not match the commit record.
        """
        what, size, digest = f"{self.url}/{name}", int(record["bytes"]), hashlib.sha256()
        for start in range(0, size, _PART * _PARTS):
            places = range(start, min(size, start + _PART * _PARTS), _PART)
            for at, part in zip(
                places, self._ranges([(name, at, min(size, at + _PART)) for at in places]), strict=True
            ):
                digest.update(part)
                os.pwrite(fd, part, at)
        os.ftruncate(fd, size)
        if digest.hexdigest() != record["sha256"]:
            raise StorageError(
                f"{what}: its sha256 is {digest.hexdigest()}, the commit record says {record['sha256']}: damaged, or"
                " replaced in the store; remove it and its record there, then push it again"
            )

    def _do(self, what: str, call: Callable[[Any, str], T]) -> T:
        """call(file system, path in it), retried. `what`: the object, for messages."""

        def attempt() -> T:
            try:
                return call(*self._open())
            except FileNotFoundError as e:
                if _NO_BUCKET.search(str(e)):
                    raise ConfigError(f"{what}: {e}; make the bucket first, or name another one") from e
                raise StorageError(f"{what}: missing ({e})") from e
            except (OSError, CcrError):
                raise
            except Exception as e:  # every store's client has its own errors
                if type(e).__name__ in _UNSET:
                    raise ConfigError(
                        f"{what}: {' '.join(str(e).split())}; set what the store's client expects (credentials, region,"
                        " endpoint), or mend the URL"
                    ) from e
                raise OSError(f"{type(e).__name__}: {e}") from e

        return store.retry_io(attempt, what=what, attempts=_ATTEMPTS)

    def _open(self) -> tuple[Any, str]:
        """fsspec's file system and the path in it. fsspec keeps the connections, one set per process."""
        try:
            from fsspec.core import url_to_fs
        except ImportError as e:
            raise ConfigError(f"{self.url}: URLs need fsspec: pip install 'ccr-dist[remote]'") from e
        options: dict[str, Any] = {"auto_mkdir": True} if self.url.startswith("file:") else {}
        try:
            fs, root = url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as e:
            raise ConfigError(f"{self.url}: fsspec cannot open this: {e}") from e
        return fs, root.rstrip("/")


def _stamp(info: dict[str, Any]) -> int:
    """A hash of everything a store reports about an object (time, ETag, generation, ...).

    31 bits, so that every file system can hold it as a time stamp.
    """
    text = repr(sorted((key, str(value)) for key, value in info.items() if key not in ("atime", "nlink")))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF
