"""What the tests of published configs share."""

from __future__ import annotations

import pytest

from tests import small, tiny
from tests.published_configs import Tiny


@pytest.fixture(scope="module")
def tiny_towers(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    return (
        small.backbone(folder / "clip", "clip"),
        tiny.tiny_encoder(folder / "encoder"),
        tiny.tiny_frontend_folder(folder / "mbert"),
    )
