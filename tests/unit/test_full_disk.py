"""A full disk is said to be one, with the place, whoever writes: NumPy, faiss and safetensors have words of their own.

The limit on the size of files stands for it: what is written fails in the middle of a file in the same way.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.corpora.formats.writers import write_names
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.errors import StorageError, boundary
from ccr_dist.search import cli
from ccr_dist.search.index import Index
from tests.searching import COLOURS, Colours, encoded, half, picture, put


@contextlib.contextmanager
def limit(size: int) -> Iterator[None]:
    """Files cannot become larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def matrix(folder: Path) -> Callable[[], object]:
    column = create_column(
        create_dataset(folder / "d", name="d", split="test", keys=[["a", "b"]]),
        "feature.x", kind="matrix", extension="npy", plan={}, provenance={}, dtype="float32",
    )  # fmt: skip
    return lambda: column.commit_matrix(0, np.ones((2, 5000), np.float32), np.ones(2, np.int64))


def names(folder: Path) -> Callable[[], object]:
    return lambda: write_names(folder / "ids.npy", ["a picture"] * 5000)


def made(folder: Path, **more: str) -> Index:
    for number, colour in enumerate([*COLOURS] * 10):
        put(folder / "p" / f"{number}.png", encoded(half(colour, (16, 8 + number))))
    return Index.build(folder / "i", Colours(), folder / "p", progress=False, **more)


def lists(folder: Path) -> Callable[[], object]:
    return made(folder).make_ann


def reduced(folder: Path) -> Callable[[], object]:
    index = made(folder, dtype="float16")
    for part in (folder / "i/segments/000000/search").iterdir():
        part.unlink()
    return lambda: index.update(Colours(), [str(folder / "p")])


def tensors(folder: Path) -> Callable[[], object]:
    from safetensors.torch import save_file

    def write() -> None:
        with store.disk_errors(folder / "export"):
            save_file({"a": torch.zeros(5000)}, str(folder / "model.safetensors"))

    return write


@pytest.mark.parametrize(
    ("work", "place"),
    [(matrix, "000000.npy"), (names, "ids.npy"), (lists, ".faiss"), (reduced, "values.npy"), (tensors, "export")],
)
def test_it_is_said_by_whatever_writes(
    tmp_path: Path, work: Callable[[Path], Callable[[], object]], place: str
) -> None:
    write = work(tmp_path)
    with pytest.raises(StorageError) as said, limit(5000):
        write()
    message = str(said.value)
    assert place in message.partition(": File too large. ")[0] and "make room and run the same command" in message
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(store.TEMPORARY)]


@pytest.mark.parametrize("size", [1000, 2000, 5000, 8000])
def test_an_index_goes_on_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_load", lambda path, device: Colours(folder=Path(path)))
    for number, colour in enumerate([*COLOURS] * 5):
        put(tmp_path / "p" / f"{number}.png", encoded(picture(colour, (16, 8 + number))))
    words = ["index", "model", "p", "--out", "i", "--quiet", "--dtype", "float16"]
    with limit(size):
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 5, done.output
    assert done.output.startswith("error: i/") and ": File too large. " in done.output, done.output
    assert done.output.count("\n") == 1 and "make room and run the same command again" in done.output
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "40 pictures and videos can be found" in done.output


def test_an_error_without_a_number_gets_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), boundary():
        raise OSError("20000 requested and 4968 written")  # `ndarray.tofile` in a library
    assert "No space left on device. Everything committed before is intact; make room" in capsys.readouterr().err
