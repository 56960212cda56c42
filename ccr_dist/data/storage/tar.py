"""Tar shards: writing them so that equal content gives equal bytes, and finding members again without reading the tar.

A shard is a plain WebDataset tar. Nothing here knows about columns, and nothing is ever extracted to disk.
"""

from __future__ import annotations

import io
import os
import re
import resource
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import DataError

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"^__[^/]*__(?:$|/)")
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_KINDS = {
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"PK\x03\x04": "a ZIP archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a pointer of Git LFS (run `git lfs pull`)",
    b"<!DOCTYPE": "a page of HTML (a download that failed?)",
    b"<html": "a page of HTML (a download that failed?)",
}
_ASKED = 1 << 19  # bytes: of one request for more than a device reads at once, Linux drops the rest


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member by WebDataset's rule: the key ends at the first dot of the basename; the extension
    is lower-cased.

    None for what WebDataset itself passes over (names without an extension, `__meta__/` members) and for hidden files.
    """
    match = _NAME.match(name)
    if match is None or _META.match(name) or match[1].endswith("/"):
        return None
    return match[1], match[2].lower()


def is_key(key: str) -> bool:
    """Whether a dataset can have this key: printable, relative, with no dot in its last part."""
    return (
        split_name(f"{key}.x") == (key, "x")
        and key.isprintable()
        and not key.startswith("/")
        and ".." not in key.split("/")
    )


class TarWriter:
    """Writes members in the given order; the bytes depend on names and contents alone (no times, owners or modes).

    `target` is a path or a binary file object, which stays open.
    """

    def __init__(self, target: str | Path | IO[bytes]) -> None:
        self._own = Path(target).open("wb") if isinstance(target, str | Path) else None  # noqa: SIM115
        fileobj: Any = self._own or target
        self._tar = tarfile.open(fileobj=fileobj, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8")  # noqa: SIM115

    def add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        try:
            self._tar.close()
        finally:
            if self._own:
                self._own.close()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._own:  # a failed tar gets no end mark: nobody may take it for a complete one
            self._own.close()


class Members(Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """Extension -> (offsets, sizes), int64 arrays by row; size -1: no such member. Only members that exist are held:
    names like `cam_1.1690.jpg`, in which WebDataset's rule finds as many extensions as rows, would need the square of
    the rows.
    """

    def __init__(self, rows: int, found: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        self._rows, self._found = rows, dict(found)  # extension -> (rows, offsets, sizes)

    def __getitem__(self, extension: str) -> tuple[np.ndarray, np.ndarray]:
        rows, theirs, lengths = self._found[extension]
        offsets, sizes = np.zeros(self._rows, np.int64), np.full(self._rows, -1, np.int64)
        offsets[rows], sizes[rows] = theirs, lengths
        return offsets, sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def count(self, extension: str) -> int:
        """How many rows have such a member."""
        return len(self._found[extension][0]) if extension in self._found else 0

    def each(self) -> Iterator[tuple[str, int, int, int]]:
        """(extension, row, offset, size) of every member."""
        for extension, places in self._found.items():
            for row, offset, size in zip(*(part.tolist() for part in places), strict=True):
                yield extension, row, offset, size


@dataclass(frozen=True)
class ShardIndex:
    """Where every member of a tar lies: per extension (offsets, sizes), int64 arrays in the order of `keys`; size -1:
    no such member.
    """

    keys: tuple[str, ...]
    members: Members | dict[str, tuple[np.ndarray, np.ndarray]]
    ignored: int = 0  # members that WebDataset passes over as well (see `split_name`)
    odd: tuple[str, ...] = ()  # names of members that are passed over because no dataset can have their key

    @staticmethod
    def scan(path: str | Path, *, prefix: str = "", usable: bool = False) -> ShardIndex:
        """Reads the headers of a tar. DataError, naming tar, offset and member, on truncation, garbage, duplicates, odd
        members, more than one archive in the file, and compressed files. prefix: put before every key. usable: members
        whose key a dataset cannot have are passed over, and named in `odd`.
        """
        rows: dict[str, int] = {}
        found: dict[str, dict[int, tuple[int, int]]] = {}
        ignored, odd = 0, list[str]()
        with disk_errors(path), Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if kind := _other_kind(file.read(_BLOCK)):
                raise DataError(
                    f"{path}: {kind}, not a plain tar; values are read at their places in plain tars: unpack or"
                    " convert it"
                )
            file.seek(0)
            tar = None
            try:
                tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115
                for member in tar:
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse():
                        what = f"member {member.name!r} at byte {member.offset}"
                        raise DataError(f"{path}: {what} is a link, a device or sparse; expected plain files")
                    if (end := member.offset_data + member.size) > size:
                        raise DataError(
                            f"{path}: truncated inside member {member.name!r}: it ends at byte {end}, the file at"
                            f" {size}"
                        )
                    name = split_name(member.name)
                    if name is None:
                        ignored += 1
                        continue
                    if usable and not is_key(name[0]):
                        odd.append(member.name)
                        continue
                    key, extension = prefix + name[0], name[1]
                    row = rows.setdefault(key, len(rows))
                    column = found.setdefault(extension, {})
                    if row in column:
                        raise DataError(f"{path}: two members {key}.{extension} (the second at byte {member.offset})")
                    column[row] = (member.offset_data, member.size)
            except (OSError, DataError):
                raise
            except (
                Exception
            ) as e:  # a damaged header: tarfile's own errors, and whatever its number and text parsers raise
                raise DataError(
                    f"{path}: not a complete tar: {e} (at byte {tar.offset if tar else 0} of {size})"
                ) from e
            # tarfile takes a damaged header for the end of the archive; a real end is a block of zeros.
            file.seek(tar.offset)
            mark = file.read(_BLOCK)
            if mark != bytes(_BLOCK):
                fault = "truncated: no end mark" if len(mark) < _BLOCK else "damaged: no tar header and no end mark"
                raise DataError(f"{path}: {fault} at byte {tar.offset} of {size}; copy or build this shard again")
            _require_end(file, path, size)
        members = {}
        for extension, places in found.items():
            theirs = np.array([*places.values()], np.int64).reshape(-1, 2)
            members[extension] = (np.fromiter(places, np.int64, len(places)), theirs[:, 0], theirs[:, 1])
        return ShardIndex(tuple(rows), Members(len(rows), members), ignored, tuple(odd))

    def only(self, extensions: str) -> ShardIndex:
        """The same with the members of the extensions `a;b;c` alone."""
        return ShardIndex(
            self.keys, {e: self.members[e] for e in extensions.split(";") if e in self.members}, self.ignored
        )

    def count(self, extension: str) -> int:
        """How many rows have such a member."""
        if isinstance(self.members, Members):
            return self.members.count(extension)
        return int((self.members[extension][1] >= 0).sum()) if extension in self.members else 0

    def to_json(self) -> dict[str, Any]:
        members = {ext: {"offsets": o.tolist(), "sizes": s.tolist()} for ext, (o, s) in self.members.items()}
        return {"keys": list(self.keys), "members": members, "ignored": self.ignored}

    @staticmethod
    def from_json(obj: dict[str, Any]) -> ShardIndex:
        members = {
            ext: (np.asarray(m["offsets"], np.int64), np.asarray(m["sizes"], np.int64))
            for ext, m in obj["members"].items()
        }
        return ShardIndex(tuple(obj["keys"]), members, obj.get("ignored", 0))


def _other_kind(start: bytes) -> str | None:
    """What a file is that begins with this block, where it is of a known kind that is no tar."""
    if start[257:262] == b"ustar":
        return None
    return next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)


def _require_end(file: IO[bytes], path: str | Path, size: int) -> None:
    """DataError unless nothing but zeros follows in the file. WebDataset, like tar itself, would stop here and never
    see the rest.
    """
    while chunk := file.read(_CHUNK):
        if chunk.count(0) == len(chunk):
            continue
        at = file.tell() - len(chunk)
        blocks = np.frombuffer(chunk.ljust(-(-len(chunk) // _BLOCK) * _BLOCK, b"\0"), np.uint8).reshape(-1, _BLOCK)
        first = int(np.flatnonzero(blocks.any(axis=1))[0])
        if blocks[first, 257:262].tobytes() == b"ustar":
            what = (
                "another archive follows its end mark, as `cat a.tar b.tar` makes: readers of WebDataset stop before it"
                " and lose its rows; "
            )
            raise DataError(
                f"{path}: {what}give the tars one by one (or join them with `tar --concatenate`); it begins at byte"
                f" {at + first * _BLOCK}"
            )
        raise DataError(
            f"{path}: after its end mark come bytes that are no tar (the first at byte {at + first * _BLOCK} of"
            f" {size}): damaged, or something was appended; copy or build this shard again"
        )


class _Descriptor:
    """An open file; closed when neither the cache nor a reading thread refers to it any more."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for somebody who writes
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise DataError(f"{path}: no plain file")

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# a reader of many lanes has that many shards open at once
_KEPT = 4096 if _FILES == resource.RLIM_INFINITY else min(4096, _FILES // 2)


@lru_cache(maxsize=_KEPT)
def _descriptor(path: str, content: str) -> _Descriptor:
    return _Descriptor(path)


def forget_files() -> None:
    """Closes cached descriptors (after a file was replaced or a mount came back)."""
    _descriptor.cache_clear()


def will_read(path: str | Path, start: int, stop: int, content: str = "") -> None:
    """Asks the kernel to read the bytes from `start` to `stop` into its cache, and does not wait. `content`: as in
    `read_at`.

    Nothing where the system has no such request.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    handle = _descriptor(str(path), content)
    for at in range(start, stop, _ASKED):
        os.posix_fadvise(handle.fd, at, min(_ASKED, stop - at), os.POSIX_FADV_WILLNEED)


def read_at(path: str | Path, offset: int, size: int, content: str = "") -> bytes:
    """`size` bytes from `offset`. DataError when the file ends before; OSErrors pass (wrap the call in
    `store.retry_io`).

    content: the digest that the file should have; a file that was removed and made again is then not read through the
        old descriptor.

    Safe in threads and after fork: positional reads share no file position, and descriptors live as long as somebody
    reads.
    """
    parts, end = [], offset + size
    try:
        handle = _descriptor(str(path), content)
        while offset < end:
            part = os.pread(handle.fd, end - offset, offset)
            if not part:
                raise DataError(f"{path}: truncated: expected {end} bytes at least, the file ends at {offset}")
            parts.append(part)
            offset += len(part)
    except OSError as e:
        e.filename = e.filename or str(path)
        forget_files()  # a stale handle would fail for ever
        raise
    return b"".join(parts)
