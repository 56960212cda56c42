"""Datasets in object stores (s3://, gs://, and all others that fsspec knows). All code reads local files; this module
fetches them.

A dataset folder with a `remote.json` is backed by a store. Its dataset.json, column.json and commit records are local;
keys and indexes are fetched when first needed, payloads through the size-limited cache (`payload_cache.py`). There are
two kinds of such folders: opening a URL mirrors it below $CCR_DIST_CACHE/remote (read-only, kept equal to the store),
and `shards pull --lazy` makes one to work in.

This module does not know tables; whole datasets are copied in `table/transfer.py`. Credentials, endpoints and other
options of a store are given as fsspec and its client libraries expect them (AWS_ENDPOINT_URL, ~/.aws, FSSPEC_S3_...,
~/.config/fsspec).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ccr_dist.data.storage import payload_cache, store
from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.errors import CcrError, ConfigError, DataError, StorageError

T = TypeVar("T")

MARK = "remote.json"
_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/{1,2}(?=.)")
_METADATA = re.compile(r"^(dataset\.json|[A-Za-z0-9][A-Za-z0-9._-]*/(column|\d{6,})\.json)$")
_SIBLINGS = re.compile(r"^(keys/\d{6,}\.txt|[A-Za-z0-9][A-Za-z0-9._-]*/\d{6,}\.(index|stats)\.json)$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_ATTEMPTS = 4
_TOGETHER = 64  # small objects requested at once
_PART, _PARTS = 8 << 20, 4  # bytes in a range of a payload; ranges requested at once
_LOOK_AGAIN_S = 60.0  # a process that opens a URL again within this time does not list the store again

_looked: dict[Path, float] = {}
_listed: dict[str, tuple[float, dict[str, int]]] = {}


def as_url(path: str | Path) -> str | None:
    """`path` as a URL without a slash at the end, or None for a local path.

    `s3:/a`, which pathlib makes of `s3://a`, is understood as well.
    """
    match = _URL.match(str(path))
    if match is None:
        return None
    slashes = "///" if match[1] == "file" else "//"
    return f"{match[1]}:{slashes}{str(path)[match.end() :].strip('/')}"


def is_metadata(name: str) -> bool:
    """Whether a name is that of dataset.json, a column.json or a commit record: these are always local."""
    return _METADATA.match(name) is not None


def checked_names(names: list[str], place: str) -> list[str]:
    """Returns the names. Raises DataError unless all are of keys, index or stats files: names become local paths."""
    if odd := [name for name in names if not _SIBLINGS.match(name)]:
        raise DataError(f"{place}: {odd[0]!r} is not the name of a file of a dataset")
    return names


def require_local(path: str | Path, what: str) -> None:
    """Raises ConfigError where `path` is a URL: the work has to be done in a folder and pushed.

    Args:
        path: what the user gave.
        what: the beginning of the message's sentence, such as "datasets are built".
    """
    if url := as_url(path):
        raise ConfigError(
            f"{url}: {what} on a POSIX folder only; use a folder, then `ccr-dist shards push FOLDER {url}`"
        )


class Store:
    """A folder of an object store. Holds no connection: safe in threads and after fork.

    Every call is retried. All methods raise StorageError, naming the object, where it is missing or requests keep
    failing, and ConfigError where fsspec, as it is installed, cannot open the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def listing(self) -> dict[str, tuple[int, int]]:
        """All objects at any depth: {name below the folder: (bytes, stamp)}. Writing an object changes its stamp."""

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
            except FileNotFoundError:
                return []

        return self._do(self.url, ls)

    def has(self, name: str) -> bool:
        def look(fs: Any, root: str) -> bool:
            try:
                fs.info(f"{root}/{name}")
            except FileNotFoundError:
                return False
            return True

        return self._do(f"{self.url}/{name}", look)

    def read(self, names: Sequence[str]) -> list[bytes]:
        """The contents of small objects, in the order of their names."""
        contents: list[bytes] = []
        for i in range(0, len(names), _TOGETHER):
            contents += self._ranges([(name, None, None) for name in names[i : i + _TOGETHER]])
        return contents

    def _ranges(self, ranges: Sequence[tuple[str, int | None, int | None]]) -> list[bytes]:
        """Parts of objects, requested at once where the store's client can.

        Args:
            ranges: (name, first byte, byte after the last one); None twice: the whole object.
        """

        def cat(fs: Any, root: str) -> list[bytes]:
            names, starts, ends = zip(*ranges, strict=True)
            return fs.cat_ranges([f"{root}/{name}" for name in names], list(starts), list(ends), on_error="raise")

        return self._do(f"{self.url}/{ranges[0][0]}", cat)

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces an object. Object stores show it in full or not at all."""
        self._do(f"{self.url}/{name}", lambda fs, root: fs.pipe_file(f"{root}/{name}", data))

    def upload(self, name: str, path: Path) -> None:
        self._do(f"{self.url}/{name}", lambda fs, root: fs.put_file(str(path), f"{root}/{name}"))

    def download(self, name: str, fd: int, record: dict[str, Any]) -> None:
        """Writes an object's bytes to an open file.

        Args:
            name: of the object.
            fd: descriptor of the file.
            record: the commit record, with `bytes` and `sha256`.

        Raises:
            StorageError: the bytes do not match the commit record.
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
        def attempt() -> T:
            try:
                return call(*self._open())
            except FileNotFoundError as e:
                raise StorageError(f"{what}: missing ({e})") from e
            except (OSError, CcrError):
                raise
            except Exception as e:  # every store's client has its own errors
                raise OSError(f"{type(e).__name__}: {e}") from e

        return store.retry_io(attempt, what=what, attempts=_ATTEMPTS)

    def _open(self) -> tuple[Any, str]:
        """(fsspec's file system, path in it). fsspec keeps the connections, one set per process."""
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
    """A hash of all that a store reports about an object (time, ETag, generation, ...).

    It has 31 bits, so that every file system can hold it as a time stamp.
    """
    text = repr(sorted((key, str(value)) for key, value in info.items() if key not in ("atime", "nlink")))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF


