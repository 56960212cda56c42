"""Client of object stores: s3://, gs:// and all others that fsspec knows.

Knows neither datasets nor tables (`remote.py`, `table/stores/`). Credentials, endpoints and other options are given as
fsspec and its client libraries expect them (AWS_ENDPOINT_URL, ~/.aws, FSSPEC_S3_..., ~/.config/fsspec).
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ccr_dist import errors
from ccr_dist.data.storage import store, store_clients
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

    def listing(self, prefix: str = "") -> dict[str, tuple[int, int]]:
        """(bytes, stamp) of all objects at any depth, by name in the folder. Writing an object changes its stamp.

        Args:
            prefix: Only the objects whose names begin so.
        """
        return {name: (int(info["size"] or 0), store_clients.stamp(info)) for name, info in self._find(prefix).items()}

    def changed(self, prefix: str = "") -> dict[str, float]:
        """When the objects whose names begin so were last written: unix time in seconds by the store's clock; 0 where
        the store does not tell.
        """
        return {name: store_clients.written(info) for name, info in self._find(prefix).items()}

    def _find(self, prefix: str) -> dict[str, dict[str, Any]]:
        """What the store tells of the objects whose names begin with `prefix`, by name."""
        folder, _, start = prefix.rpartition("/")

        def find(fs: Any, root: str) -> dict[str, dict[str, Any]]:
            place = f"{root}/{folder}" if folder else root
            found = fs.find(place, detail=True, **({"prefix": start} if start else {})).items()
            names = {name[len(root) :].lstrip("/"): info for name, info in found if name != root}
            return {name: info for name, info in names.items() if name.startswith(prefix)}

        return self._do(f"{self.url}/{prefix}" if prefix else self.url, find)

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

    def get(self, name: str) -> bytes | None:
        """The content of a small object, or None if there is none."""

        def cat(fs: Any, root: str) -> bytes | None:
            try:
                return fs.cat_file(f"{root}/{name}")
            except FileNotFoundError as e:
                if _NO_BUCKET.search(str(e)):
                    raise
                return None

        return self._do(f"{self.url}/{name}", cat)

    def create(self, name: str, data: bytes, *, unique: bool = True) -> bool:
        """Create an object unless it exists (`If-None-Match: *`); an existing one is left unchanged.

        Args:
            name: Its name.
            data: Its bytes.
            unique: Whether nobody else creates it with these bytes. A request whose answer was lost is sent again, and
                then refused because of itself; it is recognised by its bytes.

        Returns:
            Whether the object was created here. If `unique` is False, also False where the answer was lost.
        """

        created = self._create(name, lambda fs, path: fs.pipe_file(path, data, mode="create"))
        return created or (unique and self.get(name) == data)

    def create_file(self, name: str, path: Path) -> bool:
        """`create` with the bytes of a local file; large ones are sent in parts.

        Returns:
            Whether this call created the object; also False if it did and the answer was lost.
        """
        return self._create(name, lambda fs, there: fs.put_file(str(path), there, mode="create"))

    def _create(self, name: str, call: Callable[[Any, str], object]) -> bool:
        """Whether `call(file system, path of the object)` creates an object; False if the store says that it exists."""

        def put(fs: Any, root: str) -> bool:
            try:
                call(fs, f"{root}/{name}")
            except Exception as e:
                if store_clients.refused(e):
                    return False
                if isinstance(e, FileNotFoundError) and e.filename is None and not _NO_BUCKET.search(str(e)):
                    # The parts that were sent are gone: perhaps they are the object, and that answer was lost.
                    raise OSError(str(e)) from e
                raise
            return True

        return self._do(f"{self.url}/{name}", put)

    def fetch(self, name: str, path: Path) -> None:
        """Write an object's bytes to a local file, unchecked."""
        self._do(f"{self.url}/{name}", lambda fs, root: fs.get_file(f"{root}/{name}", str(path)))

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; missing ones are fine."""

        def remove(name: str) -> None:
            def rm(fs: Any, root: str) -> None:
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(f"{root}/{name}")

            self._do(f"{self.url}/{name}", rm)

        if len(names) == 1:
            remove(names[0])
        elif names:
            with ThreadPoolExecutor(min(8, len(names))) as pool:
                list(pool.map(remove, names))

    def can_create(self) -> bool:
        """Whether the store's client can create an object only if it is absent; the store itself may not know how."""
        return bool(self._do(self.url, lambda fs, root: store_clients.creates(fs)))

    def create_or_upload(self, name: str, path: Path) -> bool:
        """Create an object with the bytes of a local file; replace one where client or store do not know the condition.

        Returns:
            Whether the object has these bytes now.
        """
        if self.can_create():
            try:
                return self.create_file(name, path) or self.holds(name, path)
            except StorageError as e:
                if not isinstance(e.__cause__, OSError) or e.__cause__.errno != errno.ENOSYS:
                    raise
        self.upload(name, path)
        return True

    def holds(self, name: str, path: Path) -> bool:
        """Whether an object has the bytes of a local file."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "object"
            self.fetch(name, copy)
            return filecmp.cmp(copy, path, shallow=False)

    def require_create_once(self, name: str) -> None:
        """Check that objects may be created here, and that this store creates one only if it is absent.

        Args:
            name: An object that exists. It is created again with its own bytes, which must fail.

        Raises:
            ConfigError: The store, or its client, ignores the condition.
        """
        advice = "several workers cannot share a dataset there; work in a folder, then `ccr-dist shards push` it"
        if not self._do(self.url, lambda fs, root: store_clients.creates(fs)):
            raise ConfigError(
                f"{self.url}: its client does not create objects on the condition that they are absent (If-None-Match:"
                f" *); {advice}"
            )
        try:
            created = self.create(name, self.read([name])[0], unique=False)
        except StorageError as e:
            if not isinstance(e.__cause__, OSError) or e.__cause__.errno != errno.ENOSYS:
                raise
            raise ConfigError(
                f"{self.url}/{name}: {errors.words(e.__cause__)}: this store does not know the condition"
                f" If-None-Match: * (create only what is absent); {advice}"
            ) from e
        if created:
            raise ConfigError(
                f"{self.url}/{name}: could be created a second time: this store ignores the condition If-None-Match: *"
                f" (create only what is absent); {advice}"
            )

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
            except PermissionError as e:
                if remedy := store_clients.remedy(e):
                    raise StorageError(
                        f"{what}: {errors.words(e)}. Everything committed before is intact; {remedy}, and run the same"
                        " command again"
                    ) from e
                raise
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
