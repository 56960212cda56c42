"""What a score is, to the last bit, and how far a fast product can be from it.

The score of two float32 rows is the sum of their products in float64, in an order that depends on the width alone,
rounded to float32. So equal rows have equal scores wherever they lie, on any number of threads and processes. A matrix
product in float32 (BLAS) is only near it: how near is bounded here, for every order of the sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNIT = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-126  # what a processor that flushes denormal numbers may lose in a term


def scores(left: NDArray, right: NDArray) -> NDArray[np.float32]:
    """Scores of pairs, exact as defined above.

    Args:
        left, right: (n, D) rows in float32 or float64; row i of one with row i of the other.

    Returns:
        (n,) float32.
    """
    wide = np.array(left, np.float64, order="C")  # a copy; the sum then runs along rows
    return np.multiply(wide, right, out=wide).sum(axis=1).astype(np.float32)


def product_error(width: int) -> float:
    """How far a float32 product of two rows can be from their score, for lengths whose product is 1.

    Any order of the sum, with or without fused operations, errs by at most n u / (1 - n u) times the sum of the
    absolute products (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), which is no more than the product
    of the lengths. Three more for rows that were rounded to float32 before, and for the score's own rounding.
    """
    steps = (width + 4) * UNIT
    return steps / (1 - steps) + width * TINY


def double_error(width: int) -> float:
    """How far a float64 product of unit rows can be from the sum that is rounded to their score, in either direction:
    both sums err.
    """
    return 2 * (width + 4) * 2.0**-53
