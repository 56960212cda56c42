"""Joint tars that open_clip's pipeline reads; an export that was interrupted goes on, another one is refused."""

import io
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from ccr_dist.data.cli import shards_app
from ccr_dist.data.corpora.export import export
from ccr_dist.data.corpora.index import index
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError
from tests.corpus import picture

KEYS = [["a", "p/b"], ["c", "d", "e"]]
PICTURES = [[picture(0, format="JPEG"), picture(1)], [picture(2, format="BMP"), None, picture(4, format="WEBP")]]
ENGLISH = [[["one", "zwei"], [" ", "two "]], [["three"], ["four"], None]]


@pytest.fixture
def dataset(tmp_path):
    made = create_dataset(tmp_path / "d", name="d", split="train", keys=KEYS)
    kinds = (("image", "image", "jpg;png;bmp;webp"), ("caption.en", "texts", "json"), ("caption.de", "texts", "json"))
    columns = [
        create_column(made, name, kind=kind, extension=ending, plan={}, provenance={}) for name, kind, ending in kinds
    ]
    for shard in range(2):
        for column, values in zip(
            columns, (PICTURES, ENGLISH, [[["eins"], None], [["drei"], None, None]]), strict=True
        ):
            column.commit(shard, [None if value is None else column.encode(value) for value in values[shard]])
    return made


def as_open_clip(folder):
    """What open_clip's own pipeline makes of the tars (open_clip_train/data.py, `get_wds_dataset`), tokenizer and
    transform aside.
    """
    wds = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards),
        wds.tarfile_to_samples(),
        wds.select(lambda sample: "txt" in sample and any(kind in sample for kind in ("png", "jpg", "jpeg", "webp"))),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(text=str),
        wds.to_tuple("__key__", "image", "text"),
    )
    return [(key, image.convert("RGB"), text) for key, image, text in pipeline]


def rgb(data):
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_open_clip_reads_what_was_exported(dataset, tmp_path):
    (done,) = export(dataset.root, tmp_path / "out")
    assert (done.tars, done.written, done.samples, done.left_out) == (["000000.tar", "000001.tar"], 2, 3, 2)
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {"000000.tar": 2, "000001.tar": 1}
    seen = as_open_clip(tmp_path / "out")
    assert [(key, text) for key, _, text in seen] == [("a", "one"), ("p/b", "two"), ("c", "three")]
    assert [image.tobytes() for _, image, _ in seen] == [rgb(PICTURES[0][0]), rgb(PICTURES[0][1]), rgb(PICTURES[1][0])]


def test_each_caption_and_more_columns(dataset, tmp_path):
    (done,) = export(dataset.root, tmp_path / "out", caption="caption.en", also=["caption.de", "caption.en"], each=True)
    assert done.samples == 4
    pairs = [(key, text) for key, _, text in as_open_clip(tmp_path / "out")]
    assert pairs == [("a_0", "one"), ("a_1", "zwei"), ("p/b_0", "two"), ("c_0", "three")]
    back = index(
        [str(tmp_path / "out/*.tar")], tmp_path / "back", captions={"de": "json:caption.de"}, progress=False
    ).dataset
    assert [back.column("caption.de").value(0, row) for row in range(3)] == [["eins"], ["eins"], None]
    assert back.column("image").value(0, 0) == PICTURES[0][0]  # not compressed anew


def test_an_export_goes_on_and_another_one_is_refused(dataset, tmp_path):
    out = tmp_path / "out"
    export(dataset.root, out)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "000000.tar").unlink()
    (out / "000001.tar").write_bytes(whole["000001.tar"][:1000])
    (out / "sizes.json").unlink()
    assert export(dataset.root, out)[0].written == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert export(dataset.root, out)[0].written == 0
    with pytest.raises(
        DataError, match="another export already exists; the difference:\n  each: there False, asked True"
    ):
        export(dataset.root, out, each=True)
    with pytest.raises(ConfigError, match="already holds files"):
        export(dataset.root, dataset.root)
    with pytest.raises(ConfigError, match="of kind image; expected texts"):
        export(dataset.root, tmp_path / "e", caption="image")


def test_the_command_and_a_folder_of_datasets(dataset, tmp_path):
    said = (
        CliRunner()
        .invoke(shards_app, ["export", str(tmp_path), "--out", str(tmp_path / "out"), "-q"])
        .output.replace("\n", " ")
    )
    assert "3 samples in 2 tars; wrote 2" in said and "2 rows have no picture or no caption" in said
    assert "out/d/{000000..000001}.tar' --train-num-samples 3" in said
    assert len(as_open_clip(tmp_path / "out/d")) == 3
