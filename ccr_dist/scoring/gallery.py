"""A gallery: rows in several matrices, usually memory-mapped, in float32, float16 or int8.

A row of float16 or int8 may stand for an exact float32 row in another file. Its distance from that row is kept beside
it, so that a search can tell which rows could be among the best, and reads the exact rows of those alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ccr_dist.errors import DataError, NonFiniteError

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
DTYPES = ("float32", "float16", "int8")
COARSEST = 127  # largest int8 value: -128 is not used, so that a row and its negative are stored alike
READ_ROWS = 4096  # rows at a time where a matrix is read to its end


@dataclass(frozen=True)
class Segment:
    """Rows of a gallery that lie in one matrix.

    Attributes:
        values: (n, D) float32, float16 or int8, in C order; may be a memory map.
        scales: (n,) float32, for int8 alone: a row is its values times its scale.
        exact: (n, D) float32 rows that `values` stand for; None where `values` are the rows themselves.
        errors: (n,) float32, with `exact`: the Euclidean distance of each exact row from its reduced one, or more.
        longest: no row is longer (Euclidean) than this; None: found by reading all rows, once.
    """

    values: NDArray
    scales: Floats | None = None
    exact: Floats | None = None
    errors: Floats | None = None
    longest: float | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype.name not in DTYPES:
            raise DataError(
                f"a gallery needs matrices (n, D) of {', '.join(DTYPES)}, not "
                f"{self.values.dtype.name} of shape {self.values.shape}"
            )
        rows = len(self.values)
        wrong = [
            name
            for name, array, shape in (
                ("scales", self.scales, (rows,)),
                ("errors", self.errors, (rows,)),
                ("exact", self.exact, self.values.shape),
            )
            if array is not None and (array.shape != shape or array.dtype != np.float32)
        ]
        if wrong:
            raise DataError(f"a gallery's {', '.join(wrong)}: expected float32, one a row of {self.values.shape}")
        if (self.scales is None) == (self.values.dtype == np.int8):
            raise DataError("a gallery needs `scales` with int8 values, and with no other")
        if (self.exact is None) != (self.errors is None):
            raise DataError("a gallery needs `exact` and `errors` together: the errors bound what a row can score")

    def __len__(self) -> int:
        return len(self.values)

    def unscaled(self, rows: slice | Numbers, room: Floats | None = None) -> Floats:
        """Values as they are stored, in float32: (m, D).

        Args:
            rows: which.
            room: at least m * D float32 to write them to, for speed; not used where they are float32 already.
        """
        values = self.values[rows]
        if values.dtype == np.float32:
            return values
        wide = (room if room is not None else np.empty(values.size, np.float32))[: values.size].reshape(values.shape)
        if values.dtype == np.float16:
            return _widened(values, wide)
        np.copyto(wide, values)
        return wide

    def reduced(self, rows: slice | Numbers) -> Floats:
        """Rows as they are stored, in float32: (m, D); a view where they are stored so."""
        values = self.unscaled(rows)
        return values if self.scales is None else np.multiply(values, self.scales[rows, None], out=values)

    def rows(self, rows: slice | Numbers) -> Floats:
        """The rows that scores are of, in float32: (m, D)."""
        return self.reduced(rows) if self.exact is None else self.exact[rows]


class Gallery:
    """Rows number 0 to `len(gallery) - 1`, through all segments in their order.

    Attributes:
        width: D.
        starts: (segments + 1,) number of each segment's first row.
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        """
        Raises:
            DataError: no segment, or rows of several widths.
        """
        self.segments = tuple(segments)
        widths = {segment.values.shape[1] for segment in self.segments}
        if len(widths) != 1:
            raise DataError(f"a gallery needs rows of one width, and has {sorted(widths) or 'no matrix at all'}")
        [self.width] = widths
        self.starts = np.cumsum([0, *(len(segment) for segment in self.segments)])
        self._longest: list[float] | None = None

    @classmethod
    def of(cls, *matrices: NDArray) -> Gallery:
        """A gallery of float32 or float16 matrices (n, D)."""
        return cls(Segment(matrix) for matrix in matrices)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, numbers: Numbers) -> Floats:
        """The rows of these numbers in float32: (len(numbers), D). Only they are read."""
        taken = np.empty((len(numbers), self.width), np.float32)
        at = np.searchsorted(self.starts, numbers, side="right") - 1
        for number in np.unique(at):
            here = np.flatnonzero(at == number)
            taken[here] = self.segments[number].rows(numbers[here] - self.starts[number])
        return taken

    def check_lengths(self, rows: Floats, numbers: Numbers) -> None:
        """Checks rows that were read against what their segments say of lengths: bounds on scores hold only then.

        Raises:
            DataError: a row that is longer, or not finite.
        """
        at = np.searchsorted(self.starts, numbers, side="right") - 1
        most = np.array([self.longest(number) for number in range(len(self.segments))])[at]
        wrong = np.flatnonzero(~(row_lengths(rows) <= most * (1 + 1e-6)))
        if len(wrong):
            raise DataError(
                f"row {int(numbers[wrong[0]])} of the gallery is longer than its record says "
                f"({float(row_lengths(rows[wrong[:1]])[0]):.6g}, at most {most[wrong[0]]:.6g}): it was changed since"
            )

    def longest(self, segment: int) -> float:
        """No row of a segment, reduced or exact, is longer than this.

        Raises:
            NonFiniteError: a row that is not finite.
        """
        if self._longest is None:
            self._longest = [self._found(number) for number in range(len(self.segments))]
        return self._longest[segment]

    def _found(self, number: int) -> float:
        segment, longest = self.segments[number], self.segments[number].longest
        if longest is None:
            longest = 0.0
            for start in range(0, len(segment), READ_ROWS):
                rows = slice(start, start + READ_ROWS)
                lengths = row_lengths(segment.reduced(rows))
                finite = np.isfinite(lengths) & np.isfinite(segment.values[rows]).all(axis=1)
                if not finite.all():
                    at = self.starts[number] + start + int(np.flatnonzero(~finite)[0])
                    raise NonFiniteError(f"row {at} of the gallery is not finite: the features or the method diverged")
                longest = max(longest, float(lengths.max()))
        return longest if segment.errors is None else longest + float(segment.errors.max(initial=0))