@dataclass(frozen=True)
class Remote:
    """The store behind a local dataset folder.

    Attributes:
        url: of the dataset in the store.
        root: the local folder.
        mirror: whether the folder belongs to the cache; then no job works in it.
    """

    url: str
    root: Path
    mirror: bool

    def sizes(self) -> dict[str, int]:
        """{name: bytes} of what the store has; listed at most once a minute."""
        when, found = _listed.get(self.url, (float("-inf"), {}))
        if time.monotonic() - when >= _LOOK_AGAIN_S:
            found = {name: size for name, (size, _) in Store(self.url).listing().items()}
            _listed[self.url] = (time.monotonic(), found)
        return found

    def bring(self, path: Path, siblings: Callable[[], Iterable[str]]) -> None:
        """Fetches a small file unless it is there, together with its siblings, which will be needed as well.

        Args:
            path: the file.
            siblings: gives the names of all such files, relative to the dataset; called only if `path` is missing.
        """
        if path.exists():
            return
        with payload_cache.locked(self.root / MARK):
            missing = [name for name in siblings() if not (self.root / name).exists()]
            for name, data in zip(missing, Store(self.url).read(checked_names(missing, self.url)), strict=True):
                (self.root / name).parent.mkdir(exist_ok=True)
                store.create_once(self.root / name, data)

    def payload(self, path: Path, record: dict[str, Any]) -> Path:
        """The local file of a payload: `path` if it exists, else the cached one, fetched and checked if needed.

        Args:
            path: where the payload is in a folder that has it.
            record: its commit record.

        Raises:
            StorageError: it is missing, damaged, or requests keep failing.
            ConfigError: the payload is larger than the cache may be.
        """
        name = relative(path, self.root, self.url)
        if path.exists():
            return path
        if not _SHA256.match(str(record["sha256"])):
            raise DataError(f"{self.url}/{name}: its commit record has no sha256")
        where = Store(self.url)

        def fetch(fd: int) -> None:
            where.download(name, fd, record)

        return payload_cache.payload(name, int(record["bytes"]), record["sha256"], fetch, f"{self.url}/{name}")


