"""One rank's rows of a global batch as tensors and texts, and how they are divided into micro-batches.

Belongs here: what a batch holds, its device, padding of ragged rows. Does not belong here: which rows make it up
(`order.py`), reading them (`loader.py`), tokenising (methods do that).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Batch:
    """One rank's n rows of global batch k; n may be 0. What the stage does not read is None or an empty list.

    Attributes:
        k: Number of the global batch.
        lang: Its language.
        slots: (n,) int64, places in the global batch.
        items: Keys of the rows.
        group: (n,) int64, equal for rows that show the same thing.
        visual: (n, ...) float32; with several vectors per row (n, T, F).
        source_text: A caption of each row.
        target_text: The same caption in `lang`.
        source_feature: (n, F) float32, features of the same caption.
        description: All views of a row, joined.
        substituted: One record for each broken row, with the item that replaces it.
        visual_mask: (n, T) bool, True for real vectors; only with several vectors per row.
        back_text: The back-translation of `target_text`.
        back_feature: (n, F) float32, features of `back_text`.
        query_feature: (n, Q) float32, by the query encoder, of `target_text`, without it of `source_text`.
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
    query_feature: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: torch.Tensor) -> Batch:
        """Some rows of the batch; their `substituted` is empty.

        Args:
            rows: (m,) int64 on the CPU, in the order wanted.
        """
        numbers = rows.tolist()
        taken: dict[str, Any] = {"substituted": []}
        for name in (f.name for f in dataclasses.fields(self) if f.name not in ("k", "lang", "substituted")):
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                taken[name] = value[rows.to(value.device)]
            elif value:
                taken[name] = [value[i] for i in numbers]
        return dataclasses.replace(self, **taken)

    def parts(self, size: int) -> list[tuple[torch.Tensor, Batch]]:
        """Divides the batch into micro-batches. Every row is in exactly one of them.

        Rows of similar length are put together, short ones first, so that there is little padding: they are sorted by
        the number of characters in the target text (without one the source text, then the description), and by
        position where that is equal. `torch.cat(outputs)[torch.cat(indices).argsort()]` restores the order of outputs.

        Args:
            size: Most rows of a micro-batch, at least 1.

        Returns:
            [(indices (m,) int64 on the CPU, micro-batch), ...]. The first one carries `substituted`; a batch without
            rows gives one micro-batch without rows.
        """
        texts = self.target_text or self.source_text or self.description
        order = sorted(range(len(self)), key=lambda i: len(texts[i]) if texts else 0)
        cuts = torch.tensor(order, dtype=torch.int64).split(size)
        made = [(rows, self.take(rows)) for rows in cuts]
        made[0][1].substituted = self.substituted
        return made

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`."""
        return self._each_tensor(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch with its tensors in pinned memory, for copies to a CUDA device."""
        return self._each_tensor(torch.Tensor.pin_memory)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors of the batch."""
        return (value for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor))

    def _each_tensor(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            f.name: change(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)


def padded(vectors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads matrices of different lengths with zeros.

    Args:
        vectors: n ≥ 1 matrices (T_i, F).

    Returns:
        ((n, T, F), mask (n, T) bool, True for real rows), where T is the largest T_i.
    """
    lengths = torch.tensor([len(rows) for rows in vectors])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True), mask
