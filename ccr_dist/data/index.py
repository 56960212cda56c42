"""Tars that img2dataset, webdataset or anything else wrote become a dataset without a copy.

The columns' records point at the tars by absolute path, with their sha256; captions are views of the tars' `.txt` or `.json` members. The
tars must stay where they are and as they are: `verify` notices when they do not.
"""

from __future__ import annotations

import glob
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccr_dist.data import decode, store
from ccr_dist.data.bar import bar
from ccr_dist.data.column import Foreign
from ccr_dist.data.payload import pick
from ccr_dist.data.remote import require_local
from ccr_dist.data.table import Column, Dataset, create_column, create_dataset
from ccr_dist.data.tar import ShardIndex, read_at
from ccr_dist.errors import ConfigError, DataError

PICTURES = "jpg;jpeg;png;webp;gif;bmp;tif;tiff"
_SHOWN = 10
_BRACE = re.compile(r"\{([^{}]*)\}")


@dataclass
class IndexSummary:
    """What was indexed; `missing`: per column, the keys that have no such member (their rows are null)."""

    dataset: Dataset
    recorded: int = 0
    there: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)
    ignored: int = 0


def expand(urls: Iterable[str]) -> list[Path]:
    """Absolute paths of tars from names with braces (`{0000..0012}`, `{a,b}`) and globs. ConfigError for what is not there."""
    paths: list[Path] = []
    for url in urls:
        if "://" in url or url.startswith("pipe:"):
            raise ConfigError(f"{url}: only tars on local (or mounted) file systems can be indexed")
        for name in _braces(url):
            found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207
            if not found or not Path(found[0]).is_file():
                raise ConfigError(f"{name}: no such tar" + (f" (from {url!r})" if name != url else ""))
            paths += [Path(p).resolve() for p in found]
    if twice := sorted({str(p) for p in paths if paths.count(p) > 1}) if len(set(paths)) < len(paths) else []:
        raise ConfigError(f"given twice: {', '.join(twice[:_SHOWN])}")
    if not paths:
        raise ConfigError("no tars given")
    return paths


def _braces(text: str) -> list[str]:
    """bash's brace expansion of lists and zero-padded ranges."""
    match = _BRACE.search(text)
    if match is None:
        return [text]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends:
        width = max(len(ends[1]), len(ends[2])) if "0" in (ends[1][0], ends[2][0]) else 0
        parts = [str(i).zfill(width) for i in range(int(ends[1]), int(ends[2]) + 1)]
    elif "," in match[1]:
        parts = match[1].split(",")
    else:
        raise ConfigError(f"{text}: expected {{000..012}} or {{a,b}} in the braces")
    return [name for part in parts for name in _braces(text[: match.start()] + part + text[match.end() :])]


def index(
    urls: Iterable[str],
    out: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    image: str | None = PICTURES,
    captions: Mapping[str, str] | None = None,
    progress: bool = True,
) -> IndexSummary:
    """Makes the dataset OUT, one shard a tar. captions: language -> `txt`, or `json:FIELD`; default {"en": "txt"}. image=None: texts only.

    ConfigError for urls; DataError, naming tar and key, for broken tars, repeated keys, captions that are not text, and where no tar has
    a wanted member or OUT holds something else. Running it again records what is missing.
    """
    require_local(out, "tars are indexed")
    paths, out = expand(urls), Path(out)
    scans: list[ShardIndex] = []
    owner: dict[str, Path] = {}
    with bar(progress, "scanning", len(paths), "tars") as advance:
        for path in paths:
            scans.append(ShardIndex.scan(path))
            for key in scans[-1].keys:
                if key in owner:
                    raise DataError(f"the key {key!r} is in {owner[key]} and in {path}: keys must be unique in a dataset; index them apart")
                owner[key] = path
            advance()
    wanted: dict[str, tuple[str, str, str | None]] = {"image": ("image", image, None)} if image else {}
    for lang, where in ({"en": "txt"} if captions is None else captions).items():
        extension, _, json_field = where.partition(":")
        if extension == "json" and not json_field:
            raise ConfigError(f"caption {lang}: say which field of the .json members it is: {lang}=json:caption")
        wanted[f"caption.{lang}"] = ("texts", extension, json_field or None)
    there = sorted({extension for scan in scans for extension in scan.members})
    for column, (_, extension, _) in wanted.items():
        if not set(extension.split(";")) & set(there):
            raise DataError(
                f"{paths[0]}{' ...' if len(paths) > 1 else ''}: no member .{extension} for {column}; there are: {', '.join(there)}"
            )
    dataset = create_dataset(out, name=name or out.resolve().name, split=split, keys=[scan.keys for scan in scans])
    summary = IndexSummary(dataset, ignored=sum(scan.ignored for scan in scans))
    tars = {"tars": len(paths), "first": str(paths[0]), "last": str(paths[-1]), "digest": store.digest_json([str(p) for p in paths])}
    columns = [
        create_column(
            dataset,
            column,
            kind=kind,
            extension=extension,
            plan={"indexed": tars, "member": extension, "field": json_field},
            provenance={"source": "indexed tars, not copied"},
            view_of="image" if image and column != "image" else None,
            field=json_field,
        )
        for column, (kind, extension, json_field) in wanted.items()
    ]
    with bar(progress, "recording", len(paths), "tars") as advance:
        for shard, (path, scan) in enumerate(zip(paths, scans, strict=True)):
            _record(columns, shard, path, scan, summary)
            advance()
    return summary


def _record(columns: list[Column], shard: int, path: Path, scan: ShardIndex, summary: IndexSummary) -> None:
    todo = [column for column in columns if not column.path(shard, "record").exists()]
    sha256 = store.sha256_file(path) if todo else ""
    for column in columns:
        extensions = column.extension.split(";")
        own = ShardIndex(scan.keys, {ext: places for ext, places in scan.members.items() if ext in extensions}, scan.ignored)
        if column in todo:
            offsets, sizes = pick(own, column.extension)
            crc, nulls, found = [], [], path.stat()
            for row, key in enumerate(scan.keys):
                data = read_at(path, int(offsets[row]), int(sizes[row]), sha256) if sizes[row] > 0 else b""
                what = f"{path} item {key!r}"
                value = decode.decode(column.kind, data, what, extension=column.extension, field=column.field) if data else None
                nulls += [row] * (not decode.is_present(column.kind, value))
                crc.append(zlib.crc32(data))
            summary.recorded += column.commit_foreign(shard, path, own, Foreign(found.st_size, sha256, found.st_mtime_ns, crc, nulls, {}))
        else:
            summary.there += 1
        gone = [key for row, key in enumerate(scan.keys) if all(sizes[row] < 0 for _, sizes in own.members.values())]
        if gone:
            summary.missing.setdefault(column.name, []).extend(gone)
