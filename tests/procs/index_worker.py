"""Started by test_index_procs.py.

index_worker.py INDEX PICTURES LOG PAUSE_S    brings an index up to date with a model that sees colours; each picture
                                              that it encodes is a line in LOG
index_worker.py crashes FOLDER STEP           brings an index up to date again and again, each time killed at another
                                              call that touches the disk; then finishes it
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.search.index import Index, begin
from ccr_dist.search.update import JobSettings
from tests.procs.jobs_worker import kill_at
from tests.searching import Colours, encoded, half, picture, put


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


def holds(place: Path) -> dict[str, Any]:
    """What an index holds: the row of each name, and the names of its files that are not in segments."""
    index = Index.open(place)
    rows = {name: index.rows([int(n)]).tobytes() for n in index.numbers() for name in index.named(int(n)).names}
    files = {path.relative_to(place) for path in place.rglob("*") if path.is_file() and "segments" not in path.parts}
    return {"rows": rows, "files": files, "items": index.items}


def bring(place: Path, pictures: Path) -> None:
    """Brings an index up to date."""
    retriever = Colours()
    begin(place, retriever, dtype="int8").update(retriever, [str(pictures)], settings=JobSettings(progress=False))


def crashes(folder: Path, step: int) -> None:
    """Asserts that after every kill the next start ends with what an undisturbed update makes; prints how many kills
    there were.
    """
    pictures = folder / "p"
    for colour in ("red", "green", "blue"):
        put(pictures / f"{colour}.png", encoded(picture(colour)))
    put(pictures / "broken.jpg", b"no picture")
    bring(folder / "before", pictures)
    (pictures / "red.png").rename(pictures / "rot.png")
    (pictures / "blue.png").unlink()
    put(pictures / "new.png", encoded(half("cyan")))
    shutil.copytree(folder / "before", folder / "undisturbed")
    bring(folder / "undisturbed", pictures)
    expected, number, killed = holds(folder / "undisturbed"), 0, True
    while killed:
        place = folder / f"i{number}"
        shutil.copytree(folder / "before", place)
        if (child := os.fork()) == 0:
            kill_at(number)
            bring(place, pictures)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0
        Index.open(place)  # whatever is there can be searched
        bring(place, pictures)
        found = holds(place)
        assert found == expected, f"call {number}: {found['files'] ^ expected['files'] or found['rows'].keys()}"
        shutil.rmtree(place)
        number += step
    print(number)


if __name__ == "__main__":
    if sys.argv[1] == "crashes":
        crashes(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit(0)
    place, pictures, log, pause_s = sys.argv[1:]
    retriever = Logging(log, float(pause_s))
    settings = JobSettings(batch=4, lease_s=2.0, progress=False)
    done = begin(Path(place), retriever).update(retriever, [pictures], settings=settings)
    print(done.items, done.new, done.encoded)
