"""The tiny models that tests of methods share; each file has its own, and may change them."""

from __future__ import annotations

import pytest

from tests.small import backbone, front_end
from tests.tiny import tiny_encoder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def frontend(tmp_path_factory):
    return front_end(tmp_path_factory.mktemp("front"))
