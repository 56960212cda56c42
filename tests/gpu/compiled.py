"""`runtime.compile`: the losses of compiled frozen blocks are those of eager ones, and how long a step takes.

On the CPU the graph is taken and run as it is (`eager`): what the compiler makes of it there takes a minute.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import statistics
import sysconfig
import tempfile
from pathlib import Path
from unittest import mock

import torch

from tests import toy
from tests.gpu.part import Found, run


def compiled(found: Found) -> None:
    if not found.cpu and (missing := missing_tools()):
        found.skip(f"torch.compile needs {missing}, which this machine lacks")
        return
    from ccr_dist.methods.run_config import load_config
    from ccr_dist.train import commands

    count = 2 if found.cpu else 8
    plain = functools.partial(torch.compile, backend="eager")
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in {"eager": [], "compiled": ["runtime.compile=true"]}.items():
            path = toy.dasd(Path(folder), name=name, cla=count, cma=count)
            half = [] if found.cpu else ["runtime.precision=bf16"]
            config = load_config(path, ["method.frontend.pad=longest", *half, *overrides])
            with mock.patch.object(torch, "compile", plain if found.cpu else torch.compile):
                assert commands.train([config], test=False, world=None) == 0
            lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
            steps = [line for line in lines if "event" not in line]
            losses[name] = [line["loss"] for line in steps]
            found.line(run=name, **times([line["step_s"] for line in steps[:count]]), losses=losses[name])
    for number, (eager, other) in enumerate(zip(losses["eager"], losses["compiled"], strict=True)):
        found.near(f"compiled: the loss of step {number}", other, eager, within=1e-3 if found.cpu else 3e-2)


def times(seconds: list[float]) -> dict[str, float]:
    """The longest of a stage's steps, and the median of its later half. Which step compiles differs: the first one runs
    eagerly where its FLOPs are counted, and more than one may compile.
    """
    return {"longest_step_s": max(seconds), "step_s": statistics.median(seconds[len(seconds) // 2 :])}


def missing_tools() -> str | None:
    """What Triton needs to start its kernels, and is not here: it compiles a small module of Python in C."""
    if not any(map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang"))):
        return "a C compiler (CC, gcc or clang)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"Python's headers ({header})"


if __name__ == "__main__":
    run(compiled)
