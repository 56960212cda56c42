"""The instrument itself: what it counts, and that each fault is what it says."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.procs import faults

pytestmark = pytest.mark.procs

SCRIPT = """
import os, sys
from pathlib import Path
root = Path(sys.argv[1])
try:
    with open(root / "a", "wb", buffering=0) as file:   # 1 open
        file.write(b"x")                                # 2 write
        os.fsync(file.fileno())                         # 3 fsync
    os.chdir(root)
    os.link("a", "b")                                   # 4 link
    os.replace("b", "c")                                # 5 rename
    Path("a").unlink()                                  # 6 unlink
    Path("d").mkdir()                                   # 7 mkdir
except OSError as e:
    sys.exit(100 + e.errno)
"""
MAKES = [{"a"}, {"a"}, {"a"}, {"a", "b"}, {"a", "c"}, {"c"}, {"c", "d"}]


def start(root: Path, at: int, error: int, *, lasting: bool = False) -> tuple[int, set[str]]:
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)], env=faults.environment(root, at, error, lasting=lasting)
    )
    return done.returncode, {path.name for path in root.iterdir()}


def test_each_operation_is_counted_and_a_kill_comes_before_or_after_it(tmp_path: Path) -> None:
    assert start(tmp_path / "none", 8, faults.KILL_BEFORE) == (0, MAKES[-1])
    for at, made in enumerate(MAKES, 1):
        assert start(tmp_path / f"before{at}", at, faults.KILL_BEFORE) == (-9, MAKES[at - 2] if at > 1 else set())
        assert start(tmp_path / f"after{at}", at, faults.KILL_AFTER) == (-9, made)


def test_errors_come_from_the_calls_that_can_give_them(tmp_path: Path) -> None:
    assert start(tmp_path / "eio", 3, errno.EIO) == (100 + errno.EIO, {"a"})
    assert start(tmp_path / "unlink", 6, errno.ENOSPC) == (0, MAKES[-1])  # removing works on a full disk
    assert start(tmp_path / "full", 6, errno.ENOSPC, lasting=True) == (100 + errno.ENOSPC, {"c"})
    assert start(tmp_path / "read-only", 6, errno.EROFS) == (100 + errno.EROFS, {"a", "c"})


def test_actions_in_forks(tmp_path: Path) -> None:
    worker = """
import sys
from pathlib import Path
from tests.procs import faults
root = Path(sys.argv[1])
def action():
    print("hello")
    (root / "a").write_text("x")
    return 3 if len(sys.argv) > 2 else None
all = faults.Faults(root)
print(all.count(action), all.run(action, 1, faults.ERRORS["EROFS"]), all.run(action, 2, faults.KILL_BEFORE).code)
"""
    path = os.pathsep.join([str(Path(faults.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", worker, str(tmp_path)],
        env={**faults.preloaded(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    count, rest = done.stdout.split(" ", 1)
    assert count == "2"
    assert "Read-only file system" in rest
    assert "hello" in rest
    assert rest.endswith(" -9\n")


def test_a_sample_has_both_ends() -> None:
    assert faults.sample(3, None) == faults.sample(3, 5) == [1, 2, 3]
    assert faults.sample(100, 4) == [1, 34, 67, 100]
