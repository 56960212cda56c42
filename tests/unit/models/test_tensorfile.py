"""Weights are read as the library reads them, byte for byte and refusal for refusal, but by reads that can fail with an
error.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ccr_dist.errors import CheckpointError
from ccr_dist.models import tensorfile

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 3),
    "half": torch.arange(5).half(),
    "brain": torch.arange(2).bfloat16(),
    "yes": torch.tensor([True, False]),
    "whole": torch.arange(3),
    "eight": torch.arange(4).to(torch.float8_e4m3fn),
}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_all_types_and_shapes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x", {"by": "somebody"})
    tensors, facts = tensorfile.read(tmp_path / "x")
    assert facts is None and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape, raw(tensors[name])) == (
            tensor.dtype,
            tensor.shape,
            raw(tensor),
        )


def test_what_the_library_refuses_is_refused(tmp_path: Path) -> None:
    """A bit of every byte of the header, and files that end too early or go on too long."""
    path, refused = tmp_path / "x", 0
    save_file(TENSORS, path)
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    torn = [content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :] for at in range(length)]
    for changed in (*torn, content[:-1], content + b"x", content[:7], b"", content[:length]):
        path.write_bytes(changed)
        try:
            expected = load_file(path)
        except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError):
            with pytest.raises(CheckpointError, match="damaged"):
                tensorfile.read(path)
            refused += 1
        else:
            found, _ = tensorfile.read(path)
            assert {name: raw(tensor) for name, tensor in found.items()} == {
                name: raw(tensor) for name, tensor in expected.items()
            }
    assert 100 < refused < len(torn)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "3",
        "{",
        '{"a": 1}',
        '{"a": {}}',
        '{"__metadata__": []}',
        "[" * 10_000,
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
    ],
)
def test_headers_that_are_none(tmp_path: Path, header: str) -> None:
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(CheckpointError, match="damaged"):
        tensorfile.read(tmp_path / "x")


def test_a_read_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a checkpoint would be passed over because of a disk that fails for a moment. A process' memory cannot be
    read from 0 on.
    """
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((0,) * 6 + (2**40,) + (0,) * 3))
    with pytest.raises(OSError) as end:
        tensorfile.read(Path("/proc/self/mem"))
    assert end.value.errno == errno.EIO
