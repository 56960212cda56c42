"""A rank of test_launch.py that works until it is asked to stop: stop_worker.py FOLDER. Leaves the signal it heard."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from ccr_dist import stopfile
from ccr_dist.errors import STOPPED


def main(folder: Path) -> None:
    heard: list[str] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: heard.append(signal.Signals(number).name))
    stopfile.watch()
    mine = folder / f"ready-{os.environ['RANK']}"
    mine.touch()
    while not heard:
        time.sleep(0.05)
    mine.write_text(f"heard {heard[0]}")
    # Launchers end the others with SIGTERM as soon as one has ended.
    while not all(path.read_text() for path in folder.glob("ready-*")):
        time.sleep(0.05)
    sys.exit(STOPPED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
