"""Writes files atomically, durably and, where that matters, exactly once; digests of files and of JSON.

Everything that writes below a dataset or a run folder goes through here. Nothing here knows what a dataset is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ccr_dist import errors
from ccr_dist.errors import CcrError, DataError, StorageError

T = TypeVar("T")

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
TEMPORARY = ".tmp-"  # prefix of files that are being written; after a crash, files with it can be removed


def canonical_json(obj: Any) -> bytes:
    """Canonical JSON: sorted keys, compact, UTF-8. Raises ValueError for NaN and infinities."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def pretty_json(obj: Any) -> bytes:
    """JSON as in metadata files, readable for people. Raises ValueError for NaN and infinities."""
    return (json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_json(obj: Any) -> str:
    """sha256 (hex) of a JSON value in canonical form."""
    return hashlib.sha256(canonical_json(obj)).hexdigest()


def sha256_file(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with disk_errors(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: str | Path) -> bytes:
    """The content of a file. An OSError always names the file."""
    with disk_errors(path), open(path, "rb") as file:  # noqa: PTH123 (thousands of files)
        return file.read()


def read_json(path: str | Path) -> Any:
    """The JSON value in a file.

    Raises:
        DataError: The file does not exist or is not JSON; names it.
        OSError: Storage fails.
    """
    try:
        return json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not valid JSON ({e})") from e


def with_digest(obj: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with a last key `digest`, which covers all others. Raises ValueError for NaN."""
    # As it will be when read back: lists instead of tuples, text instead of numbers as keys.
    obj = json.loads(json.dumps(dict(obj), allow_nan=False))
    return {**obj, "digest": digest_json(obj)}


def check_object(
    obj: Any, fields: Mapping[str, type], place: object, *, optional: Container[str] = ()
) -> dict[str, Any]:
    """Checks the fields, types and digest of a JSON object.

    Args:
        obj: What was read.
        fields: All fields with their types; integers must not be negative.
        place: Beginning of messages, usually the file.
        optional: Fields that may be missing. `digest` may be missing as well, since earlier versions wrote none.

    Returns:
        `obj`.

    Raises:
        DataError: It is no such object, or its digest does not match.
    """
    if not isinstance(obj, dict):
        raise DataError(f"{place}: expected a JSON object, found {repr(obj)[:80]}: the file was edited or damaged")
    wrong = [key for key in obj if key != "digest" and key not in fields]
    wrong += [key for key in fields if key not in obj and key not in optional]
    wrong += [
        key for key, of in fields.items() if key in obj and (type(obj[key]) is not of or (of is int and obj[key] < 0))
    ]
    if wrong:
        raise DataError(
            f"{place}: {', '.join(map(repr, wrong[:8]))} unknown, missing or of a wrong type: the file was edited or"
            " damaged"
        )
    try:
        same = "digest" not in obj or obj["digest"] == digest_json(
            {key: value for key, value in obj.items() if key != "digest"}
        )
    except ValueError:  # NaN, half of a surrogate pair: not written by ccr-dist
        same = False
    if not same:
        raise DataError(f"{place}: the digest does not match the content: the file was edited or damaged")
    return obj


def differences(there: Any, asked: Any, at: str = "") -> list[str]:
    """The differences of two JSON values, one line each: `plan.model: there 'a', asked 'b'`."""
    if isinstance(there, dict) and isinstance(asked, dict):
        lines = []
        for key in sorted({*there, *asked}, key=str):
            where = f"{at}.{key}" if at else str(key)
            if key not in there:
                lines.append(f"{where}: there (absent), asked {asked[key]!r}")
            elif key not in asked:
                lines.append(f"{where}: there {there[key]!r}, asked (absent)")
            else:
                lines += differences(there[key], asked[key], where)
        return lines
    if isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        return [
            line for i, (a, b) in enumerate(zip(there, asked, strict=True)) for line in differences(a, b, f"{at}[{i}]")
        ]
    return [] if there == asked else [f"{at or 'value'}: there {there!r}, asked {asked!r}"]


def require_same(path: object, there: Any, asked: Any, what: str) -> None:
    """Raises DataError, with `path`, `what` and the difference, unless the two JSON values are equal."""
    lines = differences(there, asked)
    if lines:
        shown = "\n  ".join(lines[:20] + ([f"... {len(lines) - 20} more"] if len(lines) > 20 else []))
        raise DataError(
            f"{path}: {what}; the difference:\n  {shown}\nuse another output (or name), or remove the existing one"
        )


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turns a full disk, quota or file-size limit inside the block into a StorageError, also where a library only
    quotes the system.

    Other OSErrors pass; if they name no path or a temporary one, they name this one instead.
    """
    try:
        yield
    except CcrError:
        raise
    except Exception as e:
        if (number := errors.full(e)) is not None:
            raise errors.storage(OSError(number, os.strerror(number)), path) from e
        if (
            isinstance(e, OSError)
            and e.errno is not None
            and (e.filename is None or Path(os.fsdecode(e.filename)).name.startswith(TEMPORARY))
        ):
            e.filename, e.filename2 = str(path), None
        raise


class Plain:
    """A file as NumPy may write to it. A real one it writes itself, and does not say why that fails."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def tidy(folder: Path) -> None:
    """Removes temporary files in a folder whose process ran on this host and is dead. Others may be in use."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (thousands of names)
    except (FileNotFoundError, NotADirectoryError):
        return
    ours = re.compile(rf"{re.escape(TEMPORARY)}.+\.{re.escape(socket.gethostname())}\.(\d+)\.[0-9a-f]{{8}}")
    for name in names:
        if (match := ours.fullmatch(name)) and not is_alive(int(match[1])):
            (folder / name).unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable. Raises StorageError on a full disk; other OSErrors name the folder."""
    with disk_errors(folder):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file name in the folder of `path`.

    The block (or `publish_once`) moves the file to its place. If the block fails, the temporary file is removed.

    Raises:
        StorageError: The disk is full.
    """
    path = Path(path)
    tmp = path.with_name(f"{TEMPORARY}{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with disk_errors(path):
            yield tmp
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Writes and fsyncs a file; not atomic by itself."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_atomic(path: str | Path, data: bytes) -> None:
    """Writes or replaces a file so that every reader, at any time, sees the old or the new content in full."""
    path = Path(path)
    with staged(path) as tmp:
        write_synced(tmp, data)
        tmp.replace(path)
        sync_folder(path.parent)


def create_once(path: str | Path, data: bytes) -> bool:
    """Creates a file unless it exists; an existing one is left unchanged.

    Returns:
        Whether this call created it: of several callers at the same time, exactly one gets True.
    """
    path = Path(path)
    if path.exists():
        return False
    with staged(path) as tmp:
        tmp.write_bytes(data)
        return publish_once(tmp, path)


def publish_once(tmp: Path, path: str | Path) -> bool:
    """`create_once` for content that is already in the temporary file `tmp` of the same folder.

    A hard link is the only way on POSIX, NFS included, to create a file with its full content only if it does not
    exist. `tmp` is removed in any case.

    Returns:
        Whether this call created the file; also False if a faster process has removed `tmp`.

    Raises:
        StorageError: The disk is full, or the file system has no hard links.
    """
    path = Path(path)
    try:
        with disk_errors(path):
            fd = os.open(tmp, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(tmp, path)
                created = True
            except FileExistsError:
                # NFS may repeat a request whose answer was lost, and then reports our own link
                created = tmp.samefile(path)
            except OSError as e:
                if e.errno in NO_LINKS:
                    raise StorageError(
                        f"{path.parent}: this file system has no hard links; put the dataset on one that has"
                    ) from e
                raise
            sync_folder(path.parent)
            return created
    except FileNotFoundError:
        if path.exists():  # the process that made it took `tmp` for the file of a dead process, and removed it
            return False
        raise
    finally:
        tmp.unlink(missing_ok=True)


def retry_io(fn: Callable[[], T], *, what: object, attempts: int = 3, delay_s: float = 0.5) -> T:
    """Calls fn(), again after an OSError.

    Args:
        fn: The call.
        what: Its name in messages; turned into text only when needed.
        attempts: Number of calls in all.
        delay_s: Seconds before the second call; each further wait is twice as long.

    Returns:
        The result of fn().

    Raises:
        StorageError: Every attempt failed, or an error occurred that a retry cannot mend (a full disk, no permission);
            names `what`. Errors other than OSError pass.
    """
    for attempt in range(1, attempts + 1):
        try:
            return fn()
        except StorageError:
            raise
        except OSError as e:
            if errors.lasting(e):
                raise errors.storage(e, what) from e
            if attempt == attempts:
                raise StorageError(
                    f"{what}: {errors.words(e)} ({attempts} attempts). Everything committed before is intact; the same"
                    " command resumes once this is mended"
                ) from e
            time.sleep(delay_s * 2 ** (attempt - 1))
    raise ValueError(f"attempts must be at least 1, not {attempts}")
