"""Storage that fails, or gives less than was asked for, where a command reads: sources, datasets, weights, configs,
what it has written.

A failed read ends with exit code 5 and a sentence that names the file, or is healed by trying again; the same command
once more gives the same bytes. Short reads change nothing. Some places here; all of them, two hours: pytest -m slow
tests/procs/test_read_faults.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.procs import faults, read_faults_worker

pytestmark = [pytest.mark.procs, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]
DATA = [name for name, scene in read_faults_worker.SCENES.items() if not scene.trains]


def disturbed(folder: Path, most: int, *scenes: str) -> None:
    environment = {
        **faults.preloaded(),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.procs.read_faults_worker", str(folder), str(most), *scenes]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.strip().splitlines()
    assert [line for line in lines if line and not line.startswith("done ")] == []
    assert len(lines) == len(scenes) and all(", 5: " in line for line in lines), done.stdout


def test_reads_of_data_that_fail_change_nothing(tmp_path: Path) -> None:
    disturbed(tmp_path, 2, *DATA)


def test_reads_of_training_that_fail_change_nothing(tmp_path: Path) -> None:
    disturbed(tmp_path, 2, "train")


@pytest.mark.slow
@pytest.mark.parametrize("scene", read_faults_worker.SCENES)
def test_no_read_that_fails_changes_anything(tmp_path: Path, scene: str) -> None:
    disturbed(tmp_path, 0, scene)
