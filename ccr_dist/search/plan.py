"""What an update of an index has to do: the sources as they are now against the names that the index has."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ccr_dist.data.media.media_files import Kind, readers
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError, failing
from ccr_dist.search.listing import Found, Listing, listed
from ccr_dist.search.names import AGAIN, Line, identity
from ccr_dist.search.sources import same_place
from ccr_dist.search.state import Plan, Segment, Source, State

Others = Literal["refuse", "keep", "drop"]  # what to do with sources of the index that are not named
_READING = 8  # threads that read files again


@dataclass
class Seen:
    """What was seen of the folders while an update was planned, for people.

    Attributes:
        bad: pictures and videos by name that could not be looked at, with the reason.
        passed: files that are neither, and links that are not followed.
        closed: folders that cannot be listed; what was known of them is kept.
    """

    bad: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)

    def add(self, root: str, listing: Listing) -> None:
        """What was seen of one folder."""
        for mine, its in ((self.bad, listing.bad), (self.passed, listing.passed), (self.closed, listing.closed)):
            mine.update({f"{root}/{path}": why for path, why in its.items()})


def make_plan(
    place: Path,
    state: State,
    names: Iterable[Line],
    sources: Sequence[Source],
    *,
    others: Others,
    check: bool,
    progress: bool,
) -> tuple[Plan | None, Seen]:
    """Compares the sources with an index.

    Args:
        place: the index, for messages.
        state: of the index.
        names: of that state.
        sources: that are asked for.
        others: what to do with sources of the index that are not among them.
        check: read every file again, whatever its size and time say.
        progress: whether to show a bar.

    Returns:
        What is to be done, None where there is nothing, and what was seen.

    Raises:
        ConfigError: the index has other sources, and `others` is refuse.
        DataError: a folder is gone, or nothing is left in it and `others` is not drop.
        OSError: a folder cannot be listed.
    """
    merged = _merged(place, state, sources, others)
    before: dict[tuple[int, str], Line] = {}
    gone = 0
    position = {
        at: next((i for i, new in enumerate(merged) if same_place(new, old)), None)
        for at, old in enumerate(state.sources)
    }
    for line in names:
        at = position[line["source"]]
        if at is None:
            gone += 1
        else:
            before[at, identity(line)[1]] = line | {"source": at}
    asked = [any(same_place(source, each) for each in sources) for source in merged]
    now = readers()
    seen, kept, files, segments = Seen(), list[Line](), list[Line](), list[Segment]()
    for at, source in enumerate(merged):
        own = {name: line for (where, name), line in before.items() if where == at}
        if not asked[at]:
            kept += own.values()
        elif source["kind"] == "folder":
            same, new = _folder(at, source, own, seen, now, check=check, progress=progress)
            if own and not (same or new) and others != "drop":
                raise DataError(
                    f"{source['path']}: no pictures or videos any more; the index {place} knows {len(own)} there. Is a"
                    " disk not mounted? If they are gone for good, --instead says so"
                )
            kept += same
            files += new
        elif any(old == source for old in state.sources):
            kept += own.values()
    number, folder = state.total, len(state.segments)
    if files:
        segments.append(Segment(f"{folder:06d}", number, len(files)))
        files = [line | {"number": number + row} for row, line in enumerate(files)]
        number += len(files)
    rows: list[Line] = []
    for at, source in enumerate(merged):
        if asked[at] and source["kind"] == "dataset" and source not in state.sources:
            dataset = Dataset(source["path"])
            segments.append(Segment(f"{folder + len(segments):06d}", number, dataset.rows, at))
            rows += _rows(dataset, at, source, number)
            number += dataset.rows
    lines = [*kept, *files, *rows]
    counts = _counts(before, [*files, *rows], kept, gone)
    if not (files or rows or counts["removed"]) and list(state.sources) == merged:
        return None, seen
    lines.sort(key=lambda line: (line["number"], identity(line)))
    return Plan(state.generation + 1, tuple(merged), tuple(segments), now, counts, lines), seen


def _merged(place: Path, state: State, sources: Sequence[Source], others: Others) -> list[Source]:
    """The sources after the update, in an order that does not depend on how they were named."""
    left = [old for old in state.sources if not any(same_place(old, new) for new in sources)]
    if left and others == "refuse":
        there = ", ".join(source["path"] for source in state.sources)
        given = ", ".join(source["path"] for source in sources)
        raise ConfigError(
            f"{place}: an index of {there}, and not of {given}. With --add these pictures are added to it; with"
            " --instead it becomes an index of them alone (what it knows of the same files is used again, as after a"
            " folder was moved); or name another --out"
        )
    kept = left if others == "keep" else []
    again = [new for new in sources if any(same_place(old, new) for old in state.sources)]
    fresh = [new for new in sources if new not in again]
    order = {source["path"]: at for at, source in enumerate(state.sources)}
    return sorted([*kept, *again], key=lambda source: order[source["path"]]) + fresh


def _folder(
    at: int, source: Source, own: dict[str, Line], seen: Seen, now: str, *, check: bool, progress: bool
) -> tuple[list[Line], list[Line]]:
    """The names of a folder that are as they were, and those that are new or changed."""
    root = Path(source["path"])

    def settled(path: str, size: int, mtime: int) -> Line | None:
        line = own.get(path)
        if line is None or (line["bytes"], line["mtime"]) != (size, mtime) or AGAIN in line:
            return None
        return line if line.get("readers", now) == now else None

    def known(path: str, size: int, mtime: int) -> Kind | None:
        line = settled(path, size, mtime)
        return None if line is None else line["kind"]

    listing = listed(root, known)
    seen.add(source["path"], listing)
    same, new = list[Line](), list[Found]()
    for found in sorted(listing.found.values()):
        line = settled(found.path, found.bytes, found.mtime)
        if line is None:
            new.append(found)
        else:
            same.append(line)
    if check:
        same, changed = _read_again(root, same, listing, progress=progress)
        new = sorted([*new, *changed])
    # What cannot be looked at now is not known to be gone.
    hidden = tuple(f"{folder}/" for folder in listing.closed)
    same += [line for path, line in own.items() if path in listing.bad or (hidden and path.startswith(hidden))]
    return same, [_line(at, found) for found in new]


def _line(at: int, found: Found) -> Line:
    return {"source": at, "path": found.path, "bytes": found.bytes, "mtime": found.mtime, "kind": found.kind}


def _read_again(root: Path, lines: list[Line], listing: Listing, *, progress: bool) -> tuple[list[Line], list[Found]]:
    """Of names that seem unchanged: those whose files have the recorded content, and those whose files have not."""
    same, changed = list[Line](), list[Found]()

    def digest(line: Line) -> str | None:
        try:
            with (root / line["path"]).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if failing(error, root / line["path"]):
                raise
            return None

    with ThreadPoolExecutor(_READING) as pool, bar(progress, "reading again", len(lines), "files") as advance:
        for line, sha256 in zip(lines, pool.map(digest, lines), strict=True):
            if sha256 == line["sha256"]:
                same.append(line)
            else:
                changed.append(listing.found[line["path"]])
            advance()
    return same, changed


def _rows(dataset: Dataset, at: int, source: Source, number: int) -> Iterable[Line]:
    """A name for every row of a dataset."""
    kind = "video" if dataset.column(source["visual"]).kind == "video" or "video" in dataset.columns() else "image"
    for shard in range(len(dataset.shards)):
        for row, key in enumerate(dataset.keys(shard)):
            yield {"number": number, "source": at, "key": key, "shard": shard, "row": row, "kind": kind}
            number += 1


def _counts(
    before: dict[tuple[int, str], Line], made: Sequence[Line], kept: Sequence[Line], gone: int
) -> dict[str, int]:
    """Names by what became of them."""
    became = Counter("changed" if identity(line) in before else "new" for line in made)
    there = {identity(line) for line in (*made, *kept)}
    removed = gone + sum(name not in there for name in before)
    return {"new": became["new"], "changed": became["changed"], "removed": removed}
