"""From the order to tensors: reads one rank's slots of each global batch, with worker processes, and stands in for broken samples.

Belongs here: which columns a stage reads, which rows have them all, caption choice, substitution. Does not belong here: which rows make up
a batch (`order.py`), files (`table.py`), tokenising (a method's business), the budget of broken samples (the loop sums `Batch.substituted`
over the ranks).

A batch depends on (order, k, slots of the rank) alone, not on workers or on what was read before. Wrong content (DataError) is substituted
and listed; an OSError is retried and then ends the run as StorageError, so that a hiccup of the storage never changes a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ccr_dist.data.decode import decode_image, texts_of
from ccr_dist.data.order import GlobalBatch, Order, Slot, Source, mix, rank_slots
from ccr_dist.data.store import retry_io
from ccr_dist.data.table import Column, Dataset
from ccr_dist.data.window import require_room
from ccr_dist.errors import ConfigError, DataError

T = TypeVar("T")
ATTEMPTS = 8  # stand-ins tried for one slot
CAPTIONS = ("source", "target", "source_feature", "back", "back_feature")  # have one value for each source caption


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The columns that a stage reads; what is None is not read. A row is eligible in a language when it has all of them.

    visual: pictures, or a matrix with one vector a row; with `many`, any number of vectors (tokens of a picture, frames of a video);
    source: English captions, or descriptions, whose views in order of their names count as the row's captions; targets: captions by
    language, aligned with the source caption by caption, as are backs (back-translations into English, by language); source_feature and
    back_features: matrices with one vector for each such caption; description: views or texts; group: labels, rows with the same label
    count as the same thing (default: each row is its own).
    """

    visual: str | None = None
    many: bool = False
    source: str | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    source_feature: str | None = None
    backs: Mapping[str, str] = field(default_factory=dict)
    back_features: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    group: str | None = None

    def columns(self, lang: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        """What a batch in `lang` reads: role -> (column name, allowed kinds). ConfigError for a language without a target column."""
        for what, columns in (("target", self.targets), ("back-translation", self.backs), ("back-translation feature", self.back_features)):
            if columns and lang not in columns:
                raise ConfigError(f"no {what} column for language {lang!r}; there are columns for {', '.join(sorted(columns))}")
        if self.source_feature and not self.source:
            raise ConfigError(f"source_feature {self.source_feature!r} needs the source column that its vectors were made from")
        roles = {
            "visual": (self.visual, ("image", "matrix")),
            "source": (self.source, ("texts", "views")),
            "target": (self.targets.get(lang), ("texts",)),
            "source_feature": (self.source_feature, ("matrix",)),
            "back": (self.backs.get(lang), ("texts",)),
            "back_feature": (self.back_features.get(lang), ("matrix",)),
            "description": (self.description, ("views", "texts")),
            "group": (self.group, ("label",)),
        }
        used = {role: (name, kinds) for role, (name, kinds) in roles.items() if name}
        if not used:
            raise ConfigError("a stage must read at least one column; none is given")
        return used

    def open(self, dataset: Dataset, lang: str) -> dict[str, Column]:
        """The columns of a dataset by role. DataError when one is missing or incomplete, ConfigError when it is of the wrong kind.

        Empty for a dataset of a mixture that does not have the target column of this language.
        """
        opened: dict[str, Column] = {}
        if lang in self.targets and self.targets[lang] not in dataset.columns():
            return opened
        for role, (name, kinds) in self.columns(lang).items():
            column = dataset.column(name)
            if column.kind not in kinds:
                raise ConfigError(f"{dataset.root}: column {name!r} is of kind {column.kind!r}; as {role} it must be {' or '.join(kinds)}")
            column.require_complete()
            opened[role] = column
        return opened


def sources(datasets: Sequence[Dataset], weights: Sequence[float], fields: Fields, languages: Iterable[str]) -> list[Source]:
    """The mixture for an `Order`: eligible in a language is a row that has every column the stage reads.

    Reads the index of every shard of those columns. ConfigError when a language has no such row anywhere; DataError, StorageError.
    """
    languages, made = list(languages), []
    for lang in languages:
        if not any(fields.open(dataset, lang) for dataset in datasets):
            datasets[0].column(fields.targets[lang])  # no dataset has it: says what there is
    for dataset, weight in zip(datasets, weights, strict=True):
        opened = {lang: list(fields.open(dataset, lang).values()) for lang in languages}
        present = {lang: _present(dataset, columns) for lang, columns in opened.items() if columns}
        made.append(Source(dataset.digest, dataset.shard_rows, weight, present, name=f"{dataset.name}/{dataset.split}"))
    for lang in languages:
        if not any(rows.total for source in made if (rows := source.eligible(lang))):
            filled = [f"{d.root} ({_filled(fields.open(d, lang).values())})" for d in datasets]
            raise ConfigError(f"language {lang!r} has no row with all the columns that are needed: rows filled are {'; '.join(filled)}")
    return made


def _present(dataset: Dataset, columns: Sequence[Column]) -> Iterator[np.ndarray]:
    def of(shard: int) -> np.ndarray:
        return np.logical_and.reduce([column.present(shard) for column in columns])

    for shard, name in enumerate(dataset.shards):
        yield retry_io(partial(of, shard), what=f"{dataset.root}, indexes of shard {name}")


def _filled(columns: Iterable[Column]) -> str:
    return ", ".join(f"{c.name}: {sum(int(c.present(i).sum()) for i in range(len(c.dataset.shards)))} of {c.dataset.rows}" for c in columns)


def content_digests(datasets: Sequence[Dataset], fields: Fields, languages: Iterable[str]) -> dict[str, str]:
    """{"name/split/column": digest of its content} of all that is read: what a resumed run must find again, beside the order's digest."""
    opened = [column for lang in languages for dataset in datasets for column in fields.open(dataset, lang).values()]
    return {f"{column.dataset.name}/{column.dataset.split}/{column.name}": column.digest for column in opened}


class Reader:
    """Values of columns, with retries."""

    def value(self, column: Column, shard: int, row: int) -> Any:
        """Like `Column.value`, matrices as float32 `(n, D)`. DataError for wrong content, StorageError when reading keeps failing."""
        if column.kind != "matrix":
            return retry_io(lambda: column.value(shard, row), what=str(column.path(shard, fetch=False)))
        array, offsets = self.matrix(column, shard)
        return np.array(array[offsets[row] : offsets[row + 1]], dtype=np.float32) if offsets[row + 1] > offsets[row] else None

    def matrix(self, column: Column, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """`Column.matrix`: (mapped array (N, D), offsets (rows + 1,))."""
        return retry_io(lambda: column.matrix(shard), what=str(column.path(shard, fetch=False)))


@dataclass
class Batch:
    """One rank's n rows of global batch k; n may be 0. What the stage does not read is None, or an empty list of texts.

    slots (n,) int64: places in the global batch; items: keys; group (n,) int64: equal for rows that show the same thing; visual
    (n, ...) float32, with several vectors a row (n, T, F) and visual_mask (n, T) bool, True = there; target_text[i], back_text[i] (its
    back-translation), source_feature[i] and back_feature[i] (F,) float32 belong to the same caption as source_text[i]; description: all
    views of a row, joined; substituted: one record for each broken row that was met, with the item that stands in.
    """

    k: int
    lang: str
    slots: torch.Tensor
    items: list[str]
    group: torch.Tensor
    visual: torch.Tensor | None
    source_text: list[str]
    target_text: list[str]
    source_feature: torch.Tensor | None
    description: list[str]
    substituted: list[dict[str, Any]]
    visual_mask: torch.Tensor | None = None
    back_text: list[str] = field(default_factory=list)
    back_feature: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.items)

    def _each_tensor(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            f.name: change(value) for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`."""
        return self._each_tensor(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._each_tensor(torch.Tensor.pin_memory)


def padded(vectors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """n ≥ 1 matrices (T_i, F) to (n, T, F), zeros behind the shorter ones, and mask (n, T) bool, True = there; T = the longest."""
    lengths = torch.tensor([len(rows) for rows in vectors])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True), mask


class TableRows(TorchDataset[Batch]):
    """Map-style access by (part of a) global batch: `rows.__getitems__(order.batch(k, slots)) -> Batch`. Picklable.

    transform: RGB picture -> float tensor; if it has the attribute `random = True` it is called with a 64-bit seed as second argument.
    """

    def __init__(
        self, order: Order, datasets: Sequence[Dataset], fields: Fields, *, transform: Callable[..., torch.Tensor] | None = None
    ) -> None:
        self.order, self.datasets, self.transform, self.many = order, list(datasets), transform, fields.many
        self.columns = {lang: [fields.open(dataset, lang) for dataset in datasets] for lang in order.languages}
        if transform is None and any(c["visual"].kind == "image" for opened in self.columns.values() for c in opened if "visual" in c):
            raise ConfigError(f"the visual column {fields.visual!r} holds pictures: a transform (picture -> tensor) is needed to read them")
        self._reader = Reader()

    def __getitems__(self, batch: GlobalBatch) -> Batch:
        substituted: list[dict[str, Any]] = []
        rows = [self._row_or_stand_in(batch.k, batch.lang, slot, substituted) for slot in batch.slots]
        roles = next(opened for opened in self.columns[batch.lang] if opened)

        def texts(role: str) -> list[str]:
            return [row[role] for row in rows] if role in roles else []

        def tensors(role: str) -> torch.Tensor | None:
            if role not in roles:
                return None
            return torch.stack([row[role] for row in rows]) if rows else self._no_rows(role, roles[role])

        visual: torch.Tensor | None
        mask: torch.Tensor | None = None
        if self.many and "visual" in roles and roles["visual"].kind == "matrix":
            visual, mask = padded([row["visual"] for row in rows] or [self._no_rows("visual", roles["visual"])])
            visual, mask = visual[: len(rows)], mask[: len(rows)]
        else:
            visual = tensors("visual")
        return Batch(
            k=batch.k,
            lang=batch.lang,
            slots=torch.tensor([slot.slot for slot in batch.slots], dtype=torch.int64),
            items=[row["item"] for row in rows],
            group=torch.tensor([row["group"] for row in rows], dtype=torch.int64),
            visual=visual,
            visual_mask=mask,
            source_text=texts("source"),
            target_text=texts("target"),
            source_feature=tensors("source_feature"),
            back_text=texts("back"),
            back_feature=tensors("back_feature"),
            description=texts("description"),
            substituted=substituted,
        )

    def _row_or_stand_in(self, k: int, lang: str, slot: Slot, substituted: list[dict[str, Any]]) -> dict[str, Any]:
        current, broken = slot, []
        for attempt in range(1, ATTEMPTS + 2):
            try:
                row = self._row(lang, current)
            except DataError as error:
                dataset = self.datasets[slot.source]
                where = {"dataset": f"{dataset.name}/{dataset.split}", "shard": dataset.shards[slot.shard], "row": current.row}
                broken.append({"k": k, "slot": slot.slot, **where, "item": dataset.keys(slot.shard)[current.row], "error": str(error)})
                if attempt > ATTEMPTS:
                    raise DataError(
                        f"batch {k}, slot {slot.slot}: {attempt} broken rows in a row; the first: {broken[0]['error']}"
                    ) from error
                current = self.order.substitute(k, slot, attempt)
            else:
                substituted += [{**record, "stand_in": row["item"]} for record in broken]
                return row
        raise AssertionError("unreachable")

    def _row(self, lang: str, slot: Slot) -> dict[str, Any]:
        columns = self.columns[lang][slot.source]
        dataset = self.datasets[slot.source]
        values = {role: self._reader.value(column, slot.shard, slot.row) for role, column in columns.items()}
        for role, value in values.items():
            if value is None:
                raise DataError(f"{columns[role].where(slot.shard, slot.row)}: no value, although the shard's index speaks of one")
        values |= {role: texts_of(values[role]) for role in ("source", "description") if role in values}  # views to texts
        key = dataset.keys(slot.shard)[slot.row]
        row: dict[str, Any] = {"item": key, "group": mix(values.get("group", f"{dataset.digest}/{key}")) >> 1}
        if "visual" in values:
            row["visual"] = self._visual(columns["visual"], slot, values["visual"])
        if captions := [role for role in CAPTIONS if role in values]:
            number = len(values[captions[0]])
            for role in captions:
                if len(values[role]) != number or not number:
                    raise DataError(
                        f"{columns[role].where(slot.shard, slot.row)}: {len(values[role])} values, but "
                        f"{columns[captions[0]].name} has {number}; they must be aligned one by one"
                    )
                chosen = values[role][slot.draw % number]
                row[role] = torch.from_numpy(chosen) if columns[role].kind == "matrix" else self._text(columns[role], slot, chosen)
        if "description" in values:
            row["description"] = self._text(columns["description"], slot, " ".join(values["description"]))
        return row

    def _text(self, column: Column, slot: Slot, text: str) -> str:
        if not text.strip():
            raise DataError(f"{column.where(slot.shard, slot.row)}: the chosen text is blank")
        return text

    def _visual(self, column: Column, slot: Slot, value: Any) -> torch.Tensor:
        if column.kind == "image":
            return self._transformed(decode_image(value, column.where(slot.shard, slot.row)), slot.draw)
        if self.many:
            return torch.from_numpy(value)
        if len(value) != 1:
            raise DataError(
                f"{column.where(slot.shard, slot.row)}: {len(value)} vectors, but this method takes one a row; `ccr-dist featurise` with "
                "`--pool mean` makes one"
            )
        return torch.from_numpy(value[0])

    def _transformed(self, picture: Any, draw: int) -> torch.Tensor:
        assert self.transform is not None
        return self.transform(picture, mix(draw, "augment")) if getattr(self.transform, "random", False) else self.transform(picture)

    def _no_rows(self, role: str, column: Column) -> torch.Tensor:
        """`(0, ...)`, with the shape of the rows that other ranks hold."""
        if column.kind == "matrix":
            return torch.empty(0, self._reader.matrix(column, 0)[0].shape[1])
        from PIL import Image

        return self._transformed(Image.new("RGB", (64, 64)), 0)[None][:0]


class _Steps:
    """The batch sampler: the slots of one rank in the global batches [first, last)."""

    def __init__(self, order: Order, slots: tuple[int, ...], first: int, last: int) -> None:
        self.order, self.slots, self.first, self.last = order, slots, first, last

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[GlobalBatch]:
        return (self.order.batch(k, self.slots) for k in range(self.first, self.last))


def as_it_is(value: T) -> T:
    """Collates nothing: the datasets here return whole batches."""
    return value


def make_loader(
    order: Order,
    datasets: Sequence[Dataset],
    fields: Fields,
    *,
    world: int,
    rank: int,
    first: int,
    last: int,
    workers: int,
    transform: Callable[..., torch.Tensor] | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """Yields one `Batch` for each global batch k in [first, last), with the rows of `rank`, in order, read by `workers` processes.

    `datasets` in the order of the order's sources. While iterating: DataError when no stand-in for a broken row is found,
    StorageError when reading keeps failing. Does not touch torch's global random state. ConfigError at once where the cache of remote
    payloads is too small for the order's windows.
    """
    if len(datasets) != len(order.sources) or any(d.digest != s.digest for d, s in zip(datasets, order.sources, strict=True)):
        raise ConfigError(f"the datasets ({', '.join(d.name for d in datasets)}) are not those of the order, in its order")
    slots = rank_slots(order.batch_size, order.lanes, world, rank)
    rows = TableRows(order, datasets, fields, transform=transform)
    require_room(order, rows.columns, slots)
    return DataLoader(
        rows,
        batch_sampler=_Steps(order, slots, first, last),  # type: ignore[arg-type]
        collate_fn=as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
