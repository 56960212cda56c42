"""Started by test_store_jobs.py: store_chaos_worker.py FOLDER KILLS SEED. Prints a JSON of what happened;
AssertionError when anything is wrong.

Four workers make a column of a dataset that is on an S3 server only: leases, journals and commits lie there, and each
worker has a cache folder of its own, as on a machine of its own. At random moments one is killed and replaced, or
stopped past its lease and woken. In the end the column must be byte for byte that of an undisturbed run in a folder,
with nothing beside it in the store. Rounds, each on a fresh dataset, until there were KILLS kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.stores.push import push
from ccr_dist.errors import DataBudgetError
from ccr_dist.generate.jobs.replay import Replay
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.runner import run
from tests.jobs import captions, content
from tests.s3_server import serving, settings

COLUMN, ROWS, WORKERS, LEASE_S = "caption.de.chaos", (5, 7, 1, 6, 9, 4), 4, 1.5


class Slow(Replay):
    """Has a bad item, which is part of what is compared."""

    dawdle_s = 0.0

    def process(self, items: list[Any]) -> list[RowOutcome]:
        outcomes = super().process(items)
        time.sleep(self.dawdle_s)
        return [
            RowOutcome(error="bad") if item == ["bad"] else outcome
            for item, outcome in zip(items, outcomes, strict=True)
        ]


def work(where: object, folder: Path, dawdle_s: float = 0.0) -> int:
    """A forked worker; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["CCR_DIST_CACHE"] = str(folder / f"cache-{os.getpid()}")
        processor = Slow(folder / "texts.jsonl")
        processor.dawdle_s = dawdle_s
        run(Dataset(str(where)), processor, COLUMN, batch=2, threads=1, lease_s=LEASE_S, progress=False)
        code = 0
    except DataBudgetError as e:
        code = e.exit_code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def disturb(url: str, folder: Path, dice: random.Random, kills: int, seen: Counter[str]) -> None:
    workers = {work(url, folder, 0.1) for _ in range(WORKERS)}
    stopped: set[int] = set()
    for _ in range(kills):
        time.sleep(0.3 + dice.random())
        victim = dice.choice(sorted(workers - stopped))
        if not stopped and dice.random() < 0.3:
            os.kill(victim, signal.SIGSTOP)
            stopped.add(victim)
            victim = dice.choice(sorted(workers - stopped))
        os.kill(victim, signal.SIGKILL)
        seen["ended before"] += ended(victim) != -signal.SIGKILL
        seen["kills"] += 1
        workers.remove(victim)
        workers.add(work(url, folder, 0.1))
    if stopped:
        time.sleep(LEASE_S * 1.5)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
        seen["stops"] += 1
    for pid in workers:
        code = ended(pid)
        assert code in (0, DataBudgetError.exit_code), f"a worker ended with {code}"


def one(url: str, folder: Path, expected: dict[str, bytes], dice: random.Random, **more: Any) -> None:
    """A round on a fresh dataset. more: `kills`, `seen` of `disturb`."""
    there = Store(url)
    disturb(url, folder, dice, **more)
    column = Store(f"{url}/{COLUMN}")
    # of shards that are refused because three owners were killed over them: as the message says
    column.remove([name for name in column.listing("jobs/") if ".lease." in name])
    assert ended(work(url, folder)) == 0, "the last run failed"
    names = [name for name in column.listing() if not name.endswith(".stats.json") and name != "column.json"]
    found = dict(zip(names, column.read(names), strict=True))
    wrong = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    assert not wrong, {name: (found.get(name), expected.get(name)) for name in wrong}
    for shard, rows in enumerate(ROWS):
        assert json.loads(there.read([f"{COLUMN}/{shard:06d}.stats.json"])[0])["rows"] == rows


def main(folder: Path, kills: int, seed: int) -> None:
    started, seen = time.monotonic(), Counter[str]()
    dataset, plain = [
        captions(folder / name, ROWS, values={(0, 2): None, (3, 1): ["", "a lemon"]}) for name in ("template", "plain")
    ]
    keys = [key for shard in range(len(ROWS)) for key in dataset.keys(shard)]
    lines = [{"key": key, "value": "bad" if key == "1-3" else f"Zeile {key}" if key != "3-0" else None} for key in keys]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ended(work(plain.root, folder)) == 0
    expected = content(plain.root / COLUMN)
    assert any(name.endswith(".errors.jsonl") for name in expected)
    with serving() as server:
        os.environ.update(settings(server, folder / "cache"))
        import s3fs

        number = 0
        while seen["kills"] < kills:
            bucket = f"s3://round{number}"
            s3fs.S3FileSystem().mkdir(bucket)
            # in a process of its own, since a connection must not be forked
            pid = os.fork()
            if not pid:
                push(dataset.root, f"{bucket}/data")
                os._exit(0)
            assert ended(pid) == 0
            seen["rounds"] += 1
            number += 1
            dice = random.Random(f"{seed}/{number}")
            some = min(kills - seen["kills"], dice.randrange(6, 12))
            one(f"{bucket}/data", folder, expected, dice, kills=some, seen=seen)
    print(json.dumps({"seed": seed, **seen, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