@lru_cache(maxsize=4096)
def relative(path: Path, root: Path, place: str) -> str:
    """The name of a file relative to `root`, with `a/../b` resolved. Raises DataError for a file outside of it."""
    name = os.path.relpath(path, root)
    if name.startswith(".."):
        raise DataError(
            f"{place}: a commit record names {path}, outside of the dataset; `ccr-dist shards push` the dataset that it"
            " comes from"
        )
    return name


def behind(root: Path) -> Remote | None:
    """The store behind a folder; None for an ordinary folder."""
    path = root / MARK
    if not path.exists():
        return None
    mark = store.check_object(store.read_json(path), {"url": str, "mirror": bool}, path)
    return Remote(mark["url"], root, mark["mirror"])


def datasets(url: str) -> list[str]:
    """The URLs of the datasets in a folder of a store: the folder itself, or those directly below it."""
    if Store(url).has("dataset.json"):
        return [url]
    return [f"{url}/{name}" for name in Store(url).folders() if name and Store(f"{url}/{name}").has("dataset.json")]


def mirror(url: str) -> Path:
    """The local mirror of the dataset at a URL, with its small files as they are in the store, at most a minute old.

    Raises:
        DataError: there is no dataset.
        StorageError: requests keep failing.
        ConfigError: the URL cannot be opened.
    """
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", url.split("://")[1])[-60:].strip("-.")
    root = cache_folder("remote") / f"{slug}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    if time.monotonic() - _looked.get(root, float("-inf")) < _LOOK_AGAIN_S and (root / "dataset.json").exists():
        return root
    with payload_cache.locked(root.with_name(f"{root.name}.lock")):
        if not Store(url).has("dataset.json"):  # before listing a folder that may hold anything
            names = ", ".join(there.rsplit("/", 1)[-1] for there in datasets(url))
            hint = (
                f"it holds the datasets {names}: name one of them" if names else "`ccr-dist shards push` puts one there"
            )
            raise DataError(f"{url}: not a dataset (no dataset.json); {hint}")
        _refresh(Store(url), root)
    _looked[root] = time.monotonic()
    return root


def look_again() -> None:
    """Makes this process list stores again when it next opens a URL; to be called after writing to one."""
    _looked.clear()
    _listed.clear()


def _refresh(where: Store, root: Path) -> None:
    """Fetches what the mirror lacks.

    What was replaced or removed in the store, against the rules, is removed with all that was derived from it.
    """
    there = {name: entry for name, entry in where.listing().items() if is_metadata(name)}
    here = [f"{path.relative_to(root)}" for path in (*root.glob("*.json"), *root.glob("*/*.json"))]
    stale = [
        name for name in here if is_metadata(name) and (name not in there or not _current(root / name, *there[name]))
    ]
    if "dataset.json" in stale:
        shutil.rmtree(root)
    for column in {name.split("/")[0] for name in stale}:
        shutil.rmtree(root / column, ignore_errors=True)
    root.mkdir(exist_ok=True)
    store.create_once(root / MARK, store.pretty_json({"url": where.url, "mirror": True}))
    missing = [name for name in there if not (root / name).exists()]
    for name, data in zip(missing, where.read(missing), strict=True):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        # Not synced: a file that a power cut damages has another size, and is fetched again.
        with store.staged(path) as tmp:
            tmp.write_bytes(data)
            os.utime(tmp, (time.time(), there[name][1]))
            tmp.replace(path)


def _current(path: Path, size: int, stamp: int) -> bool:
    found = path.stat()
    return found.st_size == size and int(found.st_mtime) == stamp
