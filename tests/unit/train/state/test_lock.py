"""Who may write into a run folder: one process, and of a SLURM job its last attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist.errors import HeldError, SupersededError
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.run_folder import RunFolder


def lock(path: Path, monkeypatch: pytest.MonkeyPatch, attempt: str | None) -> RunFolder:
    if attempt is None:
        monkeypatch.delenv("CCR_ATTEMPT", raising=False)
    else:
        monkeypatch.setenv("CCR_ATTEMPT", attempt)
    folder = RunFolder(path)
    folder.lock()
    return folder


def test_a_later_attempt_of_the_same_job_takes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lock(tmp_path, monkeypatch, "7.9")
    for other in (None, "7.9", "7.8", "8.10", "70.10"):
        with pytest.raises(HeldError, match=r"another process is training this run \(7.9 pid"):
            lock(tmp_path, monkeypatch, other)
    first.require_held()
    second = lock(tmp_path, monkeypatch, "7.10")
    second.require_held()

    state = checkpoint.State({"step": 5})
    writer = checkpoint.Writer(tmp_path / "checkpoints", None, first.require_held)
    writer.write(state, lambda: pytest.fail("it was not committed"))
    with pytest.raises(SupersededError, match="a later attempt trains this run"):
        writer.wait()
    assert checkpoint.steps(tmp_path / "checkpoints") == [] and not list((tmp_path / "checkpoints").iterdir())
    checkpoint.save(tmp_path / "checkpoints", state, None, second.require_held)
    assert checkpoint.steps(tmp_path / "checkpoints") == [5]


def test_a_run_whose_process_ended_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lock(tmp_path, monkeypatch, "7.1")
    first._lock.close()
    second = lock(tmp_path, monkeypatch, None)
    second.require_held()
    with pytest.raises(HeldError, match="- pid"):  # SLURM did not start that one, and knows nothing of it
        lock(tmp_path, monkeypatch, "7.2")
