"""Datasets pushed to an object store and pulled: the same bytes, after interruptions, too."""

import json
import re
import shutil

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.corpora.index import index
from ccr_dist.data.storage import remote, store
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.table.dataset import Dataset, create_column, open_all
from ccr_dist.data.table.stores.pull import pull
from ccr_dist.data.table.stores.push import push
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError, StorageError
from tests.corpus import picture
from tests.jobs import captions
from tests.stores import ROWS, URL, names, payloads, refuse_writes, tree, values


def test_pushed_and_pulled_is_the_same_bytes(dataset, tmp_path):
    dataset.column("caption.en").write_errors(0, b'{"key": "0-1", "error": "no such file"}\n')
    (done,) = push(dataset.root, URL)
    assert (done.columns, done.shards, done.there) == (2, 6, 0)
    assert done.bytes == sum(
        path.stat().st_size for pattern in ("*/*.tar", "*/*.npy") for path in dataset.root.glob(pattern)
    )
    (done,) = push(dataset.root, URL)
    assert (done.shards, done.there, done.bytes) == (0, 6, 0)
    (got,) = pull(URL, tmp_path / "e")
    assert (got.shards, got.there) == (6, 0)
    assert tree(tmp_path / "e") == tree(dataset.root)
    (got,) = pull(URL, tmp_path / "e")
    assert (got.shards, got.there, got.bytes) == (0, 6, 0)


def test_a_folder_of_datasets_goes_and_comes_as_one(tmp_path):
    for split in ("val", "train"):
        captions(tmp_path / "all" / split, (2,))
    assert [done.place for done in push(tmp_path / "all", URL)] == [f"{URL}/train", f"{URL}/val"]
    assert [d.place for d in open_all(URL)] == [f"{URL}/train", f"{URL}/val"]
    pull(URL, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "all")
    with pytest.raises(DataError, match=r"it holds the datasets train, val: name one of them"):
        Dataset(URL)


def test_columns_can_be_chosen(dataset, tmp_path):
    push(dataset.root, URL, columns=["caption.en"])
    assert not any(name.startswith("feature.x") for name in names())
    push(dataset.root, URL)
    pull(URL, tmp_path / "e", columns=["feature.x"])
    assert Dataset(tmp_path / "e").columns() == ["feature.x"]
    with pytest.raises(DataError, match=r"no column 'feature\.y'\. There are: caption\.en, feature\.x"):
        pull(URL, tmp_path / "f", columns=["feature.y"])


def test_unfinished_columns_are_pushed_as_far_as_they_are(dataset):
    column = create_column(dataset, "label.x", kind="label", extension="json", plan={}, provenance={})
    column.commit(1, [column.encode("a"), column.encode("b")])
    push(dataset.root, URL)
    assert Dataset(URL).column("label.x").finished() == {1}
    with pytest.raises(DataError, match=rf"{URL}/label.x: 2 of 3 shards are missing"):
        Dataset(URL).column("label.x").require_complete()


@pytest.mark.parametrize("what", ["dataset", "plan", "record"])
@pytest.mark.parametrize("way", ["push", "pull"])
def test_what_is_there_and_different_is_refused_before_anything_is_copied(dataset, tmp_path, what, way):
    push(dataset.root, URL)
    rows = (3, 2) if what == "dataset" else ROWS
    other = captions(tmp_path / "o", rows, {(1, 1): ["something else"]} if what == "record" else None)
    label = create_column(other, "label.x", kind="label", extension="json", plan={}, provenance={})
    label.commit(0, [label.encode("l")] * rows[0])
    if what == "plan":
        shutil.rmtree(other.root / "caption.en")
        create_column(other, "caption.en", kind="texts", extension="json", plan={"recipe": "other"}, provenance={})
    here, there = tree(other.root), names()
    plan = r"plan\.recipe: there '\w+', asked '\w+'"
    messages = {"dataset": r"dataset\.json: shards", "plan": plan, "record": r"000001\.json: sha256: there"}
    with pytest.raises(DataError, match=messages[what]):
        push(other.root, URL) if way == "push" else pull(URL, other.root)
    assert (tree(other.root), names()) == (here, there)


def complete(there: set[str]) -> None:
    """A record is in the store only with its payload and index, a dataset only with its keys."""
    for name in there:
        if re.search(r"/\d{6}\.json$", name):
            stem = name.removesuffix(".json")
            assert f"{stem}.index.json" in there and there & {f"{stem}.tar", f"{stem}.npy"}, name
    assert "dataset.json" not in there or {f"keys/{i:06d}.txt" for i in range(len(ROWS))} <= there


@pytest.mark.parametrize("method, writes", [("put_file", 6), ("pipe_file", 21)])
def test_an_interrupted_push_is_continued(dataset, tmp_path, monkeypatch, method, writes):
    """Every write fails once, with all that come after it."""
    for after in range(writes):
        MemoryFileSystem.store.clear()
        with monkeypatch.context() as patch:
            refuse_writes(patch, method, after)
            with pytest.raises(StorageError, match=r"memory://bucket/toy/.*the connection is gone \(4 attempts\)"):
                push(dataset.root, URL)
        complete(names())
        records = sum(f"{c}/{i:06d}.json" in names() for c in ("caption.en", "feature.x") for i in range(3))
        (done,) = push(dataset.root, URL)
        assert (done.there, done.shards) == (records, 6 - records)
    remote.look_again()
    assert values(Dataset(URL)) == values(dataset)


