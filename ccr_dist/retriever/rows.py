"""Banks of encoded texts or items as rows of numbers, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccr_dist.errors import DataError, NonFiniteError

Layout = Mapping[str, tuple[int, ...]]  # part of a bank -> shape of one text or item


def layout_of(bank: Mapping[str, Tensor], parts: Sequence[str]) -> Layout:
    """The shapes of some parts of a bank of one text or item."""
    return {name: tuple(bank[name].shape[1:]) for name in parts}


def width(layout: Layout) -> int:
    """Numbers in a row."""
    return sum(math.prod(shape) for shape in layout.values())


def to_rows(bank: Mapping[str, Tensor], layout: Layout, *, unit: bool) -> np.ndarray:
    """A bank of n texts or items as rows.

    Args:
        bank: parts by name, (n, ...) each.
        layout: the parts that a row has, in their order.
        unit: a row gets unit length; for banks of one part.

    Returns:
        (n, width) float32.
    """
    parts = [bank[name].reshape(len(bank[name]), -1) for name in layout]
    rows = normalize(parts[0], dim=-1) if unit else torch.cat(parts, dim=1)
    return rows.cpu().numpy()


def to_bank(rows: np.ndarray, layout: Layout, device: torch.device, maker: str) -> dict[str, Tensor]:
    """Rows as the bank that they were made of, in float64 (float32 where the device has none).

    Args:
        rows: (n, width) of `to_rows`.
        layout: as it was there.
        device: of the result.
        maker: who makes such rows, for the message.

    Raises:
        DataError: rows of another shape.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] != width(layout):
        raise DataError(f"rows of shape {rows.shape}; {maker} makes rows of {width(layout)} numbers")
    sizes = [math.prod(shape) for shape in layout.values()]
    exact = torch.float32 if device.type == "mps" else torch.float64
    parts = torch.as_tensor(rows).to(device, exact).split(sizes, dim=1)
    return {name: part.reshape(-1, *layout[name]) for name, part in zip(layout, parts, strict=True)}


def finite(rows: np.ndarray, what: str) -> np.ndarray:
    """The rows. Raises NonFiniteError, naming the first `what`, where one of them is not finite."""
    if not np.isfinite(rows).all():
        at = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise NonFiniteError(f"the row of {what} {at} is not finite: the weights or this input are out of range")
    return rows
