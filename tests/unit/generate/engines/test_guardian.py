"""The guardian ends the processes of an engine whose owner was killed, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLEEP = "import time; time.sleep(60)"


ENGINE = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"


OWNER = f"""
import subprocess, sys, time
from ccr_dist.generate.engines.guardian import Guardian
guardian = Guardian()
engine = subprocess.Popen([sys.executable, "-c", {ENGINE!r}], stdout=subprocess.PIPE, text=True)
print(engine.pid, engine.stdout.readline().strip(), flush=True)
if sys.argv[1] != "loading":
    guardian.loaded()
if sys.argv[1] == "close":
    guardian.close()
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc (Linux)")
@pytest.mark.parametrize("moment", ["loading", "loaded", "close"])
def test_a_guardian_ends_what_the_killed_left_and_nothing_else(moment: str) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", SLEEP])
    owner = subprocess.Popen([sys.executable, "-c", OWNER, moment], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    time.sleep(1)  # it looks four times a second
    try:
        assert len(pids) == 2 and all(map(alive, pids))
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        deadline = time.monotonic() + 120  # a loaded machine is slow, not wrong
        while moment != "close" and any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [alive(pid) for pid in pids] == [moment == "close"] * 2
        assert bystander.poll() is None
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        bystander.kill()
        bystander.wait()
