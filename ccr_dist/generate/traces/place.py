"""Where the leases and journals of a column lie: beside its shards, in a folder or in a store."""

from __future__ import annotations

from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.generate.traces.base import WorkPlace
from ccr_dist.generate.traces.files import WorkFiles
from ccr_dist.generate.traces.objects import WorkObjects


def work_place(dataset: DatasetRows, column: str) -> WorkPlace:
    """The place for a column. A dataset that was opened by its URL is worked on in its store."""
    behind = dataset.remote
    if behind is not None and behind.mirror:
        return WorkObjects(f"{behind.url}/{column}")
    return WorkFiles(dataset.root / column)
