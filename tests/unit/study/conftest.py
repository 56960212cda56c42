"""What the tests of studies share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies import make_study


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_study(folder)
    return folder
