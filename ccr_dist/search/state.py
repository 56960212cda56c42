"""What an index is, and its states: the files of the folder INDEX that are not segments.

    INDEX/index.json              what never changes: the model, the type of the vectors that are searched, frames
    INDEX/states/000003.json      sources, segments and names; the highest number counts
    INDEX/names/000003.jsonl      which file or row each vector belongs to (`names.py`), and its places
    INDEX/plans/000004.jsonl      an update that is not finished: whoever comes next finishes it
    INDEX/segments/000000/        a dataset: the vectors that one update made, in the column `feature.rows`

Every one of them is created once. Of several processes that plan an update at the same time one creates the plan, and
the others help with it; what follows from a plan is the same whoever makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.data.storage.checked import read_checked
from ccr_dist.errors import DataError
from ccr_dist.search.names import Line, Names, decoded, encoded, identity

FORMAT = 1
INDEX, STATES, NAMES, PLANS, SEGMENTS, TARS = "index.json", "states", "names", "plans", "segments", "tars"
FILE, SHA256, ROWS = "label.file", "label.sha256", "feature.rows"  # the columns of a segment
Source = dict[str, Any]  # see `sources.py`


@dataclass(frozen=True)
class Segment:
    """The vectors that one update made.

    Attributes:
        id: its folder in `segments`.
        first: number of its first item.
        rows: how many numbers it has.
        source: the dataset whose rows it has; None: files.
    """

    id: str
    first: int
    rows: int
    source: int | None = None


@dataclass(frozen=True)
class State:
    """One state of an index.

    Attributes:
        generation: counts the states; 0: empty.
        sources: folders and datasets.
        segments: in the order of their numbers.
        names: sha256 of the names.
        items: how many can be found.
    """

    generation: int = 0
    sources: tuple[Source, ...] = ()
    segments: tuple[Segment, ...] = ()
    names: str = ""
    items: int = 0

    @property
    def total(self) -> int:
        """How many numbers there are, with those that are no longer found."""
        return self.segments[-1].first + self.segments[-1].rows if self.segments else 0


@dataclass(frozen=True)
class Plan:
    """An update of an index: all names that it will have, and the segments that are to be made for it.

    Attributes:
        generation: of the state that it leads to.
        sources: of that state.
        made: the new segments.
        readers: what reads the files (`media_files.readers`), in the eyes of whoever planned.
        counts: names by what became of them (new, changed, removed), for people.
        lines: the names; those whose number is in a new segment are not settled.
    """

    generation: int
    sources: tuple[Source, ...]
    made: tuple[Segment, ...]
    readers: str
    counts: dict[str, int] = field(default_factory=dict)
    lines: Sequence[Line] = ()


def numbered(folder: Path, generation: int, suffix: str) -> Path:
    """The file of a generation in one of the folders."""
    return folder / f"{generation:06d}{suffix}"


def is_index(root: Path) -> bool:
    """Whether a folder is an index."""
    return (root / INDEX).is_file()


def read_identity(root: Path) -> dict[str, Any]:
    """index.json.

    Raises:
        DataError: the folder is no index, or the file is damaged or of another format.
    """
    path = root / INDEX
    try:
        identity, sealed = read_checked(path, error=DataError)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{root}: not an index (no {INDEX}); `ccr-dist index MODEL PICTURES --out {root}` makes one"
        ) from None
    if not sealed or identity.get("format") != FORMAT:
        raise DataError(f"{path}: format {identity.get('format')!r}; expected {FORMAT}: make a new index")
    return identity


def newest(root: Path) -> int:
    """The generation of the newest state; 0 where there is none. It is not read."""
    return max((int(path.stem) for path in (root / STATES).glob("[0-9]" * 6 + ".json")), default=0)


def read_state(root: Path) -> State:
    """The newest state. Raises DataError where it is damaged."""
    generation = newest(root)
    if not generation:
        return State()
    path = numbered(root / STATES, generation, ".json")
    values, sealed = read_checked(path, error=DataError)
    try:
        segments = tuple(Segment(**segment) for segment in values.pop("segments"))
        state = State(segments=segments, sources=tuple(values.pop("sources")), **values)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); make a new index") from None
    if not sealed or state.generation != int(path.stem):
        raise DataError(f"{path}: damaged; make a new index")
    return state


def names_of(root: Path, state: State) -> Names | None:
    """The names of a state; None of an empty one. Raises DataError where they are damaged, or the state is past."""
    if not state.generation:
        return None
    return Names(numbered(root / NAMES, state.generation, ".jsonl"), state.names, state.total)


def name_of(line: Line, sources: Sequence[Source]) -> str:
    """Where a name is: the path of a file, or dataset and key."""
    return f"{sources[line['source']]['path']}/{identity(line)[1]}"


def write_state(root: Path, state: State) -> None:
    """Makes a state the newest one; nothing where another process has done so."""
    folder = root / STATES
    folder.mkdir(exist_ok=True)
    store.create_once(numbered(folder, state.generation, ".json"), store.pretty_json(store.with_digest(asdict(state))))


def create_plan(root: Path, plan: Plan) -> bool:
    """Writes a plan. Returns False where there is one of this generation already."""
    folder = root / PLANS
    folder.mkdir(exist_ok=True)
    body = encoded(plan.lines)
    head = {**asdict(replace(plan, lines=())), "lines": hashlib.sha256(body).hexdigest()}
    first = store.canonical_json(store.with_digest(head)) + b"\n"
    return store.create_once(numbered(folder, plan.generation, ".jsonl"), first + body)


def pending(root: Path, generation: int) -> Plan | None:
    """The plan that leads from a state to the next one, if there is one. Raises DataError where it is damaged."""
    path = numbered(root / PLANS, generation + 1, ".jsonl")
    try:
        first, _, body = store.read_bytes(path).partition(b"\n")
    except FileNotFoundError:
        return None
    wrong = DataError(f"{path}: damaged; remove it and run `ccr-dist index` again")
    try:
        head = json.loads(first)
        if store.with_digest({k: v for k, v in head.items() if k != "digest"})["digest"] != head.pop("digest"):
            raise wrong
        if hashlib.sha256(body).hexdigest() != head.pop("lines"):
            raise wrong
        made = tuple(Segment(**segment) for segment in head.pop("made"))
        return Plan(made=made, sources=tuple(head.pop("sources")), lines=list(decoded(body, path)), **head)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise wrong from None


def tidy(root: Path, generation: int) -> None:
    """Removes what belongs to states before this one."""
    for folder in (STATES, NAMES, PLANS):
        store.tidy(root / folder)
        for path in (root / folder).glob("[0-9]" * 6 + ".*"):
            if int(path.name[:6]) < generation + (folder == PLANS):
                path.unlink(missing_ok=True)
