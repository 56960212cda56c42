"""A process of a step, as `srun` and launchers start it: python -m ccr_dist.cluster.rank COMMAND ...

It binds to its part of the node's CPUs, runs `ccr-dist COMMAND`, and writes its exit code to CCR_NOTES, because
launchers report every failure as 1. A requested stop is a success to launchers, which would otherwise fill the log. A
signal that arrives before training handles signals (imports take seconds) creates the stop file, which is read later.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from ccr_dist import errors, stopfile


def main() -> None:
    """Run the command of this process's arguments, and exit with its code."""
    stop = os.environ.get(stopfile.VARIABLE)

    def hear(number: int, frame: FrameType | None) -> None:
        if stop:
            Path(stop.partition(os.pathsep)[0]).write_text(signal.Signals(number).name + "\n")
        else:
            sys.exit(errors.STOPPED)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, hear)
    bind(int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        runpy.run_module("ccr_dist", run_name="__main__")
        code = errors.DONE
    except SystemExit as end:
        code = errors.DONE if end.code is None else end.code if isinstance(end.code, int) else errors.CRASH
    except BaseException:
        _leave(errors.CRASH)
        raise
    left = _leave(code)
    sys.exit(errors.DONE if left and code == errors.STOPPED else code)


def bind(local_rank: int, ranks: int) -> None:
    """Bind to this rank's part of the node's CPUs: neighbouring ones, so that a rank stays on one socket.

    Args:
        local_rank: Number of this rank on the node.
        ranks: Number of ranks on the node.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if ranks > 1 and len(cpus) >= ranks:
        share = len(cpus) // ranks
        os.sched_setaffinity(0, cpus[local_rank * share : (local_rank + 1) * share])
        os.environ["CCR_BOUND"] = "1"


def _leave(code: int) -> bool:
    """Record the exit code. Returns whether that worked."""
    notes = os.environ.get("CCR_NOTES")
    if notes is None:
        return False
    path = Path(notes) / f"rank-{os.environ.get('RANK', '0')}.json"
    try:
        path.write_text(json.dumps({"code": code, "host": socket.gethostname(), "time": time.time()}))
        return True
    except OSError as error:
        print(f"{path}: {error}: the exit code {code} will be taken for a crash", file=sys.stderr)
        return False


if __name__ == "__main__":
    main()
