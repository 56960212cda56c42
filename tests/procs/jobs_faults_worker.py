"""Runs `translate` once for every file operation of it that is to fail, in forks. Started with `faults.preloaded()` by
test_jobs_faults.py.

jobs_faults_worker.py FOLDER MOST     MOST: failing operations a kind of error; 0: all. Prints what went wrong, a line
each.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import ccr_dist.cli
import ccr_dist.generate.runner  # noqa: F401
from ccr_dist.cli import main
from tests.jobs import captions, content, shouting
from tests.procs import faults

COLUMN = "caption.xx.shout"
LASTING = ("ENOSPC", "EROFS")


def translate(root: Path) -> int | None:
    """A row is bad, so that a file of errors is written, too."""
    sys.argv = ["ccr-dist", *shouting(root, "--set", "fail=0-1", "--batch", "2", "--quiet")]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0


def wrong(root: Path, fresh: Path, expected: dict[str, bytes], most: int | None) -> Iterator[str]:
    harness = faults.Faults(root)
    restore(root, fresh)
    undisturbed = harness.run(lambda: translate(root))
    total = len(undisturbed.calls)
    for name, error in faults.ERRORS.items():
        for at in faults.sample(total, most):
            restore(root, fresh)
            outcome = harness.run(lambda: translate(root), at, error, lasting=name in LASTING)
            where = f"{name} at {at} of {total} ({undisturbed.calls[at - 1]})"
            left = [path.name for path in root.rglob(".tmp-*")]
            # a heartbeat more or less depends on the clock
            if error < 0 and outcome.code != -9 and len(outcome.calls) >= at:
                yield f"{where}: exit code {outcome.code}, expected a kill: {outcome.said}"
            elif error > 0 and (outcome.code not in (0, 5) or "Traceback" in outcome.said):
                yield f"{where}: exit code {outcome.code}: {outcome.said}"
            elif outcome.code == 5 and (outcome.said.count("error: ") != 1 or str(root) not in outcome.said):
                yield f"{where}: no sentence that names a place: {outcome.said}"
            elif outcome.code == 5 and name not in LASTING and left:
                yield f"{where}: left behind: {left}"
            again = harness.run(lambda: translate(root))
            if again.code:
                yield f"{where}: repeating ends with {again.code}: {again.said}"
            elif (found := content(root / COLUMN)) != expected:
                names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
                yield f"{where}: after repeating these are others: {names}"


def restore(root: Path, fresh: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(fresh, root)


if __name__ == "__main__":
    folder, most = Path(sys.argv[1]), int(sys.argv[2]) or None
    os.environ["TMPDIR"] = str(folder)
    captions(folder / "fresh", rows=(3, 2, 1))
    restore(folder / "plain", folder / "fresh")
    assert translate(folder / "plain") == 0
    problems = list(wrong(folder / "d", folder / "fresh", content(folder / "plain" / COLUMN), most))
    print("\n".join(problems))
    sys.exit(bool(problems))
