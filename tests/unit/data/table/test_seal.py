"""Sealed columns: they say the same as records and indexes, without reading those, and never outlive them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ccr_dist.data.cli import shards_app
from ccr_dist.data.corpora.index import index
from ccr_dist.data.storage import store
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.stream.fields import Fields, content_digests, sources
from ccr_dist.data.stream.loader import make_loader
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.data.table.sealing import seal_columns
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError

KEYS = [[f"s{s}r{r}" for r in range(n)] for s, n in enumerate((11, 3, 8))]
NULLS = {(0, 1), (0, 9), (2, 0)}
FIELDS = Fields(visual="feature.x", many=True, source="caption.en", targets={"de": "caption.de"})


@pytest.fixture
def dataset(tmp_path):
    """Captions with null rows and without, vectors (none to two a row), and a column that is not complete."""
    made = create_dataset(tmp_path / "d", name="d", split="train", keys=KEYS)
    options = {"kind": "texts", "extension": "json", "plan": {}, "provenance": {}}
    english, german, begun = (
        create_column(made, name, **options) for name in ("caption.en", "caption.de", "caption.cs")
    )
    vectors = create_column(made, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    for shard, keys in enumerate(KEYS):
        english.commit(shard, [english.encode([f"en {key}"]) for key in keys])
        german.commit(
            shard, [None if (shard, row) in NULLS else german.encode([f"de {key}"]) for row, key in enumerate(keys)]
        )
        counts = [row % 3 for row in range(len(keys))]
        vectors.commit_matrix(shard, np.array([[shard, row] for row, n in enumerate(counts) for _ in range(n)]), counts)
    begun.commit(0, [None] * 11)
    return made


def everything(root) -> dict:
    """What is to be known of the complete columns of a dataset."""
    dataset, found = Dataset(root), dict[str, Any]()
    for column in map(dataset.column, ("caption.en", "caption.de", "feature.x")):
        values = [column.value(shard, row) for shard, keys in enumerate(KEYS) for row in range(len(keys))]
        found[column.name] = {
            "present": [column.present(shard).tolist() for shard in range(3)],
            "nulls": column.nulls().tolist(),
            "values": [value.tolist() if isinstance(value, np.ndarray) else value for value in values],
            "records": [column.record(shard) for shard in range(3)],
            "digest": column.digest,
            "path": [str(column.path(shard)) for shard in range(3)],
            "width": column.places(2).width,
        }
    order = Order(sources([dataset], [1.0], FIELDS, ["de"]), batch=4, seed=1, languages={"de": 1.0}, window_rows=4)
    loader = make_loader(order, [dataset], FIELDS, world=1, rank=0, first=0, last=9, workers=0)
    found["batches"] = [(b.items, b.visual.tolist(), b.source_text, b.target_text) for b in loader]
    return {**found, "order": order.digest, "content": content_digests([dataset], FIELDS, ["de"])}


def test_a_seal_says_what_records_and_indexes_say_and_replaces_them(dataset):
    before = everything(dataset.root)
    assert before["caption.en"]["nulls"] == [0, 0, 0] and before["caption.de"]["present"][2] == [False] + [True] * 7
    assert seal_columns(Dataset(dataset.root)) == (["caption.de", "caption.en", "feature.x"], ["caption.cs"])
    # caption.cs is not complete
    assert verify(dataset.root, fast=True) == verify(dataset.root) and len(verify(dataset.root)) == 1
    for column in ("caption.en", "caption.de", "feature.x"):
        for shard in dataset.shards:
            (dataset.root / column / f"{shard}.json").unlink()
            (dataset.root / column / f"{shard}.index.json").unlink()
    assert everything(dataset.root) == before
    column = Dataset(dataset.root).column("caption.de")
    assert column.value(0, 0) == pickle.loads(pickle.dumps(column)).value(0, 0) == ["de s0r0"]


def test_what_is_sealed_is_kept(dataset):
    seal_columns(Dataset(dataset.root))
    before = (dataset.root / "feature.x/sealed.json").stat().st_mtime_ns
    column = Dataset(dataset.root).column("caption.cs")
    column.commit(1, [None] * 3)
    column.commit(2, [None] * 8)
    assert seal_columns(Dataset(dataset.root)) == (["caption.cs"], [])
    assert (dataset.root / "feature.x/sealed.json").stat().st_mtime_ns == before


def test_indexed_tars_can_be_sealed(tmp_path):
    with TarWriter(tmp_path / "a.tar") as tar:
        for key, members in {"x": {"txt": b"a dog"}, "y": {"cls": b"1"}, "z": {"txt": b"a cat"}}.items():
            for extension, data in members.items():
                tar.add(f"{key}.{extension}", data)
    dataset = index([str(tmp_path / "a.tar")], tmp_path / "d", image="none", progress=False).dataset
    seal_columns(Dataset(dataset.root))
    (dataset.root / "caption.en/000000.json").unlink()
    (dataset.root / "caption.en/000000.index.json").unlink()
    column = Dataset(dataset.root).column("caption.en")
    assert [column.value(0, row) for row in range(3)] == [["a dog"], None, ["a cat"]]
    assert column.present(0).tolist() == [True, False, True] and column.path(0) == tmp_path / "a.tar"


def test_a_commit_removes_the_seal(dataset):
    seal_columns(dataset)
    column = Dataset(dataset.root).column("caption.de")
    assert column.value(0, 0) == ["de s0r0"]
    for what in ("payload", "index", "record"):
        column.path(0, what).unlink()
    column.commit(0, [column.encode(["anew"])] * 11)
    assert not (dataset.root / "caption.de/sealed.json").exists()
    assert column.value(0, 1) == ["anew"] and column.present(0).all()  # nothing of the seal is remembered
    fresh = Dataset(dataset.root).column("caption.de")
    assert fresh.value(0, 1) == ["anew"] and fresh.present(0).all()
    assert seal_columns(Dataset(dataset.root))[0] == ["caption.de"]
    assert Dataset(dataset.root).column("caption.de").value(0, 1) == ["anew"]


def test_a_shard_that_is_set_aside_removes_the_seal(dataset):
    seal_columns(dataset)
    column = Dataset(dataset.root).column("caption.de")
    assert column.value(1, 0) == ["de s1r0"]
    assert column.set_aside(1) is not None
    assert not (dataset.root / "caption.de/sealed.json").exists()
    assert column.missing() == Dataset(dataset.root).column("caption.de").missing() == [1]


def test_what_is_sealed_is_what_is_there_not_what_a_former_seal_said(dataset):
    seal_columns(dataset)
    assert dataset.column("caption.de").value(0, 1) is None
    other = Dataset(dataset.root).column("caption.de")  # of another process, say
    for what in ("payload", "index", "record"):
        other.path(0, what).unlink()
    other.commit(0, [other.encode(["anew"])] * 11)
    assert seal_columns(dataset)[0] == ["caption.de"]
    assert (
        dataset.column("caption.de").value(0, 1) == Dataset(dataset.root).column("caption.de").value(0, 1) == ["anew"]
    )
    assert [problem.where for problem in verify(dataset.root) if "caption.de" in problem.where] == []


def test_vectors_of_two_widths_are_not_sealed(tmp_path):
    made = create_dataset(tmp_path / "d", name="d", split="train", keys=[["a"], ["b"]])
    vectors = create_column(made, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    for shard, width in enumerate((2, 3)):
        vectors.commit_matrix(shard, np.ones((1, width)), [1])
    with pytest.raises(DataError, match=r"different widths \(2 in 000000, 3 in 000001\)"):
        seal_columns(Dataset(made.root))
    assert not list((made.root / "feature.x").glob("sealed*"))


def test_a_seal_that_is_not_true_is_found_by_verify(dataset):
    seal_columns(dataset)
    path = dataset.root / "caption.de/sealed.json"
    sealed = json.loads(path.read_text())
    del sealed["digest"], sealed["shards"][1]["digest"]
    sealed["shards"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(store.with_digest(sealed)))  # another tool's, say: whole, and not true
    places = dataset.root / "caption.en/sealed.npy"
    data = bytearray(places.read_bytes())
    data[-16] ^= 1  # an offset in the last shard
    places.write_bytes(data)
    bits = dataset.root / "feature.x/sealed.npy"
    data = bytearray(bits.read_bytes())
    data[128] ^= 64  # whether row 1 of the first shard is there
    bits.write_bytes(data)
    said = "\n".join(map(str, verify(dataset.root, fast=True)))
    assert "caption.de/sealed.json: differs from the record and index of shard 000001" in said
    assert "caption.en/sealed.npy: damaged seal (the part of shard 000002" in said
    assert "feature.x/sealed.npy: damaged seal (the part of shard 000000" in said
    for name, shard in (("caption.en", 2), ("feature.x", 0)):
        with pytest.raises(DataError, match="damaged seal"):
            Dataset(dataset.root).column(name).value(shard, 0)


@pytest.mark.parametrize("damage", ["cut", "gone", "plan", "json", "rows"])
def test_a_damaged_seal_is_refused(dataset, damage):
    seal_columns(dataset)
    meta, places = (dataset.root / "caption.en" / name for name in ("sealed.json", "sealed.npy"))
    if damage == "cut":
        places.write_bytes(places.read_bytes()[:-1])
    elif damage == "gone":
        places.unlink()
    elif damage == "json":
        meta.write_text("{}")
    else:
        sealed = json.loads(meta.read_text())
        changed = {"plan": "0" * 64} if damage == "plan" else {"shards": sealed["shards"][:2]}
        meta.write_text(json.dumps({**sealed, **changed}))
    with pytest.raises(DataError, match=r"caption.en/sealed.json.*seal.*`ccr-dist shards seal`"):
        Dataset(dataset.root).column("caption.en").value(0, 0)
    assert any("sealed.json" in problem.where for problem in verify(dataset.root, fast=True))
    assert seal_columns(Dataset(dataset.root))[0] == ["caption.en"]
    assert Dataset(dataset.root).column("caption.en").value(2, 7) == ["en s2r7"]


def test_the_command(dataset, tmp_path):
    def run(path):
        return CliRunner().invoke(shards_app, ["seal", str(path), "--quiet"], catch_exceptions=False)

    done = run(tmp_path)
    assert (
        done.exit_code == 0
        and "sealed caption.de, caption.en, feature.x" in done.output
        and "left out: caption.cs" in done.output
    )
    assert "nothing new" in run(dataset.root).output
    (dataset.root / "remote.json").write_text('{"url": "memory://x", "mirror": false}')
    with pytest.raises(ConfigError, match="shards pull"):
        seal_columns(Dataset(dataset.root))


@pytest.mark.parametrize("name", ["sealed.json", "sealed.npy"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b"3", b"{}", b'{"format": 1'])
def test_a_seal_of_anything_else_says_how_it_is_made_again(dataset, name, content):
    seal_columns(dataset)
    (dataset.root / "caption.en" / name).write_bytes(content)
    with pytest.raises(DataError, match=r"sealed\.json: .*remove it, or make it again with `ccr-dist shards seal`"):
        Dataset(dataset.root).column("caption.en").value(0, 0)
    assert "caption.en" in seal_columns(Dataset(dataset.root))[0]
    assert Dataset(dataset.root).column("caption.en").value(0, 0) == ["en s0r0"]
