"""How texts lie in the rows that a text tower's blocks are computed on: one a row with padding behind it, or several
one after another.

Blocks treat positions alike but for attention, so packed texts give what padded ones do as long as none sees another.
What is said of whole texts (characteristics, pooling) is computed one a row in either case.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROW = 64  # positions: enough to leave next to nothing empty; attention grows with it


class Rows:
    """n texts of at most T positions, one a row."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        """(n, T) bool, the positions that may be seen; or (R, L, L) bool, which one (second) sees which (third)."""

    def lay(self, x: Tensor) -> Tensor:
        """Vectors of texts (n, T, …) to rows (R, L, …)."""
        return x

    def texts(self, h: Tensor) -> Tensor:
        """Rows (R, L, …) to texts (n, T, …); what is behind a text's end is of no meaning."""
        return h

    def times(self, h: Tensor, matrices: Tensor) -> Tensor:
        """Each position of h (R, L, v) times its own text's matrix, (n, v, w): (R, L, w)."""
        return self.lay(self.texts(h) @ matrices)


class Packing(Rows):
    """Several texts a row, none cut; at most `ROW` positions, or those of the longest text."""

    def __init__(self, lengths: Sequence[int], limit: int = ROW) -> None:
        """Of n ≥ 1 texts, their numbers of positions, from 1 to `limit`: a row has no more either."""
        rows = pack(lengths, min(limit, max(ROW, *lengths)))
        width = max(sum(lengths[text] for text in row) for row in rows)
        owner = torch.full((len(rows), width), -1)  # positions that stay empty see each other
        first = torch.zeros(len(lengths), dtype=torch.int64)
        for number, row in enumerate(rows):
            at = 0
            for text in row:
                owner[number, at : at + lengths[text]] = text
                first[text], at = number * width + at, at + lengths[text]
        self.mask = owner[:, :, None] == owner[:, None, :]
        size = torch.tensor(lengths)
        # (n, T) in the R * L positions
        self._place = first[:, None] + torch.arange(max(lengths)).minimum(size[:, None] - 1)
        within = torch.arange(owner.numel()).view(owner.shape) - first[owner]
        self._source = torch.where(owner >= 0, owner * max(lengths) + within, 0)  # (R, L) in the n * T

    def to(self, device: torch.device | str) -> Packing:
        moved = object.__new__(Packing)
        for name, tensor in vars(self).items():
            setattr(moved, name, tensor.to(device))
        return moved

    def lay(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[self._source]

    def texts(self, h: Tensor) -> Tensor:
        return h.flatten(0, 1)[self._place]


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Texts to rows of `room` positions, by best fit, the longest first: [[number of a text, …], …]."""
    rows: list[list[int]] = []
    left: list[list[int]] = [[] for _ in range(room + 1)]  # rows by the positions that they have left
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[text]
        free = next((free for free in range(length, room + 1) if left[free]), None)
        if free is None:
            free, number = room, len(rows)
            rows.append([])
        else:
            number = left[free].pop()
        rows[number].append(text)
        left[free - length].append(number)
    return rows
