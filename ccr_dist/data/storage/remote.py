"""Local folders of datasets that are in an object store. All other code reads local files; this module fetches them.

A dataset folder with a `remote.json` is backed by a store. Its dataset.json, column.json and commit records are local;
keys and indexes are fetched when first needed, payloads through the size-limited cache (`payload_cache.py`). There are
two kinds of such folders: opening a URL mirrors it below $CCR_DIST_CACHE/remote (read-only, kept equal to the store),
and `shards pull --lazy` makes one to work in.

This module does not know tables; `table/stores/push.py` and `table/stores/pull.py` copy whole datasets.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import payload_cache, store
from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.data.storage.object_store import Store
from ccr_dist.errors import DataError

MARK = "remote.json"
_METADATA = re.compile(r"^(dataset\.json|[A-Za-z0-9][A-Za-z0-9._-]*/(column|\d{6,})\.json)$")
_SIBLINGS = re.compile(
    r"^(keys/\d{6,}\.txt|[A-Za-z0-9][A-Za-z0-9._-]*/\d{6,}\.(index\.json|stats\.json|errors\.jsonl))$"
)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_LOOK_AGAIN_S = 60.0  # a process that opens a URL again within this time does not list the store again

_looked: dict[Path, float] = {}
_listed: dict[str, tuple[float, dict[str, int]]] = {}


def is_metadata(name: str) -> bool:
    """Whether a name is of a file that is always local: dataset.json, a column.json or a commit record."""
    return _METADATA.match(name) is not None


def checked_names(names: list[str], place: str) -> list[str]:
    """The names, if all are of keys or of what goes with a shard; else DataError, since names become local paths."""
    if odd := [name for name in names if not _SIBLINGS.match(name)]:
        raise DataError(f"{place}: {odd[0]!r} is not the name of a file of a dataset")
    return names


@dataclass(frozen=True)
class Remote:
    """The store behind a local dataset folder.

    Attributes:
        url: URL of the dataset in the store.
        root: The local folder.
        mirror: Whether the folder belongs to the cache; no job may work in a mirror.
    """

    url: str
    root: Path
    mirror: bool

    def sizes(self) -> dict[str, int]:
        """Bytes of each object in the store, by name. The store is listed at most once a minute."""
        when, found = _listed.get(self.url, (float("-inf"), {}))
        if time.monotonic() - when >= _LOOK_AGAIN_S:
            found = {name: size for name, (size, _) in Store(self.url).listing().items()}
            _listed[self.url] = (time.monotonic(), found)
        return found

    def size_of(self, name: str) -> int | None:
        """Bytes of an object in the store, or None if there is none. One that the listing lacks is looked up again:
        the store may have got it since.
        """
        found = self.sizes()
        if name not in found:
            there = Store(self.url).listing(name)
            found |= {other: size for other, (size, _) in there.items()}
        return found.get(name)

    def update(self, prefix: str) -> dict[str, int]:
        """Bring a mirror up to date for some objects, from a fresh listing.

        Args:
            prefix: Beginning of their names, such as `COLUMN/`.

        Returns:
            Bytes of each of these objects, by name.
        """
        where = Store(self.url)
        with payload_cache.locked(_lock_of(self.root)):  # listings of several processes are then in the order of time
            there = where.listing(prefix)
            known = {name: entry for name, entry in there.items() if is_metadata(name)}
            for path in self.root.glob(f"{prefix}*.json"):
                name = str(path.relative_to(self.root))
                if is_metadata(name) and not (name in known and _current(path, *known[name])):
                    path.unlink(missing_ok=True)
                    path.with_name(f"{path.stem}.index.json").unlink(missing_ok=True)
            _fetch(where, self.root, known)
        return {name: size for name, (size, _) in there.items()}

    def bring(self, path: Path, siblings: Callable[[], Iterable[str]]) -> None:
        """Fetch a small file unless it exists, together with its siblings, which will soon be needed as well.

        Args:
            path: The file.
            siblings: Gives the names of all such files, relative to the dataset; called only if `path` is missing.

        Raises:
            StorageError: It is missing in the store, or requests keep failing.
        """
        if path.exists():
            return
        with payload_cache.locked(self.root / MARK):
            missing = [name for name in siblings() if not (self.root / name).exists()]
            for name, data in zip(missing, Store(self.url).read(checked_names(missing, self.url)), strict=True):
                (self.root / name).parent.mkdir(exist_ok=True)
                store.create_once(self.root / name, data)

    def payload(self, path: Path, record: dict[str, Any]) -> Path:
        """The local file of a payload: `path` if it exists, otherwise the cached copy, fetched and checked if needed.

        Args:
            path: Where the payload would be in this folder.
            record: Its commit record.

        Raises:
            DataError: The record has no digest.
            StorageError: The payload is missing or damaged, or requests keep failing.
            ConfigError: The payload is larger than the cache may be.
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
    """The name of a file relative to a dataset's folder, with `a/../b` resolved.

    Args:
        path: The file.
        root: The dataset's folder.
        place: The dataset, for messages.

    Raises:
        DataError: The file is outside of `root`.
    """
    name = os.path.relpath(path, root)
    if name.startswith(".."):
        raise DataError(
            f"{place}: a commit record names {path}, outside of the dataset; `ccr-dist shards push` the dataset that it"
            " comes from"
        )
    return name


def behind(root: Path) -> Remote | None:
    """The store behind a dataset folder, or None for an ordinary one."""
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
    """The local mirror of the dataset at a URL; its metadata is at most a minute older than the store's.

    Args:
        url: URL of the dataset.

    Returns:
        The mirror's folder.

    Raises:
        DataError: There is no dataset at the URL.
        StorageError: Requests keep failing.
        ConfigError: The URL cannot be opened.
    """
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", url.split("://")[1])[-60:].strip("-.")
    root = cache_folder("remote") / f"{slug}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    if time.monotonic() - _looked.get(root, float("-inf")) < _LOOK_AGAIN_S and (root / "dataset.json").exists():
        return root
    with payload_cache.locked(_lock_of(root)):
        if not Store(url).has("dataset.json"):  # before listing a folder that may hold anything
            names = ", ".join(there.rsplit("/", 1)[-1] for there in datasets(url))
            hint = (
                f"it holds the datasets {names}: name one of them" if names else "`ccr-dist shards push` puts one there"
            )
            raise DataError(f"{url}: not a dataset (no dataset.json); {hint}")
        _refresh(Store(url), root)
    _looked[root] = time.monotonic()
    return root


def _lock_of(root: Path) -> Path:
    return root.with_name(f"{root.name}.lock")


def look_again() -> None:
    """Make this process list stores anew when it next opens a URL. Call it after writing to a store."""
    _looked.clear()
    _listed.clear()


def _refresh(where: Store, root: Path) -> None:
    """Fetch what the mirror lacks.

    Objects that were replaced or removed in the store, against the rules, are removed with everything derived from
    them.
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
    _fetch(where, root, there)


def _fetch(where: Store, root: Path, there: dict[str, tuple[int, int]]) -> None:
    """Fetch the metadata files that the mirror lacks."""
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
    """Whether a mirrored file is the object of this size and stamp."""
    found = path.stat()
    return found.st_size == size and int(found.st_mtime) == stamp
