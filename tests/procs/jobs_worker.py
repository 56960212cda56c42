"""Started by test_jobs_kill.py.

jobs_worker.py translate ...     (FILE_LIMIT=bytes, CLOCK_SHIFT=s) the command of `ccr-dist`, where the engine `shout`
                                 can be asked for
jobs_worker.py crashes FOLDER    makes a column again and again, each time killed at the next call that touches the
                                 disk; then resumes
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccr_dist import errors
from ccr_dist.generate.cli import jobs_app
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from tests.jobs import Shout, captions, column_files, content

XX = "caption.xx.shout"
TOUCHING = ("fsync", "link", "unlink", "replace", "pwrite")


def kill_at(number: int) -> None:
    """SIGKILL to this process just before its n-th touching call (even n) or just after it (odd n)."""
    calls = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if calls + 1 == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 2
            return result

        return call

    for name in TOUCHING:
        setattr(os, name, deadly(getattr(os, name)))


def crashes(folder: Path) -> None:
    """Asserts that after every single kill the next start ends with what an undisturbed run makes; prints how many
    kills there were.
    """
    plain = captions(folder / "plain", rows=(3, 2))
    run(plain, Translate(Shout(), "caption.en"), XX, batch=2, progress=False)
    expected = content(plain.root / XX)
    number = 0
    while True:
        dataset = captions(folder / str(number), rows=(3, 2))
        child = os.fork()
        if not child:
            kill_at(number)
            run(dataset, Translate(Shout(), "caption.en"), XX, batch=2, threads=1, progress=False)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        run(dataset, Translate(Shout(), "caption.en"), XX, batch=2, progress=False)
        rubbish = [name for name in column_files(dataset.root / XX) if name.startswith(".tmp-")]
        assert content(dataset.root / XX) == expected, (number, column_files(dataset.root / XX))
        assert not rubbish, (number, rubbish)
        number += 1
    print(number)


if __name__ == "__main__":
    if sys.argv[1] == "crashes":
        crashes(Path(sys.argv[2]))
    else:
        if limit := os.environ.get("FILE_LIMIT"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        if shift := os.environ.get("CLOCK_SHIFT"):
            right = time.time
            time.time = lambda: right() + float(shift)
        with errors.boundary(), contextlib.redirect_stdout(io.StringIO()):
            jobs_app()
