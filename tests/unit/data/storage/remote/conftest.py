"""An empty store and a dataset for each test."""

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ccr_dist.data.storage import remote, store
from ccr_dist.data.table.dataset import create_column
from tests.jobs import captions
from tests.stores import ROWS


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty store and an empty cache for every test, and no waiting between attempts."""
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    remote.look_again()
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def dataset(tmp_path):
    made = captions(tmp_path / "d", ROWS, {(0, 1): None})
    matrix = create_column(made, "feature.x", kind="matrix", extension="npy", plan={}, provenance={"who": "test"})
    for shard, rows in enumerate(ROWS):
        matrix.commit_matrix(shard, np.arange(rows * 2).reshape(rows, 2) + shard)
        matrix.write_stats(shard, {"seconds": 1})
    return made
