"""Exports a dataset as tars of KEY.jpg and KEY.txt (and KEY.json), for open_clip's training script and other readers of
WebDataset.

    OUT/export.json     what the tars are made of; a second export into OUT must be the same
    OUT/000000.tar      the samples of a shard, in its order; written atomically
    OUT/sizes.json      {tar: samples}, written last; open_clip reads it

`shards index` can make a dataset of such tars again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccr_dist.data.media.decode import is_present
from ccr_dist.data.media.pictures import decode_image, picture_extension
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.storage import store
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.storage.tar import ShardIndex, TarWriter
from ccr_dist.data.table import records
from ccr_dist.data.table.dataset import Column, Dataset, open_all
from ccr_dist.errors import ConfigError, DataError

FORMATS = ("jpg", "png", "webp")  # of the names that open_clip looks for; other pictures are written as PNG
_PLAN = "export.json"


@dataclass
class Exported:
    """Report on the export of one dataset.

    Attributes:
        out: Folder of the tars.
        tars: Names of all tars that hold samples.
        written: Number of tars that this call wrote.
        samples: Number of samples in all tars.
        left_out: Rows without a picture or a caption.
    """

    out: Path
    tars: list[str] = field(default_factory=list)
    written: int = 0
    samples: int = 0
    left_out: int = 0


def export(
    path: str | Path,
    out: str | Path,
    *,
    image: str = "image",
    caption: str | None = None,
    also: Sequence[str] = (),
    each: bool = False,
    progress: bool = False,
) -> list[Exported]:
    """Write a dataset as tars, or each dataset of a folder to OUT/<its folder>. The same call resumes an interrupted
    one.

    Rows without a picture or a caption are left out.

    Args:
        path: A dataset or a folder of datasets.
        out: Folder of the tars.
        image: Column of pictures.
        caption: Column of the .txt; by default caption.en, or the only column of captions.
        also: Columns whose values go into the .json.
        each: Whether each caption makes a sample, KEY_0, KEY_1, ..., with the same picture; otherwise only the first
            caption that is not blank.
        progress: Whether to show a progress bar.

    Returns:
        One report per dataset.

    Raises:
        ConfigError: A column does not exist or is of the wrong kind, or `out` holds something else.
        DataError: A column is incomplete or damaged, or two samples would have the same key.
        StorageError: The disk is full or fails.
    """
    datasets, out = open_all(path), Path(out)
    alone = datasets[0].place == (as_url(path) or str(Path(path)))
    plans = [_plan(dataset, image, caption, also, each) for dataset in datasets]
    places = [out if alone else out / dataset.place.rsplit("/", 1)[-1] for dataset in datasets]
    return [
        _export(dataset, place, plan, progress) for dataset, place, plan in zip(datasets, places, plans, strict=True)
    ]


def _plan(dataset: Dataset, image: str, caption: str | None, also: Sequence[str], each: bool) -> dict[str, Any]:
    """What decides the bytes of the tars. Raises ConfigError or DataError for unsuitable columns."""
    if caption is None:
        there = [name for name in dataset.columns() if name.startswith("caption.")]
        if "caption.en" in there:
            caption = "caption.en"
        elif len(there) == 1:
            caption = there[0]
        else:
            raise ConfigError(
                f"{dataset.place}: choose the captions with --caption; there are: {', '.join(there) or 'none'}"
            )
    for name, kinds in (
        (image, ("image",)),
        (caption, ("texts", "views")),
        *((name, ("texts", "views", "label")) for name in also),
    ):
        column = dataset.column(name)
        if column.kind not in kinds:
            raise ConfigError(f"{column.folder}: of kind {column.kind}; expected {' or '.join(kinds)}")
        column.require_complete()
    digests = {name: dataset.column(name).digest for name in (image, caption, *also)}
    return {
        "dataset": dataset.digest,
        "image": image,
        "caption": caption,
        "also": list(also),
        "each": each,
        "columns": digests,
    }


def _export(dataset: Dataset, out: Path, plan: dict[str, Any], progress: bool) -> Exported:
    out.mkdir(parents=True, exist_ok=True)
    store.tidy(out)
    if any(out.iterdir()) and not (out / _PLAN).exists():
        raise ConfigError(f"{out}: already holds files; choose another --out")
    if not store.create_once(out / _PLAN, store.pretty_json(plan)):
        try:
            there = store.read_json(out / _PLAN)
        except DataError as error:
            raise DataError(f"{error}; export to another place, or remove this one: {out}") from None
        store.require_same(out / _PLAN, there, plan, "another export already exists")
    done, sizes = Exported(out), {}
    with bar(progress, f"exporting {dataset.split}", len(dataset.shards), "tars") as advance:
        for shard, name in enumerate(dataset.shards):
            tar = out / f"{name}.tar"
            number = _samples_in(tar)
            if number is None:
                number = _write(dataset, shard, tar, plan)
                done.written += 1
            rows = sum(1 for _ in _rows(dataset, shard, plan))
            done.left_out += dataset.shard_rows[shard] - rows
            if number:
                sizes[tar.name] = number
            advance()
    done.tars, done.samples = list(sizes), sum(sizes.values())
    content = store.pretty_json(sizes)
    if not (out / "sizes.json").exists() or store.read_bytes(out / "sizes.json") != content:
        store.replace_atomic(out / "sizes.json", content)
    return done


def _samples_in(tar: Path) -> int | None:
    """Number of samples in an existing tar; None if there is none, or only a truncated one, which is removed."""
    if records.size_of(tar) is None:
        return None
    try:
        return len(ShardIndex.scan(tar).keys)
    except DataError:
        tar.unlink()
        return None


def _rows(dataset: Dataset, shard: int, plan: dict[str, Any]) -> Iterator[int]:
    """The rows with a picture and a caption."""
    there = dataset.column(plan["image"]).present(shard) & dataset.column(plan["caption"]).present(shard)
    yield from there.nonzero()[0].tolist()


def _write(dataset: Dataset, shard: int, tar: Path, plan: dict[str, Any]) -> int:
    """Write the tar of a shard. Returns its number of samples."""
    pictures, captions = dataset.column(plan["image"]), dataset.column(plan["caption"])
    others = [dataset.column(name) for name in plan["also"]]
    number, stems = 0, set[str]()
    with store.staged(tar) as tmp:
        with TarWriter(tmp) as writer:
            for row in _rows(dataset, shard, plan):
                extension, picture = _picture(pictures, shard, row)
                said = [text.strip() for text in texts_of(captions.value(shard, row)) if has_text(text)]
                values = {column.name: column.value(shard, row) for column in others}
                more = {
                    name: value
                    for name, value in values.items()
                    if is_present("label" if isinstance(value, str) else "texts", value)
                }
                key = dataset.key(shard, row)
                for i, text in enumerate(said if plan["each"] else said[:1]):
                    stem = f"{key}_{i}" if plan["each"] else key
                    if stem in stems:
                        raise DataError(
                            f"{captions.folder}: two samples would have the key {stem!r}; export without --each"
                        )
                    stems.add(stem)
                    writer.add(f"{stem}.{extension}", picture)
                    writer.add(f"{stem}.txt", text.encode())
                    if others:
                        writer.add(f"{stem}.json", json.dumps(more, ensure_ascii=False, sort_keys=True).encode())
                    number += 1
        store.publish_once(tmp, tar)
    return number


def _picture(column: Column, shard: int, row: int) -> tuple[str, bytes]:
    """(extension, bytes) of a picture as stored, or as PNG if open_clip does not look for its format."""
    data, where = column.value(shard, row), column.where(shard, row)
    extension = picture_extension(data, where)
    if extension in FORMATS:
        return extension, data
    out = io.BytesIO()
    decode_image(data, where).save(out, "PNG")
    return "png", out.getvalue()
