"""Brings an index up to date: plan, segments, names, state. Whatever dies is simply started again, by anybody.

    a plan is there? -> finish it: files of new segments -> digests -> vectors -> names -> state (`state.py`)
    none?            -> look at the sources, plan what is new, and finish that

What is encoded is decided by content: a file that was renamed, touched or copied is read, but not encoded again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import DataError
from ccr_dist.generate.runner import Budget, run
from ccr_dist.search.encode import NOT_AS_LISTED, Beside, Digests, FileVectors, RowVectors
from ccr_dist.search.names import AGAIN, Line, Names, encoded, identity, places, places_path
from ccr_dist.search.plan import Others, Seen, make_plan
from ccr_dist.search.state import (
    FILE,
    NAMES,
    PLANS,
    ROWS,
    SEGMENTS,
    SHA256,
    Plan,
    Segment,
    Source,
    State,
    create_plan,
    name_of,
    names_of,
    numbered,
    pending,
    read_state,
    tidy,
    write_state,
)

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever

_SHARDS, _LEAST, _MOST = 32, 16, 4096  # of a segment of files: how many, and how many rows in one


@dataclass(frozen=True)
class JobSettings:
    """How the jobs of an update are run; see `generate.runner.run`."""

    batch: int | None = None
    workers: int | None = None
    threads: int = 4
    lease_s: float = 60.0
    silence_s: float = 600.0
    progress: bool = True


@dataclass
class Update:
    """What an update did.

    Attributes:
        new, changed, removed: names.
        encoded: items that were encoded, by this process or by others that helped.
        items: that can be found now.
        names: of files and rows, with those that could not be read.
        bad: files and rows that are not found, with the reason.
        passed: files that are neither pictures nor videos, and links that are not followed, with the reason.
        closed: folders that could not be listed, with the reason.
        stopped: it was asked to stop; the same call goes on.
        ann: how approximate search was made, and its recall (`approximate.Lists`), where it is.
        notes: what people have to know of the items.
    """

    new: int = 0
    changed: int = 0
    removed: int = 0
    encoded: int = 0
    items: int = 0
    names: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    ann: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def update(
    root: Path,
    retriever: Retriever,
    sources: Sequence[Source],
    *,
    frames: int,
    others: Others = "refuse",
    check: bool = False,
    settings: JobSettings = JobSettings(),
    finish: Callable[[Path, Segment], None] = lambda root, segment: None,
) -> Update:
    """Makes an index hold what its sources hold now.

    Args:
        root: the index; index.json is there.
        retriever: encodes what is new.
        sources: that are asked for.
        frames: of a video.
        others: what to do with sources of the index that are not among them.
        check: read every file again, whatever its size and time say.
        settings: of the jobs.
        finish: makes what searches of a segment need besides its rows; must be the same whoever calls it.

    Raises:
        ConfigError, DataError, EngineError, StorageError: as `plan.make_plan` and `generate.runner.run`.
    """
    for segment in read_state(root).segments:
        finish(root, segment)  # where somebody has removed what was damaged
    done = Update()
    seen: Seen | None = None
    while True:
        state = read_state(root)
        tidy(root, state.generation)
        try:
            names = names_of(root, state)
        except DataError:
            if read_state(root).generation != state.generation:  # others have finished an update since
                continue
            raise
        plan, own = pending(root, state.generation), False
        if plan is None:
            plan, seen = make_plan(
                root,
                state,
                names.all() if names else (),
                sources,
                others=others,
                check=check,
                progress=settings.progress,
            )
            if plan is None:
                break
            own = create_plan(root, plan)
            if read_state(root).generation != state.generation:
                continue  # others were quicker; a plan for a state that is past is tidied away
            plan = pending(root, state.generation) or plan
        made = _Segments(root, state, names, plan, retriever, frames, settings)
        try:
            whole = made.complete()
        except DataError as error:
            if own:
                raise
            raise DataError(f"{error}\n{_begun(root, plan)}") from error
        if not whole:
            done.stopped = True
            return done
        done.encoded += _finish(root, state, plan, made, finish)
        check = check and not own
        for what, count in plan.counts.items():
            setattr(done, what, getattr(done, what) + count)
        if own:  # and these are the sources as this process has just seen them
            break
    _describe(done, root, read_state(root), seen)
    return done


def _begun(root: Path, plan: Plan) -> str:
    """What to do about a plan of others that cannot be finished."""
    folders = [root / SEGMENTS / segment.id for segment in plan.made]
    paths = " ".join(map(str, [numbered(root / PLANS, plan.generation, ".jsonl"), *folders]))
    return f"This belongs to an update that was begun before. If it cannot be finished, drop it: rm -r {paths}"


def _describe(done: Update, root: Path, state: State, seen: Seen | None) -> None:
    names = names_of(root, state)
    done.items = state.items
    for line in names.all() if names else ():
        done.names += 1
        if "bad" in line:
            done.bad[name_of(line, state.sources)] = line["bad"]
    if seen:
        done.bad |= seen.bad
        done.names += len(seen.bad)
        done.passed, done.closed = seen.passed, seen.closed


class _Segments:
    """The segments of a plan, on the way to being complete.

    Args:
        root: the index.
        state: that the plan starts from.
        names: of that state.
        plan: the update.
        retriever, frames, settings: as for `update`.
    """

    def __init__(
        self,
        root: Path,
        state: State,
        names: Names | None,
        plan: Plan,
        retriever: Retriever,
        frames: int,
        settings: JobSettings,
    ) -> None:
        self._root, self._state, self._names, self._plan = root, state, names, plan
        self._retriever, self._frames, self._settings = retriever, frames, settings
        self._lines = {line["number"]: line for line in plan.lines if line["number"] >= state.total}
        self.alias: dict[int, int] = {}  # numbers of files whose content has another number
        self.sha256: dict[int, str | None] = {}
        self.missing: dict[int, str | None] = {}  # numbers without a vector -> why; None: there is nothing to encode

    def complete(self) -> bool:
        """Makes all of them, together with others. Returns False when asked to stop."""
        return all(
            self._of_files(segment) if segment.source is None else self._of_dataset(segment)
            for segment in self._plan.made
        )

    def _of_files(self, segment: Segment) -> bool:
        size = min(_MOST, max(_LEAST, -(-segment.rows // _SHARDS)))
        numbers = [
            range(at, min(at + size, segment.first + segment.rows))
            for at in range(segment.first, segment.first + segment.rows, size)
        ]
        keys = [[f"{number:09d}" for number in some] for some in numbers]
        folder = self._root / SEGMENTS / segment.id
        dataset = create_dataset(folder, name=self._root.resolve().name, split="index", keys=keys)
        files = create_column(dataset, FILE, kind="label", extension="json", plan={"listed": segment.id}, provenance={})
        for shard, some in enumerate(numbers):
            files.commit(shard, [files.encode(name_of(self._lines[number], self._plan.sources)) for number in some])
        if not self._run(dataset, Digests(), SHA256):
            return False
        self._find_known(dataset, numbers)
        known = frozenset(f"{number:09d}" for number in self.alias)
        if not self._run(dataset, FileVectors(self._retriever, self._frames, known), ROWS):
            return False
        self._find_missing(dataset.column(ROWS), numbers, dataset.column(SHA256))
        return True

    def _of_dataset(self, segment: Segment) -> bool:
        assert segment.source is not None
        source = self._plan.sources[segment.source]
        other = Dataset(source["path"])
        keys = [list(other.keys(shard)) for shard in range(len(other.shards))]
        folder = self._root / SEGMENTS / segment.id
        create_dataset(folder, name=other.name, split=other.split, keys=keys)
        dataset = Beside(folder, other)
        if not self._run(
            dataset, RowVectors(self._retriever, self._frames, source["visual"], source["description"]), ROWS
        ):
            return False
        ends = np.cumsum([segment.first, *other.shard_rows]).tolist()
        numbers = [range(a, b) for a, b in itertools.pairwise(ends)]
        self._find_missing(dataset.column(ROWS), numbers)
        return True

    def _run(self, dataset: Dataset, processor: Any, column: str) -> bool:
        settings = self._settings
        summary = run(
            dataset,
            processor,
            column,
            batch=settings.batch,
            workers=0 if isinstance(processor, Digests) else settings.workers,  # hashing needs no processes
            threads=settings.threads,
            budget=Budget(fraction=1.0),  # a picture that cannot be read keeps nobody from finding the others
            lease_s=settings.lease_s,
            silence_s=settings.silence_s,
            progress=settings.progress,
            summarise=False,
        )
        return not summary.stopped

    def _find_known(self, dataset: Dataset, numbers: Sequence[range]) -> None:
        """The files whose content has a number already: from before, or the first of several in this segment."""
        known: dict[str, int] = {}
        for line in self._settled():
            if (
                line.get("sha256")
                and AGAIN not in line
                and line.get("readers", self._plan.readers) == self._plan.readers
            ):
                known.setdefault(line["sha256"], line["number"])
        column = dataset.column(SHA256)
        for shard, some in enumerate(numbers):
            for row, number in enumerate(some):
                sha256 = self.sha256[number] = column.value(shard, row)
                if sha256 is not None and known.setdefault(sha256, number) != number:
                    self.alias[number] = known[sha256]

    def _find_missing(self, column: Column, numbers: Sequence[range], before: Column | None = None) -> None:
        for shard, some in enumerate(numbers):
            errors = {**(_errors(before, shard) if before else {}), **_errors(column, shard)}
            for row in column.index(shard)["nulls"]:
                self.missing[some[row]] = errors.get(column.dataset.key(shard, row))

    def lines(self) -> list[Line]:
        """The names as they are when all is made."""
        bad = {line["number"]: line for line in self._settled() if "bad" in line}
        found = []
        for line in self._plan.lines:
            number = line["number"]
            if number >= self._state.total:
                if number in self.sha256:
                    line = line | {"sha256": self.sha256[number]}
                if number in self.alias:
                    line = line | {"number": self.alias[number]}
                    number = line["number"]
                    if number in bad:  # known as something that cannot be read
                        line |= {"bad": bad[number]["bad"], "readers": bad[number]["readers"]}
                if number in self.missing:
                    why = self.missing[number]
                    if why is None:
                        continue  # a row of a dataset without a picture
                    again = {AGAIN: True} if why.startswith(NOT_AS_LISTED) else {}
                    why = why.removeprefix(NOT_AS_LISTED).removeprefix(f"{name_of(line, self._plan.sources)}: ")
                    line = line | {"bad": why, "readers": self._plan.readers, **again}
            found.append(line)
        return sorted(found, key=lambda line: (line["number"], identity(line)))

    def _settled(self) -> list[Line]:
        return list(self._names.all()) if self._names else []


def _errors(column: Column, shard: int) -> dict[str, str]:
    """Key -> why a row is null, of a shard."""
    path = column.path(shard, "errors")
    if not path.exists():
        return {}
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {entry["key"]: entry["error"] for entry in entries}


def _finish(root: Path, state: State, plan: Plan, made: _Segments, finish: Callable[[Path, Segment], None]) -> int:
    """Names and state of a complete plan.

    Returns:
        How many items were encoded for it.
    """
    for segment in plan.made:
        finish(root, segment)
    lines = made.lines()
    segments = (*state.segments, *plan.made)
    total = segments[-1].first + segments[-1].rows if segments else 0
    data = encoded(lines)
    path = numbered(root / NAMES, plan.generation, ".jsonl")
    path.parent.mkdir(exist_ok=True)
    found = places(data, lines, total)
    beside = places_path(path)
    with store.staged(beside) as tmp:
        with tmp.open("wb") as file:
            np.save(store.Plain(file), found, allow_pickle=False)
        tmp.replace(beside)
    store.replace_atomic(path, data)
    sha256 = hashlib.sha256(data).hexdigest()
    write_state(root, State(plan.generation, plan.sources, segments, sha256, int((found >= 0).sum())))
    tidy(root, plan.generation)
    return sum(segment.rows for segment in plan.made) - len(made.missing)
