"""Worlds of processes without a launcher: the libraries are imported once, and every rank is a fork of the process that
imported them.

A start of Python with torch and DeepSpeed costs seconds, a fork nothing. The parent must stay single-threaded: it
imports and forks, no more. What launchers do beside it is in test_training.py.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.methods import registry
from ccr_dist.train.strategies import zero

PRELOADED = (
    "ccr_dist.train.loop",
    "ccr_dist.models.backbones.open_clip.backbone",
    "ccr_dist.models.frontend",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "torch._dynamo",  # optimisers import it at their first step
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed imports it when it meets an optimiser
)


def prepare() -> None:
    """Import what ranks need; in the parent, once."""
    zero.imported()
    for name in registry.names():
        registry.method(name)
    for name in PRELOADED:
        importlib.import_module(name)
    import open_clip

    open_clip.get_tokenizer = functools.cache(open_clip.get_tokenizer)  # every run of a rank would build it anew
    gc.freeze()  # DeepSpeed collects garbage at every start of ZeRO-3; all those modules are none


def world(size: int, function: Callable[..., None], *arguments: Any, timeout: float = 400) -> None:
    """`function(*arguments)` on `size` ranks, as torchrun would start them; one alone as without a launcher.
    RuntimeError when one fails; the others are ended then.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    variables = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {} for rank in range(size)]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(each, function, arguments)) for each in variables]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + timeout
    while (
        any(rank.is_alive() for rank in ranks)
        and time.monotonic() < deadline
        and not any(rank.exitcode for rank in ranks)
    ):
        time.sleep(0.05)
    time.sleep(0.5 if any(rank.exitcode for rank in ranks) else 0)  # for what the others have to say of it
    for rank in ranks:
        rank.kill()
        rank.join()
    codes = [rank.exitcode for rank in ranks]
    if any(codes):
        raise RuntimeError(f"{function.__name__} with {size} processes: exit codes {codes}")


def trainings(config: Path, *runs: tuple[int, Sequence[str]], command: str = "train") -> None:
    """`ccr-dist COMMAND CONFIG ARGUMENTS` for each (world, arguments), one after the other. AssertionError when one
    fails.
    """
    words = [sys.executable, "-m", "tests.procs.forked", command, str(config), json.dumps(runs)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        words, cwd=Path(__file__).parents[2], env=variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _rank(variables: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= variables
    function(*arguments)


def _command(words: Sequence[str]) -> None:
    from ccr_dist import cli

    sys.argv = ["ccr-dist", *words]
    cli.main()


if __name__ == "__main__":
    prepare()
    _, *command, runs = sys.argv
    for size, words in json.loads(runs):
        world(size, _command, [*command, *words, "--world", str(size)])
