"""Safetensors files of weights: written as any file is (errors are OSErrors, the mode is the umask's), read back only
as they were written.

A file can carry facts about its tensors and a digest of both, in the one metadata entry `ccr_dist`; every reader of
safetensors opens it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ccr_dist.errors import CheckpointError

ENTRY = "ccr_dist"
# In the library's order: tensors lie by type, the last one first, then by name.
TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
READ = {name: kind for kind, name in TYPES.items()} | {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip
LONGEST = 100_000_000  # bytes of a header, as the library has it


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Writes and fsyncs a file, the very bytes that the library would write. facts: JSON; with them the file carries a
    digest.

    ValueError on tensors of a type that is not in `TYPES`.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if odd := sorted({str(tensor.dtype) for tensor in flat.values() if tensor.dtype not in TYPES}):
        raise ValueError(f"{path}: tensors of type {', '.join(odd)} cannot be written")
    places = {kind: place for place, kind in enumerate(TYPES)}
    header: dict[str, Any] = {}
    if facts is not None:
        kept = json.loads(json.dumps(dict(facts)))
        header["__metadata__"] = {ENTRY: _spelt({"facts": kept, "sha256": _digest(kept, flat)})}
    begin, order = 0, sorted(flat, key=lambda name: (-places[flat[name].dtype], name.encode()))
    for name in order:
        end = begin + flat[name].numel() * flat[name].element_size()
        header[name] = {"dtype": TYPES[flat[name].dtype], "shape": list(flat[name].shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(flat[name]))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors, and the facts that they were written with; None: the file carries no digest, and nothing vouches for it.

    Bytes are read, not mapped as the library maps them: the kernel ends a process (SIGBUS) that touches a page it
    cannot read.

    CheckpointError where the file is no safetensors file, or not what its digest says; OSErrors pass, that of a missing
    file, too.
    """
    with path.open("rb") as file:
        try:
            header, places = _header(file)
            tensors = {name: _tensor(file, *place) for name, place in places.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, EOFError) as error:
            raise CheckpointError(f"{path}: damaged, it is not a readable safetensors file ({error})") from None
    entry = header.get(ENTRY)
    if entry is None:
        return tensors, None
    try:
        kept = json.loads(entry)
        sound = kept["sha256"] == _digest(kept["facts"], tensors) and isinstance(kept["facts"], dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path}: damaged, its weights are not what was written (sha256 differs)")
    return tensors, kept["facts"]


def _header(file: BufferedReader) -> tuple[dict[str, Any], dict[str, tuple[torch.dtype, list[int]]]]:
    """(metadata, name -> (type, shape) in the order in which tensors lie from here on). ValueError and the like where
    there is none.
    """
    length = int.from_bytes(_filled(file, bytearray(8)), "little")
    whole = os.fstat(file.fileno()).st_size
    if length > min(whole - 8, LONGEST):
        raise ValueError(f"its header has {length} bytes, and the file {whole}")
    header = json.loads(_filled(file, bytearray(length)).decode())
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no object")
    places, at = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape = READ[entry["dtype"]], entry["shape"]
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} has the shape {shape}")
        begin, end = entry["data_offsets"]
        if begin != at or end != begin + math.prod(shape) * kind.itemsize:
            raise ValueError(f"{name} does not lie where its type and shape say")
        places[name], at = (kind, shape), end
    if 8 + length + at != whole:
        raise ValueError(f"its header speaks of {8 + length + at} bytes, and it has {whole}")
    return metadata, places


def _tensor(file: BufferedReader, kind: torch.dtype, shape: list[int]) -> Tensor:
    tensor = torch.empty(shape, dtype=kind)
    _filled(file, _bytes(tensor))
    return tensor


Buffer = TypeVar("Buffer", bytearray, memoryview)


def _filled(file: BufferedReader, buffer: Buffer) -> Buffer:
    """All of it, from where the file stands. EOFError when that ends before."""
    if file.readinto(buffer) != len(buffer):  # a buffered file reads until it is full or the file ends
        raise EOFError("it is cut short")
    return buffer


def _digest(facts: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(_spelt(facts).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_spelt([name, TYPES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _spelt(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
