"""What has to run on a device that is not there, in a process of its own: torch's devices are of the whole process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_device

pytestmark = [pytest.mark.procs, pytest.mark.long]
ROOT = Path(__file__).parents[2]
FILES = ("tests/unit/methods/test_on_a_device.py", "tests/unit/train/step/test_step_on_a_device.py")


def test_nothing_is_left_on_the_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = given | {"FAKE_DEVICE": fake_device.GADGET}
    done = subprocess.run([*command, *FILES], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 30 and "skipped" not in done.stdout, done.stdout[-1000:]
