"""Workers that stop, hang, die over one row or have a wrong clock, as real processes: others go on, and nothing is
mixed or lost.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataBudgetError, HangError
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from tests.jobs import Shout, captions, column_files, content, end, state, until, worker

pytestmark = pytest.mark.procs

XX = "caption.xx.shout"
ROWS = (6, 5, 7)


def start(dataset: Dataset, *arguments: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    options = ["--batch", "2", *arguments, *([f"--set=log={log}"] if log else [])]
    return worker(dataset.root, *options, **environment)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    dataset = captions(tmp_path_factory.mktemp("undisturbed") / "d", ROWS)
    run(dataset, Translate(Shout(), "caption.en"), XX, progress=False)
    return content(dataset.root / XX)


def test_stopped_past_its_lease_and_woken_it_commits_nothing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset, log = captions(tmp_path / "d", ROWS), tmp_path / "log"
    stale = start(dataset, "--lease-s", "1", "--set", "at=0-4 one", "--set", "what=STOP")
    until(lambda: state(stale.pid) == "T", stale)
    said = end(start(dataset, "--lease-s", "1", log=log))
    assert "4 rows resumed from journals" in said and "3 of 3 shards done" in said
    before = {name: (dataset.root / XX / name).stat() for name in column_files(dataset.root / XX)}
    stale.send_signal(signal.SIGCONT)
    said = end(stale)
    assert "shards lost to another process" in said and "0 of 3 shards done" in said
    after = {name: (dataset.root / XX / name).stat() for name in column_files(dataset.root / XX)}
    assert {name: (s.st_ino, s.st_mtime_ns) for name, s in after.items()} == {
        name: (s.st_ino, s.st_mtime_ns) for name, s in before.items()
    }
    assert content(dataset.root / XX) == undisturbed
    assert not {"0-0", "0-1", "0-2", "0-3"} & {line.split()[0] for line in log.read_text().splitlines()}, (
        "kept rows were made again"
    )


def test_a_wrong_clock_takes_nothing_from_the_living(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset, log = captions(tmp_path / "d", ROWS), tmp_path / "log"
    shifts = ("-86400", "0", "86400")
    processes = [
        start(dataset, "--lease-s", "10", "--set=dawdle_s=0.4", log=log, CLOCK_SHIFT=shift) for shift in shifts
    ]
    said = [end(process) for process in processes]
    assert not [text for text in said if "lost to another" in text]
    made = Counter(line.split()[0] for line in log.read_text().splitlines() if line.endswith("one"))
    assert made == Counter(key for shard in range(3) for key in dataset.keys(shard))
    assert content(dataset.root / XX) == undisturbed


def test_a_silent_engine_ends_the_process_with_its_stacks(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset = captions(tmp_path / "d", ROWS)
    said = end(start(dataset, "--silence-s", "2", "--set=at=1-2 one", "--set=what=hang"), HangError.exit_code)
    assert re.search(
        r"HangError: \S+caption\.xx\.shout: the engine works on 2 items \(000001: '1-2', 000001: '1-3'\)", said
    )
    assert "in translate" in said and "nothing has come back for 2 s" in said  # the stack of the thread that hangs
    said = end(start(dataset))
    assert "2 rows resumed from journals" in said
    assert content(dataset.root / XX) == undisturbed


def test_a_row_that_kills_its_workers_is_found_and_left_out(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset = captions(tmp_path / "d", ROWS)
    poison = ("--set=at=1-3 one", "--set=what=KILL")
    # The first makes two rows, which is progress, and holds another shard, which is not to be blamed; two more die over
    # the shard, and three over the row alone.
    for _ in range(6):
        end(start(dataset, *poison), -signal.SIGKILL)
    said = end(start(dataset, "--bad-items", "0", "--bad-fraction", "0", *poison), DataBudgetError.exit_code)
    assert "1-3: 3 workers died one after the other while it alone was in work" in said
    assert "1 bad items" in end(start(dataset, *poison))  # it is not tried again
    (line,) = (dataset.root / XX / "000001.errors.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "1-3"
    found = content(dataset.root / XX)
    same = [name for name in undisturbed if not name.startswith("000001")]
    assert [found[name] for name in same] == [undisturbed[name] for name in same]
    column = dataset.column(XX)
    assert [column.value(1, row) is None for row in range(5)] == [False, False, False, True, False]


def test_rows_over_which_workers_die_by_chance_are_not_blamed(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset = captions(tmp_path / "d", ROWS)
    # from the fourth on one row alone is in work: 1-3 once, 1-4 twice
    for row in ("1-3", "1-3", "1-3", "1-3", "1-4", "1-4"):
        end(start(dataset, f"--set=at={row} one", "--set=what=KILL"), -signal.SIGKILL)
    assert "bad" not in end(start(dataset))
    assert content(dataset.root / XX) == undisturbed


def test_a_shard_whose_workers_die_before_a_row_can_be_blamed_is_refused(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    dataset = captions(tmp_path / "d", ROWS)
    for _ in range(2):
        end(start(dataset, "--set=at=0-0 one", "--set=what=KILL"), -signal.SIGKILL)
    lease = dataset.root / XX / "000000.lease.2"
    text = lease.read_text()
    lease.write_text(text.replace('"stuck": 1', '"stuck": 2'))
    said = end(start(dataset), DataBudgetError.exit_code)
    assert re.search(
        r"000000: 3 workers died over this shard[\s\S]*missing: 0-0, 0-1, [\s\S]*remove \S+000000\.lease\.2", said
    )
    assert dataset.column(XX).missing() == [0]
    lease.unlink()
    end(start(dataset))
    assert content(dataset.root / XX) == undisturbed


def test_processes_that_prepare_give_the_same_and_die_with_their_parent(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    dataset, log = captions(tmp_path / "d", ROWS), tmp_path / "log"
    process = start(dataset, "--workers", "2", "--set=at=1-2 one", "--set=what=hang", log=log)
    until(lambda: log.exists() and "1-2 one" in log.read_text())
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.kill()
    process.communicate()
    until(lambda: all(state(pid) in ("gone", "Z") for pid in children))
    end(start(dataset, "--workers", "1"))
    assert content(dataset.root / XX) == undisturbed
    stats = json.loads(dataset.column(XX).path(2, "stats").read_text())
    assert {
        "began",
        "ended",
        "seconds",
        "rows",
        "resumed",
        "nulls",
        "bad",
        "counts",
        "host",
        "worker",
        "waited_s",
    } == stats.keys()
