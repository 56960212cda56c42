"""`ccr-dist doctor`: facts, and each kind of problem with what to do about it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.train.watch import doctor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without problems, whatever this one is; nothing is imported in processes."""
    monkeypatch.setattr(doctor, "_import_error", lambda name: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * 2**30, 0, 100 * 2**30))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(socket, "gethostbyname", lambda host: "10.0.0.1")
    monkeypatch.setattr(doctor, "_read", lambda path: "")
    monkeypatch.setattr(doctor, "_said", lambda *command: "")
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def problems(out: Path) -> list[str]:
    return [each["problem"] for each in doctor.examine(out).problems]


def test_a_sound_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not to be shown")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert doctor.command(tmp_path / "not" / "there", as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == [] and found["facts"]["disk"]["folder"] == str(tmp_path)
    assert found["facts"]["environment"]["OMP_NUM_THREADS"] == "3" and "HF_TOKEN" not in found["facts"]["environment"]
    assert found["facts"]["software"]["torch"] and found["facts"]["cpu"]["usable cores"] == len(os.sched_getaffinity(0))
    assert list(tmp_path.iterdir()) == []
    assert doctor.command(tmp_path, as_json=False) == 0 and "nothing stands in the way" in capsys.readouterr().out


def test_a_file_where_runs_are_to_lie(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("x")
    for out, name in (("file", "file"), ("file/runs", "file"), ("nowhere", "nowhere")):
        assert problems(tmp_path / out) == [f"{tmp_path / name} is no folder, and runs are to lie in {tmp_path / out}"]


def test_problems_end_with_code_2_and_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_import_error", lambda name: "no such symbol" if name == "open_clip" else None)
    assert doctor.command(tmp_path, as_json=False) == 2
    said = capsys.readouterr().out
    assert (
        "problem: open_clip is installed, but cannot be imported: no such symbol\n  -> see docs/start/install.md"
        in said
    )


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ((shutil, "disk_usage"), lambda path: Usage(2**26, 0, 2**26), "/dev/shm has 0.06 GiB"),
        ((shutil, "disk_usage"), lambda path: Usage(100 * 2**30, 0, 3 * 2**30), "3.0 GiB are free"),
        ((resource, "getrlimit"), lambda kind: (1024, 1024), "1024 files may be open"),
        ((socket, "gethostbyname"), None, "has no address"),
        ((doctor, "_said"), lambda *command: "580.1", "torch .* does not see it"),
        (
            (doctor, "_read"),
            lambda path: "50000 100000" if path.endswith("cpu.max") else "",
            "the container may use 0.5 of",
        ),
        ((os, "link"), None, "writing, locking or linking a file fails: refused"),
    ],
)
def test_each_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: tuple[Any, str], value: Any, message: str
) -> None:
    import torch

    def refuse(*args: Any) -> None:
        raise OSError("refused")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(*attribute, value or refuse)
    assert re.search(message, "\n".join(problems(tmp_path)))


def test_interfaces_that_are_named_but_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^docker,lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert problems(tmp_path) == []
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=ib7")
    (found,) = problems(tmp_path)
    assert "NCCL_SOCKET_IFNAME names ib7" in found
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(socket, "gethostbyname", lambda host: "127.0.1.1")
    (found,) = problems(tmp_path)
    assert "127.0.1.1 here: other machines cannot reach that" in found
