"""A store for jobs (memory://), and a dataset in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ccr_dist.data.table.stores.push import push
from tests.jobs import captions, content
from tests.running import XX, engine, shout
from tests.store_jobs import ROWS, URL, empty


@pytest.fixture
def fresh_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    empty()
    yield
    empty()


@pytest.fixture
def plain(fresh_store: None, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run in a folder makes; the same dataset is in the store."""
    dataset = captions(tmp_path / "d", ROWS)
    push(dataset.root, URL)
    shout(dataset, engine=engine(fail="0-1 two"))
    return content(dataset.root / XX)
