"""What the tests of the loader share: a table, and what is loaded from it by one process."""

from __future__ import annotations

import pytest

from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.table.dataset import Dataset
from tests import loading


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return loading.build(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture
def table(root):
    forget_files()
    return Dataset.open(root)


@pytest.fixture(scope="module")
def undisturbed(root):
    return loading.load(Dataset.open(root))
