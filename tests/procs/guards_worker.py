"""`ccr-dist` with something wrong on one rank: `python guards_worker.py WRONG train CONFIG …`, as the launcher starts
it.

hang: rank 1 sleeps in its fourth forward. nan: rank 1's loss share is not a number in steps 2 and 3. stop: rank 1 gets
a signal during its first validation.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from ccr_dist import cli
from ccr_dist.methods.dasd.method import Dasd
from ccr_dist.train import loop

RANK = int(os.environ.get("RANK", "0"))


def hang() -> None:
    outputs = Dasd.outputs

    def slow(self: Any, stage: str, batch: Any) -> Any:
        if batch.k == 3:
            ctypes.CDLL(None).sleep(3600)
        return outputs(self, stage, batch)

    Dasd.outputs = slow


def nan() -> None:
    losses = Dasd.losses

    def poisoned(self: Any, stage: str, batch: Any, outputs: Any, ctx: Any) -> Any:
        found = losses(self, stage, batch, outputs, ctx)
        return {name: term * float("nan") for name, term in found.items()} if ctx.step in (2, 3) else found

    Dasd.losses = poisoned


def stop() -> None:
    validate = loop.validate

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return validate(*args, **kwargs)

    loop.validate = interrupted


if RANK == 1:
    {"hang": hang, "nan": nan, "stop": stop}[sys.argv[1]]()
del sys.argv[1]
cli.main()