def _widened(values: NDArray, wide: Floats) -> Floats:
    """float16 to float32, several times as fast as NumPy's conversion: the bits move to their places, and the exponent
    is mended by a product. Of finite values alone: others become 65536 and more.
    """
    if not float(np.multiply(np.float32(2.0**-140), np.float32(2.0**112))):  # this thread flushes denormal numbers
        np.copyto(wide, values)
        return wide
    bits = wide.view(np.int32)
    np.copyto(bits, values.view(np.int16))  # the sign fills the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(~0x70001FFF), out=bits)
    return np.multiply(wide, np.float32(2.0**112), out=wide)


def row_lengths(rows: NDArray) -> NDArray[np.float64]:
    """Euclidean lengths (n,) of rows (n, D), in float64."""
    wide = np.array(rows, np.float64, order="C")
    return np.sqrt(np.multiply(wide, wide, out=wide).sum(axis=1))


def reduce(rows: Floats, dtype: str) -> tuple[NDArray, Floats | None, Floats]:
    """Rows in fewer bytes.

    Args:
        rows: (n, D) float32, finite.
        dtype: "float16" or "int8".

    Returns:
        `values`, `scales` and `errors` of a `Segment` whose `exact` are `rows`. With int8, the largest value of a row
        becomes 127.

    Raises:
        DataError: a row that the dtype does not hold.
    """
    scales = None
    if dtype == "float16":
        with np.errstate(over="ignore"):
            values: NDArray = rows.astype(np.float16)
        if not np.isfinite(values).all():
            raise DataError("a row has a value above 65504, which float16 does not hold: use float32 or int8")
    elif dtype == "int8":
        largest = np.abs(rows).max(axis=1, initial=0)
        scales = np.maximum(largest / COARSEST, np.finfo(np.float32).tiny, dtype=np.float32)
        values = np.clip(np.rint(rows / scales[:, None]), -COARSEST, COARSEST).astype(np.int8)
    else:
        raise DataError(f"vectors are reduced to float16 or int8, not to {dtype}")
    stored = Segment(values, scales).reduced(slice(None))
    distances = row_lengths(rows.astype(np.float64) - stored)
    return values, scales, np.nextafter(distances.astype(np.float32), np.float32(np.inf))
