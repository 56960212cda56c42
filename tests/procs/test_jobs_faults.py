"""Every file operation of a job may be its last, or fail: repeating gives the same bytes, and the error is a sentence
and exit code 5.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.procs import faults

pytestmark = pytest.mark.procs


@pytest.mark.parametrize("most", [6, pytest.param(0, marks=pytest.mark.slow)], ids=["sampled", "all"])
def test_translate_survives_faults_of_the_storage(tmp_path: Path, most: int) -> None:
    tests = Path(faults.__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests / "procs"), os.environ.get("PYTHONPATH", str(tests.parent))])
    command = [sys.executable, str(tests / "procs" / "jobs_faults_worker.py"), str(tmp_path), str(most)]
    done = subprocess.run(command, env={**faults.preloaded(), "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
