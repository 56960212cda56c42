"""Reads Parquet files with pyarrow (the extra `parquet`): rows of small columns as records, large values one by one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccr_dist.errors import ConfigError, DataError


class RowPlace(NamedTuple):
    """The place of a row.

    Attributes:
        path: The file.
        group: Number of the row group.
        row: Number of the row in its group.
    """

    path: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.path}: row group {self.group}, row {self.row}"


def opened(path: str) -> Any:
    """Open a file as `pyarrow.parquet.ParquetFile`.

    Raises:
        ConfigError: pyarrow is not installed, or the file does not exist.
        DataError: It is not a complete Parquet file.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise ConfigError(f"{path}: Parquet needs pyarrow ({e}); pip install 'ccr-dist[parquet]'") from None
    try:
        return parquet.ParquetFile(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except pyarrow.ArrowInvalid as e:
        raise DataError(f"{path}: not a complete Parquet file ({e}); get it again") from None


def records(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[tuple[RowPlace, dict[str, Any]]]:
    """Read the rows of a file, with one row group in memory at a time.

    Args:
        path: The file.
        columns: The columns to read; None: all.

    Yields:
        The place and values of each row.

    Raises:
        ConfigError: pyarrow is not installed, or the file does not exist.
        DataError: The file is damaged.
    """
    for group in range(opened(str(path)).num_row_groups):
        rows = _read(str(path), group, columns).to_pylist()
        yield from ((RowPlace(str(path), group, row), values) for row, values in enumerate(rows))


def value(place: RowPlace, column: str) -> Any:
    """One value of a column. If rows are read in order, each row group is read once."""
    about = Path(place.path).stat()
    return _column(place.path, place.group, column, (about.st_size, about.st_mtime_ns))[place.row].as_py()


def digest(path: str | Path) -> str:
    """sha256 of a file's size and footer, since the file itself may have hundreds of gigabytes.

    The footer holds position, size and (usually) bounds of all column chunks.
    """
    opened(str(path))
    with Path(path).open("rb") as file:
        size = file.seek(-8, 2) + 8
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(b"%d " % size + file.read(length)).hexdigest()


@functools.lru_cache(maxsize=1)
def _column(path: str, group: int, column: str, of: tuple[int, int]) -> Any:
    """A column of a row group, cached. `of`: size and mtime (ns) of the file, so that a changed file is read again."""
    return _read(path, group, [column]).column(column)


def _read(path: str, group: int, columns: Sequence[str] | None) -> Any:
    import pyarrow

    try:
        return opened(path).read_row_group(group, columns=None if columns is None else list(columns))
    except (pyarrow.ArrowException, OSError) as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise DataError(f"{path}: row group {group} is damaged ({e}); get the file again") from None
