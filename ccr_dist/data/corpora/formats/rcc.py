"""Reads files out of Qt's binary resources (`.rcc`)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from ccr_dist.errors import DataError

_COMPRESSED, _FOLDER, _OTHER_COMPRESSION = 1, 2, 4  # flags of a node; the last is Zstandard
_NODE_BYTES = {1: 14, 2: 22, 3: 22}  # by version of the format
_DEEPEST = 64


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a resource.

    Args:
        path: The `.rcc`.

    Yields:
        (path in the resource, content).

    Raises:
        DataError: It is no such file, it is damaged, or it is compressed in a way that this reader does not know.
    """
    data = path.read_bytes()
    try:
        magic, version, tree, content, names = struct.unpack_from(">4sIIII", data)
        if magic != b"qres" or version not in _NODE_BYTES:
            raise DataError(f"{path}: not a Qt resource of version 1 to 3")
        yield from _below(data, 0, "", (tree, content, names, _NODE_BYTES[version]), 0)
    except (struct.error, zlib.error, UnicodeDecodeError, ValueError) as e:
        raise DataError(f"{path}: a damaged Qt resource ({type(e).__name__}: {e})") from e


def _below(data: bytes, node: int, folder: str, places: tuple[int, ...], depth: int) -> Iterator[tuple[str, bytes]]:
    tree, content, names, size = places
    name, flags = struct.unpack_from(">IH", data, tree + node * size)
    path = folder
    if node:
        (length,) = struct.unpack_from(">H", data, names + name)
        path += data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be")
    if flags & _FOLDER:
        count, first = struct.unpack_from(">II", data, tree + node * size + 6)
        if depth > _DEEPEST or first + count > len(data) // size:
            raise ValueError("a folder that holds itself")
        for child in range(first, first + count):
            yield from _below(data, child, f"{path}/" if node else "", places, depth + 1)
        return
    (at,) = struct.unpack_from(">I", data, tree + node * size + 10)
    (length,) = struct.unpack_from(">I", data, content + at)
    value = data[content + at + 4 : content + at + 4 + length]
    if len(value) < length or flags & _OTHER_COMPRESSION:
        raise ValueError(f"{path} is cut short" if len(value) < length else f"{path} is compressed by Zstandard")
    yield path, zlib.decompress(value[4:]) if flags & _COMPRESSED else value
