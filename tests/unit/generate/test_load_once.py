"""The lock of a model's first load: in a folder of one's own, waited for with a word and a limit."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.generate import load_once
from ccr_dist.generate.load_once import first_load, private_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path


def test_the_folder_is_this_users_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private_folder()
    assert folder == temporary / f"ccr-dist-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert private_folder().stat().st_mode & 0o777 == 0o700
    (temporary / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary / "run"))
    assert private_folder() == temporary / "run" / "ccr-dist"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary / "none"))
    assert private_folder() == folder


@pytest.mark.parametrize("how", ["link", "file", "foreign"])
def test_a_folder_that_somebody_else_made_is_not_used(
    how: str, temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = temporary / f"ccr-dist-{os.getuid()}"
    if how == "link":
        (temporary / "theirs").mkdir()
        folder.symlink_to(temporary / "theirs")
    elif how == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        (temporary / f"ccr-dist-{mine + 1}").mkdir()
    with pytest.raises(PermissionError, match=r"is no folder of this user; somebody else made it. Set TMPDIR"):
        private_folder()
    with first_load("a model"):
        pass
    assert "it is loaded without waiting for others" in capfd.readouterr().err
    assert not list(temporary.glob("*/*"))


@pytest.fixture
def loading() -> Iterator[Any]:
    """Somebody else is inside, and stays there."""
    inside, over = threading.Event(), threading.Event()

    def hang() -> None:
        with first_load("a model"):
            inside.set()
            over.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait()
    yield over
    over.set()
    thread.join()


def test_one_that_hangs_is_named_and_not_waited_for_for_ever(
    loading: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load_once, "_SAID_S", (0, 0))
    with first_load("a model", wait_s=0.5):
        pass
    said = capfd.readouterr().err
    assert f"by pid {os.getpid()} since 20" in said and "at most" in said
    assert "still loads the same model; after" in said and "not waited for any longer. Perhaps it hangs" in said


def test_a_request_to_stop_ends_the_waiting(loading: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with first_load("a model", lambda: True):
        pass
    assert capfd.readouterr().err == ""