@pytest.mark.parametrize("reads", [0, 1, 5, 9])
def test_an_interrupted_pull_is_continued(dataset, tmp_path, monkeypatch, reads):
    push(dataset.root, URL)
    with monkeypatch.context() as patch:
        refuse_writes(patch, "cat_file", reads)
        with pytest.raises(StorageError):
            pull(URL, tmp_path / "e")
    here = set(tree(tmp_path / "e"))
    assert not any(store.TEMPORARY in name for name in here)
    complete(here)
    pull(URL, tmp_path / "e")
    assert tree(tmp_path / "e") == tree(dataset.root)


def test_a_lazy_copy_keeps_to_the_store_that_it_came_from(dataset, tmp_path):
    for place in (URL, f"{URL}-moved"):
        push(dataset.root, place)
    pull(URL, tmp_path / "e", lazy=True)
    before = tree(tmp_path / "e")
    with pytest.raises(ConfigError, match=rf"is fetched from {URL} \(remote\.json\), not from {URL}-moved: pull into"):
        pull(f"{URL}-moved", tmp_path / "e", lazy=True)
    assert tree(tmp_path / "e") == before
    (tmp_path / "e" / "remote.json").unlink()
    pull(f"{URL}-moved", tmp_path / "e", lazy=True)
    assert values(Dataset(tmp_path / "e")) == values(dataset)


def test_a_payload_that_something_else_left_is_not_adopted(dataset, tmp_path):
    push(dataset.root, URL)
    pull(URL, tmp_path / "e")
    payload, record = (tmp_path / "e/caption.en" / name for name in ("000000.tar", "000000.json"))
    record.unlink()
    payload.write_bytes(bytes(payload.stat().st_size))
    with pytest.raises(DataError, match=r"000000\.tar: not the payload of .*left by another program"):
        pull(URL, tmp_path / "e")


def test_a_payload_lost_in_the_store_or_in_a_copy_is_missing_and_copied_again(dataset, tmp_path):
    push(dataset.root, URL)
    pull(URL, tmp_path / "e")
    whole = tree(tmp_path / "e")
    del MemoryFileSystem.store["/bucket/toy/caption.en/000001.tar"]
    MemoryFileSystem().pipe_file("/bucket/toy/feature.x/000000.npy", b"cut")
    remote.look_again()
    there = Dataset(URL)
    assert there.column("caption.en").finished() == {0, 2} and there.column("feature.x").missing() == [0]
    with pytest.raises(DataError, match=rf"1 of 3 shards are missing \(000001\).*`ccr-dist shards push FOLDER {URL}`"):
        there.column("caption.en").require_complete()
    assert (push(dataset.root, URL)[0].shards, push(dataset.root, URL)[0].shards) == (2, 0)
    assert verify(URL) == []
    (tmp_path / "e/caption.en/000002.tar").write_bytes(b"cut")
    (tmp_path / "e/feature.x/000001.npy").unlink()
    assert pull(URL, tmp_path / "e")[0].shards == 2 and tree(tmp_path / "e") == whole


def test_an_indexed_tar_goes_along_once(tmp_path, monkeypatch):
    """Its columns share it in the store, in the cache and in a pulled copy; nobody needs the original any more."""
    tar = tmp_path / "made-elsewhere.tar"
    with TarWriter(tar) as writer:
        for i in range(3):
            writer.add(f"k{i}.png", picture(i))
            writer.add(f"k{i}.txt", f"thing {i}".encode())
    local = index([str(tar)], tmp_path / "d", progress=False).dataset
    before = values(local)
    with monkeypatch.context() as patch:
        refuse_writes(patch, "put_file", after=1)
        (done,) = push(local.root, URL)
    assert done.bytes == tar.stat().st_size
    assert {name for name in names() if name.endswith(".tar")} == {"image/000000.tar"}
    assert push(local.root, URL)[0].there == 2
    (got,) = pull(URL, tmp_path / "e")
    assert got.bytes == tar.stat().st_size
    tar.unlink()
    assert values(Dataset(tmp_path / "e")) == values(Dataset(URL)) == before
    assert len(payloads(tmp_path)) == 1
    assert verify(tmp_path / "e", decode=False) == verify(URL, decode=False) == []
    assert push(tmp_path / "e", URL)[0].there == 2


def test_the_commands_take_urls(dataset, tmp_path):
    def ccr_dist(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["shards", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert f"{URL}: 2 columns; copied 6 column shards" in ccr_dist("push", str(dataset.root), URL, "-q")
    assert "6 already existed" in ccr_dist("push", str(dataset.root), URL, "-q")
    assert json.loads(ccr_dist("inspect", URL, "--json"))["datasets"][0]["root"] == URL
    assert f"{URL}: sound" in ccr_dist("verify", URL, "-q")
    ccr_dist("pull", URL, str(tmp_path / "e"), "-q")
    assert tree(tmp_path / "e") == tree(dataset.root)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("keys/000000.txt", b"0-0\n", "not the sha256"),
        ("caption.en/000000.index.json", b"{}", "not the sha256"),
        ("caption.en/000000.json", b"{}", "missing"),
        ("caption.en/000000.json", b"[]", "expected a JSON object"),
        ("dataset.json", b"[]", "expected a JSON object"),
    ],
)
def test_what_is_damaged_in_a_store_is_not_pulled(dataset, tmp_path, name, content, why):
    push(dataset.root, URL)
    MemoryFileSystem().pipe_file(f"/bucket/toy/{name}", content)
    with pytest.raises(DataError, match=rf"toy/{name}.*{why}"):
        pull(URL, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / name).exists()


def test_a_damaged_index_is_not_pushed(dataset):
    index = dataset.root / "caption.en" / "000000.index.json"
    index.write_bytes(index.read_bytes()[:20])
    with pytest.raises(DataError, match=r"caption\.en/000000\.index\.json: damaged index"):
        push(dataset.root, URL)
    assert not MemoryFileSystem().exists("/bucket/toy/caption.en/000000.json")
