"""Datasets and columns: created once, committed once, and every mismatch refused with what differs."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr_dist.data.media import decode
from ccr_dist.data.storage import store
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset, open_all
from ccr_dist.errors import ConfigError, DataError

KEYS = [["a", "b", "x/c"], ["d"]]


@pytest.fixture
def dataset(tmp_path):
    return create_dataset(tmp_path / "d", name="d", split="train", keys=KEYS)


def texts(dataset, name="caption.en", **plan):
    return create_column(dataset, name, kind="texts", extension="json", plan=plan, provenance={"by": "test"})


def filled(dataset):
    column = texts(dataset)
    column.commit(0, [column.encode(["a dog", "das ist ein Hündchen"]), None, column.encode([" "])])
    column.commit(1, [column.encode([])])
    return column


def test_values_come_back(dataset):
    column = filled(dataset)
    assert column.value(0, 0) == ["a dog", "das ist ein Hündchen"]
    assert column.value(0, 1) is None
    assert column.read(0, 1) == b"null"
    assert column.present(0).tolist() == [True, False, False]
    assert column.present(1).tolist() == [False]
    again = pickle.loads(pickle.dumps(Dataset(dataset.root).column("caption.en")))
    assert again.value(0, 0) == column.value(0, 0)
    assert again.digest == column.digest


def test_webdataset_reads_our_tars_unchanged(dataset):
    webdataset = pytest.importorskip("webdataset")
    image = create_column(dataset, "image", kind="image", extension="jpg", plan={}, provenance={})
    image.commit(0, [b"1", b"22", b"333"])
    filled(dataset)
    pictures = [(s["__key__"], s["jpg"]) for s in webdataset.WebDataset(str(image.path(0)), shardshuffle=False)]
    assert pictures == [("a", b"1"), ("b", b"22"), ("x/c", b"333")]
    both = str(dataset.root / "caption.en") + "/{000000..000001}.tar"
    captions = {s["__key__"]: json.loads(s["json"]) for s in webdataset.WebDataset(both, shardshuffle=False)}
    assert captions == {"a": ["a dog", "das ist ein Hündchen"], "b": None, "x/c": [" "], "d": []}


@pytest.mark.parametrize("kind, value", [("views", {"views": {"detail": "x"}}), ("label", "dog"), ("texts", [])])
def test_kinds(dataset, kind, value):
    column = create_column(dataset, "label.x", kind=kind, extension="json", plan={}, provenance={})
    column.commit(1, [column.encode(value)])
    assert column.value(1, 0) == value
    for wrong in ([1], {"view": {}}, {"views": {"a": None}}, 7):
        with pytest.raises(DataError, match="expected"):
            column.encode(wrong)


def test_matrix_with_several_and_no_vectors_a_row(dataset):
    column = create_column(dataset, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert column.commit_matrix(0, vectors, [2, 0, 1])
    assert column.commit_matrix(1, vectors[:0], nulls=[0])
    array, offsets = column.matrix(0)
    assert array.dtype == np.float16 and isinstance(array, np.memmap)
    assert offsets.tolist() == [0, 2, 2, 3]
    assert column.value(0, 0).tolist() == vectors[:2].tolist()
    assert column.value(0, 1) is None
    assert column.value(1, 0) is None
    assert column.present(0).tolist() == [True, False, True]
    assert np.load(column.path(0), allow_pickle=False).shape == (3, 4)  # any NumPy user sees the array
    with pytest.raises(DataError, match="rows of a matrix have no bytes"):
        column.read(0, 0)


def test_vectors_of_a_matrix_may_be_float32(dataset):
    def make(dtype):
        return create_column(dataset, "feature.x", kind="matrix", extension="npy", plan={}, provenance={}, dtype=dtype)

    column, vectors = make("float32"), np.array([[1e-20, 1e30], [1 / 3, 2]], np.float32)
    assert column.commit_matrix(0, vectors, [1, 0, 1]) and column.commit_matrix(1, vectors[:1])
    again = Dataset(dataset.root).column("feature.x")
    assert again.dtype == "float32" and again.matrix(0)[0].dtype == np.float32
    assert np.array_equal(again.value(0, 2), vectors[1:]) and again.value(0, 1) is None
    with pytest.raises(DataError, match="dtype: there 'float32', asked"):
        make("float16")
    with pytest.raises(DataError, match="float64 values of kind 'matrix'; expected"):
        make("float64")


@pytest.mark.parametrize(
    "array, counts, nulls",
    [
        (np.ones((3, 2)), [1, 1], ()),
        (np.ones((2, 2)), None, ()),
        (np.ones(3), None, ()),
        (np.ones((3, 2)), None, [0]),
        (np.ones((3, 2)), [3, 1, -1], ()),
    ],
)
def test_matrix_that_does_not_fit_is_refused(dataset, array, counts, nulls):
    column = create_column(dataset, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    with pytest.raises(DataError, match="expected 3 counts"):
        column.commit_matrix(0, array, counts, nulls)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_matrix_that_float16_cannot_hold_is_refused(dataset, value):
    column = create_column(dataset, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    with pytest.raises(DataError, match="float16"):
        column.commit_matrix(0, np.full((3, 2), value))
    assert column.finished() == set()


def test_pictures_of_mixed_formats(dataset):
    column = create_column(dataset, "image", kind="image", extension="jpg;png", plan={}, provenance={})
    jpg, png = b"\xff\xd8\xff...", b"\x89PNG\r\n\x1a\n..."
    column.commit(0, [png, None, jpg])
    assert [column.read(0, row) for row in range(3)] == [png, None, jpg]
    assert column.present(0).tolist() == [True, False, True]
    with pytest.raises(DataError, match="webp picture in a column of jpg;png"):
        column.commit(1, [b"RIFF....WEBP"])


def test_a_second_commit_is_discarded(dataset):
    column = texts(dataset)
    assert column.commit(1, [column.encode(["first"])])
    before = column.path(1).read_bytes()
    assert not column.commit(1, [column.encode(["second"])])
    assert column.path(1).read_bytes() == before


@pytest.mark.parametrize("lost", [["record"], ["record", "index"]])
def test_a_payload_without_a_record_is_adopted(dataset, lost):
    column = texts(dataset)
    column.commit(0, [column.encode(["kept"]), None, column.encode(["x"])])
    files = {what: column.path(0, what).read_bytes() for what in ("payload", "index", "record")}
    for what in lost:
        column.path(0, what).unlink()
    fresh = Dataset(dataset.root).column("caption.en")
    assert fresh.missing() == [0, 1]
    assert fresh.commit(0, [fresh.encode(["other"])] * 3)
    assert {what: fresh.path(0, what).read_bytes() for what in files} == files


def test_a_foreign_payload_is_not_adopted(dataset):
    column = texts(dataset)
    with TarWriter(column.path(1)) as tar:
        tar.add("other.json", b"null")
    with pytest.raises(DataError, match=r"000001\.tar: its keys are not those"):
        column.commit(1, [None])
    assert column.finished() == set()


@pytest.mark.parametrize("values", [[b"[]"] * 2, [b"[]"] * 4, [b"[]", b"{", b"[]"], [b"[]", b"[1]", b"[]"]])
def test_a_bad_commit_leaves_nothing(dataset, values):
    column = texts(dataset)
    with pytest.raises(DataError, match=r"values|item 'b'"):
        column.commit(0, values)
    assert [p.name for p in column.folder.iterdir()] == ["column.json"]


def test_another_plan_is_refused_with_the_difference(dataset):
    texts(dataset, engine={"model": "a"}, beams=(1, 2))
    texts(dataset, engine={"model": "a"}, beams=(1, 2))
    with pytest.raises(DataError, match=r"plan\.engine\.model: there 'a', asked 'b'"):
        texts(dataset, engine={"model": "b"}, beams=(1, 2))
    with pytest.raises(DataError, match="kind: there 'texts', asked 'label'"):
        create_column(
            dataset,
            "caption.en",
            kind="label",
            extension="json",
            plan={"engine": {"model": "a"}, "beams": [1, 2]},
            provenance={},
        )


def test_another_dataset_is_refused_with_the_difference(dataset):
    assert create_dataset(dataset.root, name="d", split="train", keys=KEYS).digest == dataset.digest
    with pytest.raises(DataError, match="split: there 'train', asked 'val'"):
        create_dataset(dataset.root, name="d", split="val", keys=KEYS)


@pytest.mark.parametrize("key", ["", "a.b", "/a", "../a", "a\nb", "x/", "__m__/a", ".h"])
def test_keys_that_webdataset_would_not_take_are_refused(tmp_path, key):
    with pytest.raises(DataError, match="key"):
        create_dataset(tmp_path, name="d", split="train", keys=[[key]])


def test_repeated_keys_are_refused(tmp_path):
    with pytest.raises(DataError, match="'a' occurs twice"):
        create_dataset(tmp_path, name="d", split="train", keys=[["a"], ["a"]])


@pytest.mark.parametrize(
    "name", ["images", "caption", "caption.", "caption./x", "feature.../a", "keys", "Image", "feature.x/y"]
)
def test_column_names(dataset, name):
    with pytest.raises(ConfigError, match="expected image, video, caption"):
        texts(dataset, name)


def test_a_missing_column_says_what_there_is_and_what_makes_it(dataset):
    texts(dataset)
    with pytest.raises(
        DataError, match=r"(?s)no column 'caption\.e'.*did you mean 'caption\.en'.*There are: caption\.en"
    ):
        dataset.column("caption.e")
    with pytest.raises(DataError, match="ccr-dist translate"):
        dataset.column("caption.de.opus")


def test_keys_by_row(dataset):
    assert [[dataset.key(shard, row) for row in range(len(keys))] for shard, keys in enumerate(KEYS)] == KEYS
    assert [list(dataset.keys(shard)) for shard in range(2)] == KEYS
    with pytest.raises(IndexError):
        dataset.key(1, 1)
    path = dataset.root / "keys/000000.txt"
    for damaged in ("a\nb\nx/d\n", "a\nb\nx/c", "a\nb\nx/c\n\n", ""):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"keys/000000\.txt.*not the keys"):
            Dataset(dataset.root).key(0, 0)
    path.unlink()
    with pytest.raises(DataError, match=r"000000\.txt: missing"):
        Dataset(dataset.root).keys(0)


def test_an_unfinished_column_says_which_shards(dataset):
    column = texts(dataset)
    column.commit(1, [None])
    with pytest.raises(DataError, match=r"1 of 2 shards are missing \(000000\)"):
        column.require_complete()
    with pytest.raises(DataError, match="missing"):
        _ = column.digest
    with pytest.raises(DataError, match=r"000000\.json.*not finished"):
        column.value(0, 0)


def test_damage_is_noticed(dataset):
    column = filled(dataset)
    record = store.read_json(column.path(0, "record"))
    column.path(0, "record").write_text(json.dumps({**record, "plan": "0"}))
    with pytest.raises(DataError, match=r"000000\.json: the digest does not match"):
        Dataset(dataset.root).column("caption.en").value(0, 0)
    del record["digest"]
    column.path(0, "record").write_text(json.dumps(store.with_digest({**record, "plan": "0"})))
    with pytest.raises(DataError, match="another plan"):
        Dataset(dataset.root).column("caption.en").value(0, 0)
    (dataset.root / "dataset.json").write_text((dataset.root / "dataset.json").read_text().replace('"train"', '"test"'))
    with pytest.raises(DataError, match="edited or damaged"):
        Dataset(dataset.root)


def test_a_folder_that_is_no_dataset(tmp_path, dataset):
    with pytest.raises(DataError, match="holds the datasets d: name one"):
        Dataset(tmp_path)
    assert [d.root for d in open_all(tmp_path)] == [dataset.root]
    with pytest.raises(DataError, match="neither a dataset"):
        open_all(tmp_path / "d" / "keys")


def test_digest_follows_content_and_not_provenance(tmp_path):
    digests = []
    for i, (text, by) in enumerate([("x", "a"), ("x", "b"), ("y", "a")]):
        d = create_dataset(tmp_path / str(i), name="d", split="train", keys=[["k"]])
        column = create_column(d, "caption.en", kind="texts", extension="json", plan={}, provenance={"by": by})
        column.commit(0, [column.encode([text])])
        digests.append(column.digest)
    assert digests[0] == digests[1] != digests[2]


@settings(max_examples=200)
@given(st.one_of(st.none(), st.lists(st.text(st.characters(codec="utf-8")))))
def test_texts_round_trip(value):
    assert decode.decode("texts", decode.encode("texts", value)) == value


@given(st.binary(max_size=200))
def test_broken_pictures_are_data_errors(data):
    for magic in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "):
        with pytest.raises(DataError, match="item 'k'"):
            decode.decode_image(magic + data, "item 'k'")


@pytest.mark.parametrize(
    "mode, colour, expected",
    [("RGBA", (9, 9, 9, 0), 255), ("LA", (9, 0), 255), ("L", 9, 9), ("RGBA", (0, 0, 0, 255), 0)],
)
def test_transparency_is_white(mode, colour, expected):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new(mode, (2, 2), colour).save(out, "PNG")
    image = decode.decode_image(out.getvalue())
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (expected,) * 3
