"""Training on storage that fails at one of its file operations, from the claim of the run folder to the published
weights.

Killed there, or ended by a full disk, an I/O error or a read-only file system; then the same command once more. Some
places here; all of them, a quarter of an hour and more: pytest -m slow tests/procs/test_train_faults.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.procs import faults

pytestmark = [pytest.mark.procs, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]
PLACES = 3


def scenes(folder: Path, places: str) -> list[dict[str, Any]]:
    environment = {**faults.preloaded(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for arguments in (["prepare"], [places, "0", "1"]):
        command = [sys.executable, "-m", "tests.procs.train_faults_worker", str(folder), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found-0.json").read_text())


def check(found: list[dict[str, Any]]) -> None:
    assert {scene["fault"] for scene in found} == set(faults.ERRORS)
    for scene in found:
        where, killed = (
            f"{scene['fault']} at {scene['at']} of {scene['of']}: {scene['said']}",
            scene["fault"].startswith("kill"),
        )
        # 0: a call whose errors nobody has to heed, such as of a clean-up
        assert scene["code"] in ((-9,) if killed else (5, 0)), where
        assert "Traceback" not in scene["said"], where
        assert scene["code"] != 5 or "error: " in scene["said"].splitlines()[-1], where
        assert scene["again"] == 0, f"{where}; again: {scene['told']}"
        assert scene["same"], f"{where}: other weights"
        assert scene["left"] == scene["files"] == [], where


def test_after_a_fault_the_same_command_gives_the_same_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    found = scenes(tmp_path, str(PLACES))
    check(found)
    assert any(scene["code"] == 5 for scene in found)
    modes = json.loads((tmp_path / "modes-0.json").read_text())
    mask = os.umask(0)
    os.umask(mask)
    readable = {oct(0o666 & ~mask), oct(0o777 & ~mask)}
    assert {path: mode for path, mode in modes.items() if mode not in readable} == {}, (
        "colleagues can read what the umask lets them"
    )
    assert "model.safetensors" in modes and any(path.endswith("weights.safetensors") for path in modes)


@pytest.mark.slow
def test_after_a_fault_anywhere_the_same_command_gives_the_same_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    check(scenes(tmp_path, "all"))
