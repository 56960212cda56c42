"""What the tests of LECCR share."""

from __future__ import annotations

import pytest

from tests.small import method


@pytest.fixture
def make(clip, encoder):
    yield lambda **options: method("leccr", clip, **{"text_encoder": encoder, "dim": 12, "heads": 2, **options})
    clip.trainable_parameters("none")
    clip.zero_grad()
