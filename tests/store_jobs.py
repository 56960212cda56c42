"""A translation job with the engine `shout` on a dataset in a store (memory://), and its workers, step by step."""

from __future__ import annotations

from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from ccr_dist.data.storage import remote
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.lease import Leases
from ccr_dist.generate.runner import _target
from ccr_dist.generate.shard_work import Bench, Work
from ccr_dist.generate.traces.place import work_place
from tests.jobs import Shout
from tests.running import XX, engine, shout

URL, ROWS = "memory://bucket/toy", (2, 1)


class Killed(BaseException):
    """The process is gone: no call reaches the store any more."""


def dead(*arguments: object) -> None:
    raise Killed


def empty() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    remote.look_again()


def there(column: str = XX) -> dict[str, bytes]:
    """What has to be equal between equal runs of everything in the column's folder in the store, as `content`."""
    place = f"/bucket/toy/{column}/"
    files = {name.removeprefix(place): file.getvalue() for name, file in MemoryFileSystem.store.items()}
    return {
        name: data
        for name, data in files.items()
        if name[0] != "/" and not name.endswith(".stats.json") and name != "column.json"
    }


def made(**more: Any) -> Any:
    return shout(Dataset(URL), engine=engine(fail="0-1 two"), **more)


def bench(lease_s: float = 0.0) -> Bench:
    dataset = Dataset(URL)
    translate = Translate(Shout(), "caption.en")
    target = _target(dataset, translate, XX, {"caption.en": dataset.column("caption.en")})
    return Bench(target, Leases(work_place(dataset, XX), lease_s))


def overtaken(first: Work) -> Work:
    """The work of a worker that finds the first one dead."""
    other = bench(lease_s=0.0)
    work = other.take(first.shard)
    assert work is not None and work.lease.generation == first.lease.generation + 1
    return work


def taken() -> tuple[Bench, Work]:
    one = bench()
    work = one.take(0)
    assert work is not None
    return one, work
