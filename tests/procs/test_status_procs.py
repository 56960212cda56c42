"""`jobs status` beside a real worker: at work, stopped, woken, killed, done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.generate import status as room
from ccr_dist.generate.status import status
from tests.jobs import captions

pytestmark = pytest.mark.procs
WORKER = """
import sys
from tests.jobs import Shout
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.generate.runner import run
from ccr_dist.generate.jobs.translate import Translate
engine = Shout(options=Shout.Options(dawdle_s=float(sys.argv[2])))
run(Dataset(sys.argv[1]), Translate(engine, "caption.en"), "caption.xx.shout", batch=1, lease_s=0.8, progress=False)
"""


def worker(root: Path, dawdle_s: float) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parents[2])))
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(root), str(dawdle_s)], env={**os.environ, "PYTHONPATH": path}
    )


def until(root: Path, good: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The column's status as soon as it is good."""
    deadline = time.monotonic() + 60
    while True:
        columns = status(root, pause_s=1)["columns"]
        if columns and good(columns[0]):
            return dict(columns[0])
        assert time.monotonic() < deadline, columns
        time.sleep(0.1)


def test_a_worker_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SILENT_S", 0.6)  # the worker below beats every 0.2 s
    root = captions(tmp_path / "d", rows=[20, 20]).root
    process = worker(root, dawdle_s=0.2)
    try:
        found = until(root, lambda column: column["shards"]["working"] and column["rows"]["done"] > 3)
        lease = found["leases"][0]
        assert f":{process.pid}:" in lease["worker"] and lease["shard"] == "000000" and found["rows_per_s"] > 0
        assert found["advice"] == [] and lease["of"] == 20
        process.send_signal(signal.SIGSTOP)
        silent = until(root, lambda column: column["shards"]["silent"])
        assert "000000 (" in silent["advice"][0] and "no beat for long" in silent["advice"][0]
        process.send_signal(signal.SIGCONT)
        until(root, lambda column: column["shards"]["working"] and column["rows"]["done"] > silent["rows"]["done"])
    finally:
        process.kill()
        process.wait()
    dead = until(root, lambda column: column["shards"]["dead"])
    assert "the worker is gone" in dead["advice"][0] and "nobody works on it. To resume: -c" in dead["advice"][-1]
    assert worker(root, dawdle_s=0).wait(60) == 0
    done = until(root, lambda column: True)
    assert (
        done["shards"]["done"] == 2
        and done["rows"] == {"total": 40, "done": 40, "bad": 0}
        and done["leases"] == done["advice"] == []
    )
