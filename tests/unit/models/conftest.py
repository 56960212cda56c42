"""What the tests of models share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny import tiny_encoder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_encoder(tmp_path_factory.mktemp("st") / "bert"))


@pytest.fixture
def encoder(bert: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(bert, tmp_path / "st"))
