"""What tests of single processes share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A run listens to signals; give them back."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus and the tiny models, shared by the tests of a file that do not change them."""
    from tests import toy

    folder = tmp_path_factory.mktemp("toy")
    toy.dasd(folder)
    return folder
