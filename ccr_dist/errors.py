"""Errors that a user can act on, their exit codes, and the boundary where they end a process.

Every message names the file, key or item, what was expected, and what to do. Exit codes are a contract with programs
that start the process (a shell, SLURM): they say whether trying again can help. Anything not listed here is a bug, and
ends with a traceback and code 1.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from ccr_dist import extras
from ccr_dist.redact import without_secrets
from ccr_dist.terminal import visible

DONE = 0
CRASH = 1
STOPPED = 75  # asked to stop, state saved: start the same command again (BSD's EX_TEMPFAIL)
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE  # the reader of the output has closed it, as `head` does


class Notice(UserWarning):
    """A warning for the person who runs a command, such as a language that was not trained; shown as one line."""


class CcrError(Exception):
    """Base of all errors that are shown as a message without a traceback."""

    exit_code = CRASH


class ConfigError(CcrError, ValueError):
    """The request itself is wrong; trying again cannot help."""

    exit_code = 2


class DataError(CcrError, ValueError):
    """A dataset, shard or item is not what its record says."""

    exit_code = 3


class DataBudgetError(DataError):
    """More broken items than the budget allows."""

    exit_code = 4


class StorageError(CcrError, OSError):
    """Reading or writing fails even after retries, or the disk is full; everything committed before is intact."""

    exit_code = 5


class EngineError(CcrError, RuntimeError):
    """An engine (MT system, MLLM) is missing, died, or gives invalid answers."""

    exit_code = 6


class NonFiniteError(CcrError, ArithmeticError):
    """The loss or the gradient norm is no longer finite."""

    exit_code = 7


class CheckpointError(CcrError, ValueError):
    """A checkpoint is damaged or belongs to another run."""

    exit_code = 8


class HangError(CcrError, RuntimeError):
    """An engine, or a rank in training, showed no sign of life for too long, perhaps because of a dead device; another
    node may succeed.
    """

    exit_code = 9


class SupersededError(CcrError, RuntimeError):
    """A later attempt of the same job works on the same run, so this process must not write to it any more."""

    exit_code = 12


class HeldError(CcrError, RuntimeError):
    """Another process works on the same run or pipeline now; the command has changed nothing, and succeeds when that
    one has ended.
    """

    exit_code = 14


class OutOfMemoryError(CcrError, MemoryError):
    """A step does not fit in the memory of the device or machine; trying again cannot help."""

    exit_code = 10


class MismatchError(CcrError, ArithmeticError):
    """What was made of a model does not compute what the model computes; it was not kept."""

    exit_code = 13


WAIT_S = 3.0  # for which ranks other than the first wait before they report their error

# What to do about a system error, by its number.
_ROOM = "make room and run the same command again"
_ALLOWED = (
    "see that you may read and write there (or name another place, or work on a copy), then run the same command again"
)
_MOVED = "put it back where it was, or name the right place, and run the same command again"
_NAMED = "name another place"
_DESCRIPTORS = "allow more open files (`ulimit -n`), or take fewer workers, and run the same command again"
_NETWORK = "see that the other side can be reached from this machine, and run the same command again"
_ANY = "see what the system's log says of the disk or the file server, and run the same command again"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = {
    **dict.fromkeys(FULL, _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _ALLOWED),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE), _MOVED),
    **dict.fromkeys(
        (errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.EINVAL), _NAMED
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _DESCRIPTORS),
}
# Errors that trying again cannot mend.
_LASTING = frozenset((
    *FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.ENOSYS,
))  # fmt: skip
# Storage fails whatever is requested. Nothing is known about its content: it is neither damaged nor missing, and the
# request is not wrong.
_FAILING = (
    errno.EIO, errno.ESTALE, errno.EBADMSG, errno.EUCLEAN, errno.ENOTCONN, errno.EREMOTEIO, errno.ENOLINK,
    errno.EMFILE, errno.ENFILE,
)  # fmt: skip


def failing(error: BaseException, place: object) -> OSError | None:
    """Find the error of failing storage behind an error: itself, a cause, or one that a library only quotes.

    Args:
        error: The error that was caught.
        place: The file or folder that was read, for errors that name none.

    Returns:
        An OSError that names the file, or None if `error` has another reason.
    """
    cause: BaseException | None = error
    number, file = None, None
    while cause is not None and file is None:
        quoted = (n for n in _FAILING if os.strerror(n) in str(cause))
        here = cause.errno if isinstance(cause, OSError) and cause.errno in _FAILING else next(quoted, None)
        number, file = here or number, getattr(cause, "filename", None) if here else None
        cause = cause.__cause__ or cause.__context__
    return None if number is None else OSError(number, os.strerror(number), str(file or place))


def full(error: BaseException) -> int | None:
    """The number of a full disk, quota or limit on the size of files (FULL) behind an error: its own, that of a cause,
    or one that a library only quotes; None if it has another reason.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause.errno
        if not isinstance(cause, CcrError) and (number := _quoted_full(str(cause))):
            return number
        cause = cause.__cause__ or cause.__context__
    return None


def _quoted_full(text: str) -> int | None:
    if re.search(r"\d+ requested and \d+ written", text):  # NumPy, of a file that it writes itself: without a reason
        return errno.ENOSPC
    return next((number for number in FULL if os.strerror(number) in text), None)


def let_pass(error: BaseException, place: object) -> None:
    """Raise `failing(error, place)` if there is one; for handlers that would otherwise blame the request.

    A model that cannot be read is not a wrong name. All files of a folder are checked, since libraries treat an
    unreadable one as missing.

    Args:
        error: The error that was caught.
        place: The file or folder that was read.

    Raises:
        OSError: Storage fails.
    """
    failure = failing(error, place)
    try:
        folder = Path(str(place).removeprefix("local-dir:"))
        for path in folder.iterdir() if folder.is_dir() else ():
            path.stat()
    except (OSError, ValueError) as wrong:  # ValueError: no valid name of a folder
        failure = failure or failing(wrong, place)
    if failure:
        raise failure from error


