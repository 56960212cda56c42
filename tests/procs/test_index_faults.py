"""Storage that fails at any file operation of `shards index`, `seal` and `export`: exit code 5 and a sentence, nothing
left behind, and the same bytes after the same command again. All operations: `pytest -m slow
tests/procs/test_index_faults.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.procs import faults, index_faults_worker

pytestmark = pytest.mark.procs


@pytest.mark.parametrize(
    "most", [2, pytest.param(0, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["sample", "all"]
)
def test_index_seal_and_export_survive_whatever_the_storage_does(tmp_path: Path, most: int) -> None:
    tests = Path(faults.__file__).parents[1]
    environment = {**faults.preloaded(), "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    command = [sys.executable, index_faults_worker.__file__, tmp_path / "work", str(most)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *wrong, summary = done.stdout.strip().split("\n")
    assert not wrong, done.stdout
    assert summary.startswith(f"done {5 * 7 * most} " if most else "done ")
