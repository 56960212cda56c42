"""One rank's rows of a global batch as tensors and texts, and its cutting into micro-batches.

Belongs here: what a batch holds, where it lies, padding of ragged rows. Does not belong here: which rows make it up
(`order.py`), reading them (`loader.py`), tokenising (a method's business).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Batch:
    """One rank's n rows of global batch k; n may be 0. What the stage does not read is None, or an empty list of texts.

    slots (n,) int64: places in the global batch; items: keys; group (n,) int64: equal for rows that show the same
    thing; visual (n, ...) float32, with several vectors a row (n, T, F) and visual_mask (n, T) bool, True = there;
    target_text[i], back_text[i] (its back-translation), source_feature[i] and back_feature[i] (F,) float32 belong to
    the same caption as source_text[i]; description: all views of a row, joined; substituted: one record for each broken
    row that was met, with the item that stands in.
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

    def take(self, rows: torch.Tensor) -> Batch:
        """The given rows `(m,)` int64 (a CPU tensor), in that order, of everything that has one value a row;
        `substituted` is empty.
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
        """Micro-batches of at most `size` ≥ 1 rows, and which rows they are: [(indices (m,) int64 on the CPU, rows),
        ...].

        Rows of similar length come together, short ones first, so that little is padded: sorted by characters of the
        target text (else of the source text, else of the description), equal ones by position. Every row is in exactly
        one part; the first one carries `substituted`. A batch without rows gives one part without rows. Outputs are
        brought back in order by `torch.cat(outputs)[torch.cat(indices).argsort()]`.
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
        return self._each_tensor(torch.Tensor.pin_memory)

    def tensors(self) -> Iterator[torch.Tensor]:
        return (value for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor))

    def _each_tensor(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            f.name: change(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)


def padded(vectors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """n ≥ 1 matrices (T_i, F) to (n, T, F), zeros behind the shorter ones, and mask (n, T) bool, True = there; T = the
    longest.
    """
    lengths = torch.tensor([len(rows) for rows in vectors])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True), mask