def lasting(error: OSError) -> bool:
    """Whether a retry would fail in the same way, so that waiting is useless."""
    kinds = PermissionError | NotADirectoryError | IsADirectoryError  # clients of stores set no errno
    return error.errno in _LASTING or isinstance(error, kinds)


def storage(error: OSError, path: object = None) -> StorageError:
    """Turn a system error into a StorageError whose message says what happened and what to do.

    Args:
        error: The system error.
        path: The file or folder, if the error names none or a temporary one.
    """
    names = [
        os.fsdecode(name) if isinstance(name, bytes) else str(name)
        for name in (error.filename, error.filename2)
        if name is not None
    ]
    where = str(path or " -> ".join(map(_final, names))) or _place(error)
    intact = "Everything committed before is intact"
    number = error.errno if error.errno is not None else full(error)
    if number is not None and number in errno.errorcode:
        advice = _NETWORK if isinstance(error, ConnectionError | TimeoutError) else _ADVICE.get(number, _ANY)
        return StorageError(f"{where}: {os.strerror(number)}. {intact}; {advice}")
    said = _said(error)
    if isinstance(error, PermissionError):
        return StorageError(f"{where}: {said}. {intact}; {_ALLOWED}")
    if type(error).__module__.partition(".")[0] in ("socket", "ssl", "urllib", "requests", "urllib3", "httpx"):
        return StorageError(f"{where}: {said}. {intact}; {_NETWORK}")
    return StorageError(
        f"{where}: {type(error).__name__}: {said}. {intact}; CCR_TRACEBACK=1 shows where this comes from"
    )


def words(error: OSError) -> str:
    """What a system error says, without its number and files: of a store, the store's own words."""
    said = str(error) if error.errno is None else str(error.strerror or os.strerror(error.errno))
    return " ".join(said.split()).rstrip(".")


def _final(name: str) -> str:
    """The final name of a file that is written under a temporary one (`data.storage.store.staged`)."""
    path = Path(name)
    return (
        str(path.with_name(path.name[5:].rsplit(".", 3)[0]))
        if path.name.startswith(".tmp-") and path.name.count(".") > 3
        else name
    )


def _said(error: Exception) -> str:
    """The message, without the traceback that a loader's process puts before it."""
    kind = type(error)
    text = str(error)
    for name in (f"{kind.__module__}.{kind.__name__}", kind.__name__):
        text = text.rpartition(f"\n{name}: ")[2]
    return text.strip() or kind.__name__


def _place(error: BaseException) -> str:
    """The place of an error that names no path: the file open where it was raised, or the innermost line of this
    package, or the current folder if that is gone.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        return "the current folder"
    package, known = Path(__file__).parent, type(error).__name__
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if len(names := _open_files(frame.f_locals.values())) == 1:  # errors of an open file name no path
            return names.pop()
        code = Path(frame.f_code.co_filename)
        if code.is_relative_to(package):
            known = f"{code.relative_to(package.parent)}, line {line}"
            if code != Path(__file__):
                break
    return known


def _open_files(values: Iterable[object]) -> set[str]:
    files = (value for value in values if isinstance(value, io.IOBase))
    return {name for file in files if isinstance(name := getattr(file, "name", None), str)}


@contextlib.contextmanager
def boundary() -> Iterator[None]:
    """Context manager around a command: turns errors into a message on stderr and an exit code.

    Handles the errors of this file, system errors (as StorageError), missing modules of an extra, Ctrl-C, and output
    whose reader is gone. All others are bugs, and pass. With CCR_TRACEBACK set, the traceback is printed as well.

    Raises:
        SystemExit: With the exit code.
    """
    try:
        yield
        sys.stdout.flush()  # otherwise it would fail at interpreter exit, with another code
    except CcrError as error:
        _end(error, _said(error), error.exit_code)
    except OSError as error:
        if isinstance(error, io.UnsupportedOperation) or error.errno == errno.EBADF:  # a bug, not a fault of a disk
            raise
        if isinstance(error, BrokenPipeError) and (unread := [fd for fd in (1, 2) if _unread(fd)]):
            for fd in unread:  # the interpreter flushes them again at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
            sys.exit(UNREAD)
        _end(error, str(storage(error)), StorageError.exit_code)
    except ModuleNotFoundError as error:
        if (advice := extras.advice(error.name)) is None:  # a bug, or a damaged installation
            raise
        _end(error, advice, ConfigError.exit_code)
    except KeyboardInterrupt as error:
        _end(
            error, "interrupted. Everything committed before is intact; the same command resumes", INTERRUPTED, word=""
        )


def _end(error: BaseException, text: str, code: int, word: str = "error: ") -> None:
    if os.environ.get("CCR_TRACEBACK"):
        traceback.print_exception(error)
    _after_the_first(code)
    with contextlib.suppress(OSError):  # there may be no room for the message
        print(f"{word}{visible(without_secrets(text))}", file=sys.stderr, flush=True)
    sys.exit(code)


def _after_the_first(code: int) -> None:
    """If ranks of a launcher end with the same error, only the first reports it.

    Other ranks wait, and the launcher ends them. If it does not, their error is another one, or there is no launcher.
    """
    if os.environ.get("RANK", "0").strip() in ("", "0") or "MASTER_ADDR" not in os.environ:
        return
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(code))
        time.sleep(WAIT_S)


def _unread(fd: int) -> bool:
    """Whether the reader of a pipe or socket is gone."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
