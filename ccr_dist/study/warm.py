"""Starts `ccr-dist` in processes with torch and transformers already imported: forks of one process that only imports
them.

Starting Python with both takes about eight seconds, a fifth of a short run. Everything else is as if the command were
typed: its own process, its exit code, its output in a file.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

# What a run imports late; names that are not installed are skipped.
PRELOADED = [
    "ccr_dist.cli",
    "ccr_dist.train.commands",
    "ccr_dist.models.frontend",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "torch._dynamo",  # optimisers import it at their first step
    "torch.utils.tensorboard",
]


class Warm:
    """Starts commands.

    Args:
        threads: CPU threads of each command, set by environment variables. Libraries read these when they are imported,
            so the first `Warm` of this process decides for all.
    """

    def __init__(self, threads: int) -> None:
        wanted = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(PRELOADED)
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def start(self, arguments: Sequence[str], log: Path) -> BaseProcess:
        """Start `ccr-dist ARGUMENTS`; its output is appended to `log`."""
        process = self._context.Process(target=_command, args=(list(arguments), str(log)))
        process.start()
        return process


def _command(arguments: list[str], log: str) -> None:
    with Path(log).open("ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)
    sys.argv = ["ccr-dist", *arguments]
    runpy.run_module("ccr_dist", run_name="__main__")
