"""Parquet files with pictures in them, and tables of captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpus import picture

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra parquet)")
from pyarrow import parquet as pq  # noqa: E402

from ccr_dist.data.corpora.build import build  # noqa: E402
from ccr_dist.data.corpora.foreign_tars import expand  # noqa: E402
from ccr_dist.data.corpora.recipes.base import load_recipe  # noqa: E402
from ccr_dist.data.corpora.recipes.captions import records  # noqa: E402
from ccr_dist.data.table.dataset import Dataset  # noqa: E402
from ccr_dist.errors import ConfigError, DataBudgetError, DataError  # noqa: E402

PICTURES = [picture(n) for n in range(7)]


def put(path: Path, columns: dict[str, Any], *, group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def do(tmp_path: Path, *options: str, out: str = "out") -> Any:
    recipe = load_recipe("parquet", [f"files=[{tmp_path / 'data'}]", *options])
    return build(recipe, tmp_path / out, progress=False)


def values(out: Path, column: str, split: str = "train") -> dict[str, Any]:
    dataset = Dataset(out / split)
    return {
        key: dataset.column(column).value(shard, row)
        for shard in range(len(dataset.shards))
        for row, key in enumerate(dataset.keys(shard))
    }


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """Two files as `datasets` writes them: pictures as {bytes, path}, captions as texts and as lists."""
    for number, part in enumerate((PICTURES[:5], PICTURES[5:])):
        image = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(part)]
        text = [f"a picture {number}-{n}" for n in range(len(part))]
        german = [["eins", "zwei"], None, [" "], ["drei"], []][: len(part)]
        put(tmp_path / "data" / f"train-{number}.parquet", {"image": image, "text": text, "de": german})
    return tmp_path


def test_pictures_and_captions_of_hugging_face(hugging_face: Path) -> None:
    do(hugging_face, "captions={en: text, de: de}", "shard_rows=3")
    keys = [f"train-{number}-{row:06d}" for number, rows in ((0, 5), (1, 2)) for row in range(rows)]
    assert values(hugging_face / "out", "image") == dict(zip(keys, PICTURES, strict=True)), "byte for byte"
    assert values(hugging_face / "out", "caption.en")["train-1-000001"] == ["a picture 1-1"]
    german = values(hugging_face / "out", "caption.de")
    assert [german[key] for key in keys[:5]] == [["eins", "zwei"], None, None, ["drei"], None]
    put(hugging_face / "data" / "train-1.parquet", {"image": PICTURES[:2], "text": ["x", "y"], "de": [[], []]})
    with pytest.raises((ConfigError, DataError), match="another build"):
        do(hugging_face, "captions={en: text, de: de}", "shard_rows=3")


def test_img2dataset_with_keys_of_its_own(tmp_path: Path) -> None:
    columns = {"key": ["000000", "000001"], "jpg": [PICTURES[0], None], "caption": ["one", "two"], "url": ["a", "b"]}
    put(tmp_path / "data" / "00000.parquet", columns)
    options = ("image=jpg", "captions={en: caption}", "key=key")
    with pytest.raises(DataBudgetError, match=r"00000\.parquet: row group 0, row 1: no bytes of a picture"):
        do(tmp_path, *options)
    do(tmp_path, *options, "bad_pictures=1", out="two")
    assert values(tmp_path / "two", "image") == {"000000": PICTURES[0], "000001": None}
    assert values(tmp_path / "two", "caption.en") == {"000000": ["one"], "000001": ["two"]}


def test_splits_are_drawn_by_the_caption(hugging_face: Path) -> None:
    do(hugging_face, "captions={en: text}", "split=concept", "test_percent=50", "val_percent=0")
    found = [values(hugging_face / "out", "image", split) for split in ("train", "test")]
    assert sum(map(len, found)) == 7 and all(found)


def test_what_does_not_fit_is_named(hugging_face: Path) -> None:
    with pytest.raises(ConfigError, match=r"train-0\.parquet: no column 'caption'; there are: image, text, de"):
        do(hugging_face, "captions={en: caption}")
    put(hugging_face / "data" / "train-0.parquet", {"URL": ["http://a"], "TEXT": ["x"]})
    with pytest.raises(ConfigError, match=r"no column 'image'; there are: URL, TEXT\. Links .* img2dataset"):
        do(hugging_face, "captions={en: TEXT}")
    put(hugging_face / "data" / "train-0.parquet", {"image": PICTURES[:2], "text": ["x", "y"], "id": ["k", "k"]})
    (hugging_face / "data" / "train-1.parquet").unlink()
    with pytest.raises(DataError, match="the key 'k' occurs twice"):
        do(hugging_face, "key=id")
    put(hugging_face / "data" / "train-0.parquet", {"image": PICTURES[:2], "text": ["x", "y"], "id": ["k", None]})
    with pytest.raises(DataError, match="row 1: no key in column 'id'"):
        do(hugging_face, "key=id")
    (hugging_face / "nothing").mkdir()
    with pytest.raises(ConfigError, match=r"no \.parquet in .*nothing"):
        do(hugging_face, f"files=[{hugging_face / 'nothing'}]")
    (hugging_face / "data" / "train-0.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(DataError, match=r"train-0\.parquet: not a complete Parquet file"):
        do(hugging_face)
    with pytest.raises(ConfigError, match="not a tar; `ccr-dist shards build parquet"):
        expand([str(hugging_face / "data" / "train-0.parquet")])


def test_a_table_of_captions(tmp_path: Path) -> None:
    path = put(tmp_path / "metadata.parquet", {"file_name": ["a.png", "b.png", "c.png"], "text": ["A.", None, "C."]})
    assert [record for _, record in records(path)] == [
        {"file_name": "a.png", "text": "A."},
        {"file_name": "b.png", "text": None},
        {"file_name": "c.png", "text": "C."},
    ]
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "pictures" / name).write_bytes(PICTURES[ord(name[0]) - 97])
    options = [f"images={tmp_path / 'pictures'}", f"captions={path}", "split_by=none"]
    build(load_recipe("folder", options), tmp_path / "out", progress=False)
    assert values(tmp_path / "out", "caption.en") == {"a": ["A."], "c": ["C."]}
