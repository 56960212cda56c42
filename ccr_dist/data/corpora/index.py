"""Makes a dataset of tars that img2dataset, webdataset or others wrote, without copying them.

The columns' records point to the tars by absolute path, with size, time and sha256; captions are views of the tars'
`.txt` or `.json` members. Everything is read and checked before anything is written; `foreign_tars.py` finds out which
files and members are meant. The tars must stay where they are and as they are: readers refuse one that has changed, and
indexing again records it anew and reports which rows changed.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccr_dist.data.corpora import foreign_tars
from ccr_dist.data.corpora.foreign_tars import Wanted, expand
from ccr_dist.data.corpora.indexed_before import (
    changed_rows,
    indexed_columns,
    is_recorded,
    key_rule,
    require_same_rows,
    some,
    stale_columns,
)
from ccr_dist.data.media import decode
from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import forget_files, read_at
from ccr_dist.data.storage.object_store import require_local
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.storage.tar import ShardIndex
from ccr_dist.data.table.column import Foreign
from ccr_dist.data.table.dataset import Column, Dataset, create_column, create_dataset
from ccr_dist.data.table.payload import pick
from ccr_dist.errors import ConfigError, DataBudgetError, DataError

__all__ = ["IndexSummary", "expand", "index"]


@dataclass
class IndexSummary:
    """Report of `index`.

    Attributes:
        dataset: The dataset.
        recorded: Column shards that this call recorded.
        there: Column shards that were already recorded.
        again: Column shards that were recorded again, since their tar had changed.
        missing: Keys of rows without such a member, by column; their values are null.
        bad: Reasons by key for values that cannot be used, by column; they are null.
        changed: Keys of rows that changed since the tar was indexed before, by column.
        ignored: Members without an extension, or hidden.
        notes: Lines for the user.
    """

    dataset: Dataset
    recorded: int = 0
    there: int = 0
    again: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)
    bad: dict[str, dict[str, str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    ignored: int = 0
    notes: list[str] = field(default_factory=list)


def index(
    urls: Iterable[str],
    out: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    image: str | None = None,
    video: str | None = None,
    captions: Mapping[str, str] | None = None,
    keys: str = "auto",
    bad_items: int = 10,
    bad_fraction: float = 0.01,
    command: str | None = None,
    progress: bool = True,
) -> IndexSummary:
    """Make a dataset of tars, one shard per tar. Running it again records what is missing or has changed.

    All tars are read and checked before anything is written.

    Args:
        urls: Tars and folders of tars; braces and globs are expanded.
        out: Folder of the dataset.
        name: Name of the dataset; by default the folder's.
        split: train, val or test.
        image: Extensions of members with pictures, such as `jpg;png`, or `none`; by default as found.
        video: The same for videos.
        captions: Members with captions by language: `txt` (a caption per line), `txt:whole` or `json:FIELD`; by default
            {"en": "txt"} if there are such members.
        keys: `own`; `tar`: each key begins with its tar's name; `auto`: `tar` if two tars share a key.
        bad_items: How many captions may be unreadable; they become null.
        bad_fraction: Alternatively this fraction of the rows, whichever is more.
        command: The command line, recorded as provenance.
        progress: Whether to show progress bars.

    Returns:
        What was recorded, and which values are missing, bad or changed.

    Raises:
        ConfigError: `urls` or an option is wrong.
        DataError: A tar is broken or being written, keys repeat, a field or member does not exist, or `out` holds
            something else; names tar and key.
        DataBudgetError: Too many captions cannot be read.
    """
    require_local(out, "tars are indexed")
    if keys not in ("auto", "own", "tar"):
        raise ConfigError(f"keys {keys!r}: expected auto, own or tar")
    paths, out = expand(urls), Path(out)
    scans = []
    with bar(progress, "scanning", len(paths), "tars") as advance:
        for path in paths:
            scans.append(ShardIndex.scan(path, usable=True))
            advance()
    odd = [f"{name!a} in {path.name}" for path, scan in zip(paths, scans, strict=True) for name in scan.odd]
    known = indexed_columns(out)
    there = foreign_tars.extensions(scans)
    first = f"{paths[0]}{' ...' if len(paths) > 1 else ''}"
    try:
        visual, notes = foreign_tars.media(
            there, image, video, {c.name: c.extension for c in known if c.kind in decode.BINARY}
        )
        said, more = foreign_tars.texts(there, captions, {c.name: c.field for c in known if c.kind == "texts"})
    except DataError as e:
        raise DataError(f"{first}: {e}") from None
    wanted = [*visual, *said]
    if not wanted:
        raise DataError(
            f"{first}: nothing to index: no pictures, videos or captions; there are: {foreign_tars.some(there)}"
        )
    rule = key_rule(keys, known, scans, paths)
    prefixes = [f"{stem}/" for stem in foreign_tars.stems(paths)] if rule == "tar" else [""] * len(paths)
    if rule == "tar":
        notes.append(
            f"keys begin with their tar's name, as in {prefixes[0]}{scans[0].keys[0] if scans[0].keys else ''}"
        )
        scans = [
            ShardIndex(tuple(p + key for key in s.keys), s.members, s.ignored)
            for p, s in zip(prefixes, scans, strict=True)
        ]
    require_same_rows(out, scans, paths)
    summary = IndexSummary(None, notes=[*notes, *more], ignored=sum(scan.ignored for scan in scans))  # type: ignore[arg-type]
    names = {column.name: column for column in known}
    if odd:
        summary.notes.append(f"{len(odd)} members are ignored, since no key can be made of their names: {some(odd)}")
    looked: dict[tuple[int, int], Foreign] = {}
    with bar(progress, "reading", len(paths), "tars") as advance:
        for shard, (path, scan) in enumerate(zip(paths, scans, strict=True)):
            todo = [one for one in wanted if not is_recorded(names.get(one.column), shard, path)]
            before, sha256 = path.stat(), store.sha256_file(path) if todo else ""
            for one in todo:
                looked[wanted.index(one), shard] = _look(one, path, scan, (before.st_size, before.st_mtime_ns), sha256)
            if todo and (path.stat().st_size, path.stat().st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise DataError(f"{path}: is being written; index it when it is complete")
            advance()
    for number, one in enumerate(wanted):
        bad = {scans[s].keys[r]: why for (n, s), found in looked.items() if n == number for r, why in found.bad.items()}
        summary.bad |= {one.column: bad} if bad else {}
        _require_values(one, paths, scans, {s: found for (n, s), found in looked.items() if n == number})
    _require_few_bad(
        {**summary.bad, "keys": {name: f"{name}: no key can be made of it" for name in odd}},
        max(bad_items, int(bad_fraction * sum(len(scan.keys) for scan in scans))),
    )
    summary.dataset = create_dataset(
        out, name=name or out.resolve().name, split=split, keys=[scan.keys for scan in scans]
    )
    columns = [_column(summary.dataset, one, visual, paths, rule, command) for one in wanted]
    for folder in (out, out / "keys", *(column.folder for column in columns)):
        store.tidy(folder)
    with bar(progress, "recording", len(paths), "tars") as advance:
        for shard, (path, scan, prefix) in enumerate(zip(paths, scans, prefixes, strict=True)):
            for number, column in enumerate(columns):
                _record(column, shard, path, scan, prefix, looked.get((number, shard)), summary)
            advance()
    summary.notes += stale_columns(summary.dataset, columns, paths)
    return summary


# -- what is in the tars


def _look(one: Wanted, path: Path, scan: ShardIndex, state: tuple[int, int], sha256: str) -> Foreign:
    """Read every value of a column in one tar.

    Args:
        one: The column.
        path: The tar.
        scan: What is in the tar.
        state: Its size in bytes and its mtime in ns.
        sha256: Its digest.
    """
    offsets, sizes = pick(scan.only(one.extension), one.extension)
    crc, nulls, bad = np.zeros(len(sizes), np.uint32), [], {}
    for row, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
        data = read_at(path, offset, size, sha256) if size > 0 else b""
        crc[row] = zlib.crc32(data)
        value = None
        try:
            what = f"{path} item {scan.keys[row]!r}"
            value = decode.decode(one.kind, data, what, extension=one.extension, field=one.field) if data else None
        except DataError as e:
            bad[row] = str(e)
        if not decode.is_present(one.kind, value):
            nulls.append(row)
    return Foreign(state[0], sha256, state[1], crc, nulls, bad)


def _require_values(
    one: Wanted, paths: Sequence[Path], scans: Sequence[ShardIndex], looked: Mapping[int, Foreign]
) -> None:
    """Raise DataError if members exist, but no row has a value: probably a misspelt field."""
    if (
        len(looked) < len(paths)
        or one.kind in decode.BINARY
        or any(len(found.nulls) < len(scans[s].keys) for s, found in looked.items())
    ):
        return
    if reasons := [why for found in looked.values() for why in found.bad.values()]:
        raise DataError(f"{one.column}: not one caption can be read; the first: {reasons[0]}")
    if one.field is None or decode.is_plain(one.extension):
        raise DataError(f"{one.column}: the members .{one.extension} of all rows are blank; leave the column out")
    samples: list[bytes] = []
    for path, scan, sha256 in zip(paths, scans, (looked[s].sha256 for s in range(len(paths))), strict=True):
        offsets, sizes = pick(scan, one.extension)
        samples += [
            read_at(path, int(o), int(n), sha256) for o, n in zip(offsets[:50], sizes[:50], strict=True) if n > 0
        ]
    found = foreign_tars.fields_in(samples[:200])
    near = difflib.get_close_matches(one.field, found, 1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"{one.column}: no row has a text in the field {one.field!r}{hint} There are: {', '.join(found[:40]) or 'none'}"
    )


def _require_few_bad(bad: Mapping[str, Mapping[str, str]], limit: int) -> None:
    reasons = [why for found in bad.values() for why in found.values()]
    if len(reasons) > limit:
        shown = "\n  ".join(reasons[:5])
        raise DataBudgetError(
            f"{len(reasons)} captions or names cannot be read, {limit} are tolerated. The first ones:\n  {shown}\nmend"
            " the tars, or allow more with --bad-items: such rows then have no caption, or are left out. Nothing was"
            " written"
        )


# -- writing


def _column(
    dataset: Dataset, one: Wanted, visual: Sequence[Wanted], paths: Sequence[Path], rule: str, command: str | None
) -> Column:
    about = {
        "tars": len(paths),
        "first": str(paths[0]),
        "last": str(paths[-1]),
        "digest": store.digest_json([str(p) for p in paths]),
    }
    about |= {"keys": rule} if rule != "own" else {}
    return create_column(
        dataset,
        one.column,
        kind=one.kind,
        extension=one.extension,
        plan={"indexed": about, "member": one.extension, "field": one.field},
        provenance={"source": "indexed tars, not copied"} | ({"command": command} if command else {}),
        view_of=visual[0].column if visual and one.column != visual[0].column else None,
        field=one.field,
    )


def _record(
    column: Column, shard: int, path: Path, scan: ShardIndex, prefix: str, found: Foreign | None, summary: IndexSummary
) -> None:
    own = scan.only(column.extension)
    _, sizes = pick(own, column.extension)
    if gone := [scan.keys[row] for row in (sizes < 0).nonzero()[0]]:
        summary.missing.setdefault(column.name, []).extend(gone)
    if found is None:
        summary.there += 1
        return
    if column.path(shard, "record").exists():
        changed = changed_rows(column, shard, own, found)
        if changed:
            summary.changed.setdefault(column.name, []).extend(changed)
        summary.again += 1
        column.set_aside(shard)
        forget_files()
    summary.recorded += column.commit_foreign(shard, path, own, found, prefix)
