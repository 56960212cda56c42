"""The GPU kit in its small form on the CPU: every part holds; and a part that is not done in time is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu import kit

pytestmark = pytest.mark.procs
RUN = ["bash", str(kit.ROOT / "tests/gpu/run.sh")]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*RUN, *map(str, arguments)], env=variables, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_every_part_holds_on_the_cpu(tmp_path: Path) -> None:
    done = run("--cpu", "--out", tmp_path, "--minutes", 45)  # a busy machine cuts nothing
    found = json.loads((tmp_path / "kit.json").read_text())
    states = {name: part["state"] for name, part in found["parts"].items()}
    assert done.returncode == 0, (states, done.stdout[-4000:], done.stderr[-1000:])
    assert list(states) == kit.names() and set(states.values()) <= {"held", "skipped"}
    assert found["device"] == "cpu" and found["cpu_form"] and found["versions"]["torch"]
    for name, part in found["parts"].items():
        assert part["state"] == "skipped" or part["lines"] or part["counts"]["passed"] > 30, name


def test_a_part_that_is_not_done_in_time_is_cut_and_keeps_what_it_found(tmp_path: Path) -> None:
    done = run("--cpu", "--out", tmp_path, "--minutes", 0.03, "--parts", "losses,planned")
    found = json.loads((tmp_path / "kit.json").read_text())["parts"]
    assert done.returncode == 0 and [part["state"] for part in found.values()] == ["cut", "cut"], done.stdout


def test_processes_of_a_part_end_with_it(tmp_path: Path) -> None:
    child = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert kit.ended([sys.executable, "-c", code], 3.0, cwd=tmp_path) is None
    number = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            os.kill(number, signal.SIG_DFL)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("it is still there")
    assert kit.ended([sys.executable, "-c", "raise SystemExit(3)"], 60.0) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "losses,nothing"], "nothing: expected some of marked, steps"),
        (["--minutes", "0"], "expected more than 0"),
        (["--wheels", "nowhere"], "expected a folder of wheels; tests/gpu/wheels.sh makes one"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: list[str], said: str) -> None:
    done = run("--cpu", *arguments)
    assert done.returncode == 2 and said in done.stderr
