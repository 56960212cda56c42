"""The device of the tests in this folder: CUDA, without which they are skipped. `KIT_DEVICE=cpu` runs them on the CPU,
as the kit does there: that shows that the tests work, and nothing about a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("KIT_DEVICE", "cuda")
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
ROOT = Path(__file__).parents[2]


def on_cpu(code: str, *arguments: object) -> str:
    """What Python code prints in a process that sees no GPU; its arguments are in `sys.argv`."""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
