"""What the tests of LECCR share."""

from __future__ import annotations

import pytest

from tests.small import backbone, method
from tests.tiny import tiny_encoder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def make(clip, encoder):
    yield lambda **options: method("leccr", clip, **{"text_encoder": encoder, "dim": 12, "heads": 2, **options})
    clip.trainable_parameters("none")
    clip.zero_grad()
