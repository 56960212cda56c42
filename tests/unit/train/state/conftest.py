"""A run that is over, for tests of what a run folder holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ccr_dist.config import RunConfig
from tests import toy
from tests.short_runs import SMALL, train


@pytest.fixture(scope="module")
def complete(folder: Path) -> RunConfig:
    """A run that is over and measured."""
    return train(toy.dasd(folder, name="complete"), *SMALL, test=True)


@pytest.fixture
def copy(complete: RunConfig, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete.folder, tmp_path / complete.folder.name))
