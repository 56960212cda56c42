"""The tests' own run: when one of its processes dies, it ends, and it is red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.long
def test_a_process_of_tests_that_dies_ends_the_run(tmp_path: Path) -> None:
    """By this project's options and those of launch/test.sh, xdist's own leaving the run to wait for the dead one's
    file for ever.
    """
    (tmp_path / "test_dies.py").write_text("import os\ndef test_dies(): os._exit(1)\n")
    (tmp_path / "test_waits.py").write_text("def test_waits(): pass\n")
    options = [
        "-q",
        "-c",
        str(PROJECT),
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
        "--numprocesses",
        "1",
        "--dist",
        "loadfile",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--no-loadscope-reorder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1 and "crashed while running 'test_dies.py::test_dies'" in run.stdout, (
        run.stdout + run.stderr
    )
