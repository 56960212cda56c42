"""Started by test_index_procs.py: `index_worker.py INDEX PICTURES LOG PAUSE_S` brings an index up to date with a model
that sees colours; each picture that it encodes is a line in LOG.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.search.index import begin
from ccr_dist.search.update import JobSettings
from tests.searching import Colours


class Logging(Colours):
    """Takes PAUSE_S for a batch."""

    def __init__(self, log: str, pause_s: float) -> None:
        super().__init__()
        self._log, self._pause_s = log, pause_s

    def encode_pixels(self, pixels: np.ndarray, *rest: Any, **more: Any) -> np.ndarray:
        rows = super().encode_pixels(pixels, *rest, **more)
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"".join(row.tobytes().hex().encode() + b"\n" for row in rows))
        os.close(fd)
        time.sleep(self._pause_s)
        return rows


if __name__ == "__main__":
    place, pictures, log, pause_s = sys.argv[1:]
    retriever = Logging(log, float(pause_s))
    settings = JobSettings(batch=4, lease_s=2.0, progress=False)
    done = begin(Path(place), retriever).update(retriever, [pictures], settings=settings)
    print(done.items, done.new, done.encoded)
