"""One flipped bit anywhere in a dataset: noticed by verify, or harmless; readers give the values that were written, or
refuse.

By default some hundred bytes; `-m slow` takes all of every file.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccr_dist.data.corpora.index import index
from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.data.table.inspect import describe
from ccr_dist.data.table.sealing import seal_columns
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import CcrError
from tests.corpus import picture

pytestmark = pytest.mark.long

KEYS = [["a", "b"], ["c"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Every kind of column, with null rows and without, one of them sealed."""
    root = tmp_path_factory.mktemp("flips") / "d"
    made = create_dataset(root, name="d", split="train", keys=KEYS)
    columns: tuple[tuple[str, str, list[list[Any]]], ...] = (
        ("image", "image", [[picture(0, size=2), None], [picture(2, size=2)]]),
        ("caption.en", "texts", [[["one", "zwei"], ["drei"]], [["4"]]]),
        ("description.x", "views", [[{"views": {"a": "b"}}, None], [None]]),
        ("label.x", "label", [["l", "m"], ["n"]]),
    )
    for name, kind, values in columns:
        column = create_column(
            made, name, kind=kind, extension="png" if kind == "image" else "json", plan={"p": 1}, provenance={"by": "x"}
        )
        for shard, rows in enumerate(values):
            column.commit(shard, [None if value is None else column.encode(value) for value in rows])
    vectors = create_column(made, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    vectors.commit_matrix(0, np.array([[1, 2], [3, 4], [5, 6]]), [1, 2])
    vectors.commit_matrix(1, np.array([[7, 8]]))
    seal_columns(Dataset(root))
    for name in ("image", "description.x", "label.x"):
        (root / name / "sealed.json").unlink()
        (root / name / "sealed.npy").unlink()
    return root


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    """A dataset of tars made elsewhere, one bad caption among them."""
    folder = tmp_path_factory.mktemp("indexed")
    for number in range(2):
        with TarWriter(folder / f"{number}.tar") as tar:
            tar.add("k.png", picture(number, size=2))
            tar.add("k.json", b'{"t": "one"}')
            tar.add("l.json", b'{"t": 7}' if number else b'{"t": "two"}')
    index([str(folder / "*.tar")], folder / "d", captions={"en": "json:t"}, progress=False)
    return folder / "d"


def read(root: Path) -> dict:
    """Everything that is to be known of a dataset. Raises what a reader would."""
    dataset, found = Dataset(root), {}
    for column in map(dataset.column, dataset.columns()):
        for shard in range(len(dataset.shards)):
            for row, key in enumerate(dataset.keys(shard)):
                value = column.value(shard, row)
                found[column.name, key] = value.tolist() if isinstance(value, np.ndarray) else value
            found[column.name, shard] = column.present(shard).tolist()
        about = (column.kind, column.extension, column.plan, column.provenance, column.view_of, column.field)
        found[column.name] = (*about, column.nulls().tolist(), column.digest)
    return {**found, "": (dataset.name, dataset.split, dataset.rows, dataset.digest)}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def flip(root: Path, path: Path, at: int, bit: int, before: dict) -> None:
    """Flips one bit, looks in every way, and flips it back."""
    whole = path.read_bytes()
    data = bytearray(whole)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    where = f"{path.relative_to(root)}, byte {at}, bit {bit}"
    forget_files()
    try:
        try:
            problems: list[Any] = verify(root)
        except CcrError as e:
            problems = [e]
        with contextlib.suppress(CcrError, OSError):
            describe(root)
        try:
            after = read(root)
        except (CcrError, OSError):
            after = None
        payload = path.suffix in (".tar", ".npy") and not path.name.startswith("sealed")
        if payload:  # what it holds is compared with its digest by verify alone
            assert problems, f"{where}: verify says sound"
        else:
            assert after in (None, before), f"{where}: other values are read"
            assert problems or after == before, f"{where}: refused by a reader, but verify says sound"
    except Exception as e:
        raise AssertionError(f"{where}: {type(e).__name__}: {e}") from e
    finally:
        path.write_bytes(whole)
        forget_files()


def places(root: Path, dice: random.Random, each: int | None) -> list[tuple[Path, int]]:
    found = []
    for path in files(root):
        size = path.stat().st_size
        found += [
            (path, at)
            for at in (range(size) if each is None or size <= each else sorted(dice.sample(range(size), each)))
        ]
    return found


@pytest.mark.parametrize("which", ["root", "indexed"])
@pytest.mark.parametrize("each", [5, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(0)])])
def test_a_flipped_bit_is_noticed_or_harmless(which, each, request, tmp_path):
    root = shutil.copytree(request.getfixturevalue(which), tmp_path / "copy")
    before, dice = read(root), random.Random(5)
    assert verify(root) == []
    for path, at in places(root, dice, each):
        flip(root, path, at, dice.randrange(8), before)
    assert verify(root) == [] and read(root) == before


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{}", b"7", b'"x"', b"[" * 100_000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff"]
)
def test_files_of_another_structure_are_refused(root, content, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    before = read(copy)
    for path in files(copy):
        if path.suffix == ".json" and (not path.name.endswith(".stats.json")) and path.stem[-1] != "1":
            whole = path.read_bytes()
            path.write_bytes(content)
            with pytest.raises((CcrError, AssertionError)):
                assert verify(copy) == []
            with contextlib.suppress(CcrError):
                assert read(copy) == before, path  # of a sealed column, records and indexes are not read
            path.write_bytes(whole)
    assert read(copy) == before
