"""Repairs problems that `verify` found, as far as the dataset itself allows; otherwise turns a damaged shard into a
missing one, which its command makes again.

    index       made again from its payload (whose digest is the recorded one)
    record      made again from its payload, if the payload's sha256 can be confirmed; otherwise the shard is set aside
    payload     set aside (kept as `<name>.damaged`): `shards build`, the job, or `shards index` makes the shard again
    keys        taken from the index of a column
    seal        removed
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from ccr_dist.data.storage import store
from ccr_dist.data.table import seal
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.data.table.keys import keys_digest
from ccr_dist.data.table.verify import Problem
from ccr_dist.errors import ConfigError, DataError, let_pass

_ORDER = ("seal", "payload", "record", "index", "keys")


def repair(problems: Iterable[Problem]) -> Iterator[str]:
    """Repairs each problem as far as possible.

    Args:
        problems: Problems found by `verify`.

    Yields:
        A sentence about each thing done.

    Raises:
        ConfigError: The dataset was opened by URL. OSErrors pass.
    """
    done: set[tuple[str, int]] = set()
    for problem in sorted((p for p in problems if p.damage), key=lambda p: _ORDER.index(p.damage)):
        dataset, column, shard = problem.dataset, problem.column, problem.shard
        assert dataset is not None
        if dataset.remote and dataset.remote.mirror:
            url = dataset.place
            raise ConfigError(
                f"{url}: repair the dataset in the folder where it was made; then `ccr-dist shards push FOLDER {url}`"
                " adds what is missing here"
            )
        if problem.damage == "keys":
            yield _keys(dataset, shard)
        elif column is not None and problem.damage == "seal":
            if (column.folder, -1) not in done:
                seal.remove(column.folder)
                yield f"{column.folder / seal.META}: removed; `ccr-dist shards seal` makes it again"
            done.add((str(column.folder), -1))
        elif column is not None and (str(column.folder), shard) not in done:
            done.add((str(column.folder), shard))
            yield _shard(column, shard, problem.damage)


def _shard(column: Column, shard: int, damage: str) -> str:
    record = column.path(shard, "record")
    if damage != "payload" and column.confirmed(shard):
        seal.remove(column.folder)
        for path in (record, column.path(shard, "index", fetch=False)):
            path.unlink(missing_ok=True)
        column.unsealed().commit_payload(shard)
        return f"{record}: made again, with its index, from the payload, which matches the recorded sha256"
    kept = column.set_aside(shard)
    where = f" (kept as {kept.name})" if kept else ""
    return f"{record}: the shard is set aside{where}; to make it again: {column.remedy}"


def _keys(dataset: DatasetRows, shard: int) -> str:
    path = dataset.root / "keys" / f"{dataset.shards[shard]}.txt"
    for name in dataset.columns():
        index = dataset.root / name / f"{dataset.shards[shard]}.index.json"
        try:
            keys = json.loads(store.read_bytes(index))["keys"]
            if keys_digest(keys) == dataset.shard_keys[shard]:
                store.replace_atomic(path, "".join(f"{key}\n" for key in keys).encode())
                return f"{path}: written again, with the keys of {index}"
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            let_pass(error, index)
            continue
    return f"{path}: no column has these keys; build or index the dataset again"
