"""What lies in an object store (memory://), in datasets and in the cache; a store that fails."""

from pathlib import Path

import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

from ccr_dist.data.table.dataset import Dataset

URL = "memory://bucket/toy"


ROWS = (3, 2, 4)


def names() -> set[str]:
    """What is in the store below the URL."""
    return {name.removeprefix("/bucket/toy/") for name in MemoryFileSystem.store}


def values(dataset: Dataset) -> dict:
    return {
        (name, shard, row): np.asarray(value).tolist() if (value := column.value(shard, row)) is not None else None
        for name in dataset.columns()
        for column in [dataset.column(name)]
        for shard in range(len(dataset.shards))
        for row in range(dataset.shard_rows[shard])
    }


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def payloads(tmp_path) -> dict[str, int]:
    return {
        path.name: path.stat().st_size for path in (tmp_path / "cache/remote/payloads").iterdir() if path.name[0] != "."
    }


def refuse_writes(monkeypatch, name: str, after: int = 0) -> None:
    """From the `after`-th call on, a method of the store's client fails."""
    calls, real = [], getattr(MemoryFileSystem, name)

    def failing(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError("the connection is gone")
        return real(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, name, failing)
