"""verify finds every kind of damage and names it; inspect tells what is there."""

import json
import os
import shutil

import fsspec
import numpy as np
import pytest

from ccr_dist.cli import app
from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.data.table.inspect import describe, render
from ccr_dist.data.table.stores.push import push
from ccr_dist.data.table.verify import verify
from tests.corpus import folder_recipe, picture


@pytest.fixture
def dataset(tmp_path):
    dataset = create_dataset(tmp_path / "d", name="d", split="train", keys=[["a", "b"], ["c"]])
    image = create_column(dataset, "image", kind="image", extension="png", plan={}, provenance={"licence": "MIT"})
    captions = create_column(dataset, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    translated = create_column(
        dataset, "caption.de.x", kind="texts", extension="json", plan={"inputs": {"caption.en": "0"}}, provenance={}
    )
    vectors = create_column(dataset, "feature.v", kind="matrix", extension="npy", plan={}, provenance={})
    for shard, rows in enumerate((2, 1)):
        image.commit(shard, [picture(i) for i in range(rows)])
        captions.commit(shard, [captions.encode(["x", "y"])] * rows)
        translated.commit(shard, [translated.encode(["p", "q"])] * rows)
        vectors.commit_matrix(shard, np.ones((rows, 4)))
    return dataset


def problems(dataset):
    return "\n".join(map(str, verify(dataset.root)))


def rewrite(dataset, column, values):
    """A shard 0 with other content, records and all."""
    for path in (dataset.root / column).glob("000000*"):
        path.unlink()
    dataset.column(column).commit(0, values) if column != "feature.v" else dataset.column(column).commit_matrix(
        0, *values
    )


def test_a_sound_dataset(dataset):
    assert verify(dataset.root) == []
    assert verify(dataset.root.parent) == []


@pytest.mark.parametrize(
    "column, name", [("image", "000001.tar"), ("feature.v", "000000.npy"), ("caption.en", "000000.tar")]
)
def test_one_flipped_bit(dataset, column, name):
    path = dataset.root / column / name
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    assert f"{column}/{name}" in problems(dataset) and "sha256" in problems(dataset)


def test_a_truncated_payload(dataset):
    path = dataset.root / "image/000000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    assert "image/000000.tar" in problems(dataset)


def test_a_missing_payload_and_a_missing_shard(dataset):
    (dataset.root / "image/000000.tar").unlink()
    (dataset.root / "caption.en/000001.json").unlink()
    found = problems(dataset)
    assert (
        "image/000000.tar: missing, the commit record says" in found
        and "to make it again: ccr-dist shards build" in found
    )
    assert "1 of 2 shards are not finished: 000001" in found


def test_a_broken_picture_is_found_by_decoding_only(dataset):
    rewrite(dataset, "image", [picture(0), picture(1)[:40]])
    assert "item 'b'" in problems(dataset) and "broken picture" in problems(dataset)
    assert verify(dataset.root, decode=False) == []


def test_translations_that_are_not_aligned(dataset):
    rewrite(dataset, "caption.de.x", [b'["p", "q"]', b'["p"]'])
    assert "item 'b'" in problems(dataset) and "1 captions, but 2 in caption.en" in problems(dataset)


def test_vectors_of_another_width(dataset):
    rewrite(dataset, "feature.v", (np.ones((2, 5)),))
    assert "different widths: 5 in 000000, 4 in 000001" in problems(dataset)


def of_an_earlier_version(dataset, column):
    """Its records speak neither of their own digest nor of that of the index."""
    for path in (dataset.root / column).glob("0?????.json"):
        path.write_bytes(
            store.pretty_json({k: v for k, v in store.read_json(path).items() if k not in ("index", "digest")})
        )


def test_an_index_that_lies(dataset):
    of_an_earlier_version(dataset, "caption.en")
    path = dataset.root / "caption.en/000000.index.json"
    index = store.read_json(path)
    index["members"]["json"]["offsets"][0] += 512
    path.write_text(json.dumps(index))
    assert "does not fit the payload" in problems(dataset)


def test_wrong_nulls(dataset):
    of_an_earlier_version(dataset, "caption.en")
    path = dataset.root / "caption.en/000000.index.json"
    path.write_text(json.dumps({**store.read_json(path), "nulls": [0]}))
    assert "null rows" in problems(dataset)


def fast(dataset):
    return "\n".join(map(str, verify(dataset.root, fast=True)))


def test_fast_reads_no_payload(dataset):
    for path in (*dataset.root.glob("*/*.tar"), *dataset.root.glob("*/*.npy")):
        size = path.stat().st_size
        path.write_bytes(b"")
        os.truncate(path, size)
    assert fast(dataset) == "" and problems(dataset) != ""


def test_fast_finds_what_sizes_and_small_files_tell(dataset):
    def expect(*parts):
        found = verify(dataset.root, fast=True)
        assert len(found) == 1 and all(part in str(found[0]) for part in parts), found

    root = dataset.root
    size = (root / "image/000000.tar").stat().st_size
    damages = [
        (
            "image/000000.tar",
            lambda data: data[:2000],
            ("image/000000.tar: 2000 bytes, the commit record", f"{size} bytes"),
        ),
        ("feature.v/000000.npy", None, ("feature.v/000000.npy: missing",)),
        ("image/000000.json", lambda data: data[:-5], ("image/000000.json: not valid JSON",)),
        ("image/000000.json", lambda data: data.replace(b'"rows": 2', b'"rows": 3'), ("the digest does not match",)),
        ("image/000001.json", None, ("image: 1 of 2 shards are not finished: 000001",)),
        ("caption.en/000000.index.json", None, ("caption.en/000000.index.json: missing",)),
        (
            "caption.en/000000.index.json",
            lambda data: data.replace(b'"nulls":[]', b'"nulls":[0]'),
            ("damaged index (not the sha256",),
        ),
        ("caption.en/000000.index.json", lambda data: data.replace(b'"a"', b'"z"'), ("damaged index (not the sha256",)),
        ("caption.en/000000.index.json", lambda data: b"[]", ("damaged index",)),
    ]
    for name, change, parts in damages:
        path, whole = root / name, (root / name).read_bytes()
        path.unlink()
        if change is not None:
            path.write_bytes(change(whole))
        expect(*parts)
        path.write_bytes(whole)
    assert fast(dataset) == ""


def test_fast_checks_the_keys(dataset, tmp_path):
    root = shutil.copytree(dataset.root, tmp_path / "copy")  # its keys have not been read yet
    (root / "keys/000001.txt").write_text("d\n")
    assert "keys/000001.txt: not the keys that dataset.json records" in "\n".join(map(str, verify(root, fast=True)))


def test_fast_fetches_no_payload(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    url = "memory://fast/d"
    push(dataset.root, url)
    assert verify(url, fast=True) == []
    assert not [*tmp_path.glob("cache/**/*.tar"), *tmp_path.glob("cache/**/*.npy")]
    fsspec.filesystem("memory").pipe_file("/fast/d/image/000000.tar", b"short")
    assert "image/000000.tar: 5 bytes, the commit record says" in "\n".join(map(str, verify(url, fast=True)))


def test_inspect(tmp_path):
    build(load_recipe(folder_recipe(tmp_path / "in")), tmp_path / "out", progress=False)
    description = describe(tmp_path / "out", rows=2)
    assert sum(dataset["rows"] for dataset in description["datasets"]) == 10
    languages = [dataset["languages"] for dataset in description["datasets"]]
    assert sum(found["en"]["human"] for found in languages) == 10
    assert sum(found["de"]["human"] for found in languages) == 5
    shown = description["datasets"][0]["shown"][0]
    assert shown["values"]["image"].startswith("picture of 8 x 8")
    json.dumps(description)

    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(description))
    text = console.export_text()
    assert "caption.de, caption.en" in text and shown["key"] in text


@pytest.mark.parametrize("name", ["000000.json", "000000.index.json", "000000.tar", "000000.npy"])
def test_what_cannot_be_read_is_not_called_damaged_and_not_repaired(dataset, capsys, monkeypatch, name):
    """A process' own memory cannot be read from its beginning: an I/O error of the system itself."""
    column = "feature.v" if name.endswith("npy") else "caption.en"
    path = dataset.root / column / name
    kept, open_file = path.read_bytes(), open

    def opened(file, *options, **more):
        return open_file("/proc/self/mem" if os.fspath(file) == str(path) else file, *options, **more)

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("pathlib.io.open", opened)
    with pytest.raises(SystemExit) as end:
        app(["shards", "verify", str(dataset.root), "--repair", "-q"])
    assert end.value.code == 5
    said = capsys.readouterr().err
    assert f"{path}" in said and "Input/output error" in said and said.startswith("error: ")
    monkeypatch.undo()
    assert path.read_bytes() == kept and not [*dataset.root.rglob("*.damaged")] and verify(dataset.root) == []
