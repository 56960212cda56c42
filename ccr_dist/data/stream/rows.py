"""Rows as tensors and texts: reads one rank's slots of a global batch and substitutes broken samples.

Belongs here: values of columns with retries, caption choice, substitution. Does not belong here: which rows make up a
batch (`order.py`), processes that read (`loader.py`), files (`column_values.py`).

A batch depends only on (order, k, slots of the rank), not on workers or on what was read before. A row with wrong
content (DataError) is substituted and listed. An OSError is retried and then ends the run as StorageError, so that
failing storage never changes a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import default_collate

from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.text import has_text, texts_of, with_text
from ccr_dist.data.storage.store import retry_io
from ccr_dist.data.stream.batch import Batch, padded
from ccr_dist.data.stream.chance import mix
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.stream.order import GlobalBatch, Order, Slot
from ccr_dist.data.stream.read_ahead import ReadAhead
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError

ATTEMPTS = 8  # substitutes tried for one slot
# roles with one value per source caption
CAPTIONS = ("source", "target", "source_feature", "back", "back_feature", "query_feature")


def read_value(column: Column, shard: int, row: int) -> Any:
    """Like `Column.value`, with retries, and matrices as finite float32 (n, D).

    Raises:
        DataError: The content is wrong.
        StorageError: Reading keeps failing.
    """
    value = retry_io(partial(column.value, shard, row), what=column.where(shard, row))
    if column.kind != "matrix" or value is None:
        return value
    if not np.isfinite(value).all():
        broken = int((~np.isfinite(value)).any(1).sum())
        raise DataError(
            f"{column.where(shard, row)}: {broken} of {len(value)} vectors have values that are NaN or infinite; make"
            " the column again"
        )
    return np.array(value, dtype=np.float32)


def vector_width(column: Column) -> int:
    """The width D of a matrix column."""
    return retry_io(lambda: column.places(0).width, what=column.folder)


def _key(dataset: Dataset, shard: int, row: int) -> str:
    return retry_io(partial(dataset.key, shard, row), what=f"{dataset.place}, keys of shard {shard}")


class TableRows(TorchDataset[Batch]):
    """`rows[k]` is a `Batch` with the given slots of global batch k. Picklable.

    Args:
        order: The order of rows.
        datasets: The datasets, in the order of `order.sources`.
        fields: The columns that are read.
        slots: Slots of this rank.
        last: The batch after the run's last one; nothing is read ahead beyond it.
        transform: RGB picture -> float tensor. With the attribute `random = True` it is called with a 64-bit seed as
            second argument.

    Raises:
        ConfigError: The visual column has pictures and there is no transform.
    """

    def __init__(
        self,
        order: Order,
        datasets: Sequence[Dataset],
        fields: Fields,
        slots: Sequence[int],
        *,
        last: int,
        transform: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.order, self.datasets, self.slots = order, list(datasets), tuple(slots)
        self.transform, self.many = transform, fields.many
        self.columns = {lang: [fields.open(dataset, lang) for dataset in datasets] for lang in order.languages}
        if transform is None and any(
            c["visual"].kind == "image" for opened in self.columns.values() for c in opened if "visual" in c
        ):
            raise ConfigError(
                f"the visual column {fields.visual!r} holds pictures: a transform (picture -> tensor) is needed to read"
                " them"
            )
        self._ahead = ReadAhead(order, self.columns, slots, last=last)

    def __getitem__(self, k: int) -> Batch:
        batch = self.order.batch(k, self.slots)
        self._ahead(batch)
        return self.read(batch)

    def read(self, batch: GlobalBatch) -> Batch:
        """Reads the slots of a batch.

        Raises:
            DataError: No row can replace a broken one.
            StorageError: Reading keeps failing.
        """
        substituted: list[dict[str, Any]] = []
        rows = [self._row_or_stand_in(batch.k, batch.lang, slot, substituted) for slot in batch.slots]
        roles = next(opened for opened in self.columns[batch.lang] if opened)

        def texts(role: str) -> list[str]:
            return [row[role] for row in rows] if role in roles else []

        def tensors(role: str) -> torch.Tensor | None:
            if role not in roles:
                return None
            # stacks; in a worker process directly into shared memory
            return default_collate([row[role] for row in rows]) if rows else self._no_rows(role, roles[role])

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
            query_feature=tensors("query_feature"),
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
                where = {
                    "dataset": f"{dataset.name}/{dataset.split}",
                    "shard": dataset.shards[slot.shard],
                    "row": current.row,
                }
                broken.append(
                    {
                        "k": k,
                        "slot": slot.slot,
                        **where,
                        "item": _key(dataset, slot.shard, current.row),
                        "error": str(error),
                    }
                )
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
        values = {role: read_value(column, slot.shard, slot.row) for role, column in columns.items()}
        for role, value in values.items():
            if value is None:
                raise DataError(
                    f"{columns[role].where(slot.shard, slot.row)}: no value, although the shard's index records one"
                )
        # views to texts
        values |= {role: texts_of(values[role]) for role in ("source", "description") if role in values}
        key = _key(dataset, slot.shard, slot.row)
        label = values.get("group", "")
        row: dict[str, Any] = {"item": key, "group": mix(label if has_text(label) else f"{dataset.digest}/{key}") >> 1}
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
            # Only captions that are blank in no column are drawn: a dropped translation is "".
            texts = {role: values[role] for role in captions if columns[role].kind != "matrix"}
            there = with_text(*texts.values()) if texts else range(number)
            if not there:
                names = ", ".join(columns[role].name for role in texts)
                raise DataError(
                    f"{columns[captions[0]].where(slot.shard, slot.row)}: no caption has text in all of {names}"
                )
            at = there[slot.draw % len(there)]
            for role in captions:
                row[role] = values[role][at] if role in texts else torch.from_numpy(values[role][at])
        if "description" in values:
            said = [text for text in values["description"] if has_text(text)]
            if not said:
                raise DataError(f"{columns['description'].where(slot.shard, slot.row)}: the description is blank")
            row["description"] = " ".join(said)
        return row

    def _visual(self, column: Column, slot: Slot, value: Any) -> torch.Tensor:
        if column.kind == "image":
            return self._transformed(decode_image(value, column.where(slot.shard, slot.row)), slot.draw)
        if self.many:
            return torch.from_numpy(value)
        if len(value) != 1:
            raise DataError(
                f"{column.where(slot.shard, slot.row)}: {len(value)} vectors, but this method takes one per row;"
                " `ccr-dist featurise` with `--pool mean` makes one"
            )
        return torch.from_numpy(value[0])

    def _transformed(self, picture: Any, draw: int) -> torch.Tensor:
        assert self.transform is not None
        if getattr(self.transform, "random", False):
            return self.transform(picture, mix(draw, "augment"))
        return self.transform(picture)

    def _no_rows(self, role: str, column: Column) -> torch.Tensor:
        """An empty tensor (0, ...) with the shape of the rows that other ranks hold."""
        if column.kind == "matrix":
            return torch.empty(0, vector_width(column))
        from PIL import Image

        return self._transformed(Image.new("RGB", (64, 64)), 0)[None][:0]
