"""What a study on this machine refuses before anything runs, and what it would run. Nothing is trained here."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import DONE, ConfigError, DataError
from ccr_dist.scaling import record, runner
from tests import scaling_runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaling_runs.base(tmp_path_factory.mktemp("scaling"))


def test_what_is_kept_failed_or_to_do(base: Path, tmp_path: Path) -> None:
    plan = scaling_runs.study(base, tmp_path)  # one, two, one, two processes
    said: list[str] = []
    assert runner.run(plan, dry_run=True, say=said.append) == DONE
    assert "4 trainings, 0 have ended, 4 to do" in said[0] and not Path(plan.study.out).exists()
    assert [line.partition(":")[0] for line in said[1:]] == [trial.name for trial in plan.trials]
    assert "ccr_dist.launcher" in said[1] and "--num_processes 2" in said[2] and "--world 2" in said[2]

    scaling_runs.leave(plan.trials[0], 0.5)
    record.write(plan.trials[0], command=(), exit=0, seconds=1.0)
    record.write(plan.trials[1], command=(), exit=10, seconds=1.0)
    for again, left in ((False, plan.trials[2:3]), (True, [plan.trials[1], *plan.trials[2:]])):
        said.clear()
        runner.run(plan, again=again, dry_run=True, say=said.append)
        assert [line.partition(":")[0] for line in said[1:]] == [trial.name for trial in left], again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gpus": True, "grid": {"world": [512], "batch": [512]}},
            "gpus: true with 512 processes",
        ),
        ({"grid": {"world": [1], "batch": [12], "strategy": ["zero3_offload"]}}, r"zero3_offload: .*deepspeed"),
    ],
)
def test_what_this_machine_cannot_do_is_said_first(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    with pytest.raises(ConfigError, match=rf"study\.yaml: .*{message}"):
        runner.run(scaling_runs.study(base, tmp_path, **changes), say=print)
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_said_first(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="caption"):
        runner.run(scaling_runs.study(base, tmp_path, overrides=["data.source=caption.none"]), say=print)
    assert not (tmp_path / "out").exists()


def test_a_study_is_worked_on_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LEFT_S", 0.0)
    with runner._held(tmp_path):
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} works on this study"), runner._held(tmp_path):
            pass
        (tmp_path / "lock").write_text("")  # of a study that was killed: who still holds it was left behind
        with pytest.raises(ConfigError, match="left behind does not stop"), runner._held(tmp_path):
            pass
    assert (tmp_path / "stop").exists(), "it was asked to"
    with runner._held(tmp_path) as descriptor:
        assert not (tmp_path / "stop").exists()
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def test_the_second_signal_interrupts_at_once() -> None:
    with runner._Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.heard == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
