"""Launch profiles, started for real on CPUs: what runs is what the profile is called. `cpu.yaml` is what
test_training.py starts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ccr_dist import launcher
from ccr_dist.errors import STOPPED

pytestmark = pytest.mark.procs
ROOT = Path(__file__).parents[2]


def start(profile: str, out: Path, *options: str) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/accelerate/{profile}.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    worker = str(Path(__file__).with_name("launch_worker.py"))
    return subprocess.Popen(
        [*launch, *options, worker, str(out)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-4000:]


def check(found: dict[str, Any], strategy: str, *sharded: str) -> None:
    assert (found["strategy"], found["world"], found["backend"]) == (strategy, 2, "gloo")
    assert len({process["pid"] for process in found["processes"]}) == 2
    for rank in found["held"]:
        for what, whole in found["whole"].items():
            share = rank[what] / whole
            assert share <= 1 / 2 + 0.05 if what in sharded else share == 1, (what, share)


@pytest.mark.parametrize(
    ("profile", "strategy"), [pytest.param("zero3_offload", "zero3", marks=pytest.mark.slow), ("fsdp2", "fsdp2")]
)
def test_a_profile_starts_its_strategy(tmp_path: Path, profile: str, strategy: str) -> None:
    finished(start(profile, tmp_path / "found.json", "--num_processes", "2"))
    found = json.loads((tmp_path / "found.json").read_text())
    check(found, strategy, "parameters", "optimizer")
    if profile == "zero3_offload":
        assert found["deepspeed"]["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_two_machines_are_one_world(tmp_path: Path) -> None:
    """Both of them this one: each is started by itself, as on two nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = (
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        port,
    )
    machines = [start("zero2", tmp_path / "found.json", *options, "--machine_rank", str(rank)) for rank in (0, 1)]
    for machine in machines:
        finished(machine)
    check(json.loads((tmp_path / "found.json").read_text()), "zero2", "optimizer")


def test_our_launcher_ends_as_the_process_that_failed_first(tmp_path: Path) -> None:
    """One sentence, no traceback of launchers, and the exit code of the mistake."""
    (tmp_path / "run.yaml").write_text("nmae: x\n")
    words = ["--config_file", "launch/accelerate/cpu.yaml", "--num_processes", "2", "-m", "ccr_dist", "train"]
    done = subprocess.run(
        [sys.executable, "-m", "ccr_dist.launcher", *words, str(tmp_path / "run.yaml")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    first, *_, last = done.stderr.strip().splitlines()
    assert first.startswith(f"error: {tmp_path / 'run.yaml'}") and done.stderr.count("error: ") == 1
    assert last.startswith("launcher: rank 0 ") and last.endswith("ended with exit code 2; its message is above")
    assert "Traceback" not in done.stderr and "ChildFailedError" not in done.stderr and done.stderr.count("\n") < 6


def test_sigterm_to_our_launcher_lets_its_processes_save(tmp_path: Path) -> None:
    """As in a container, where only the first process gets the signal. The profile has a name here, and the working
    folder no file of it.
    """
    worker = str(Path(__file__).with_name("stop_worker.py"))
    words = ["--config_file", "cpu", "--num_processes", "2", worker, str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "ccr_dist.launcher", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.1)
        process.terminate()
        _, told = process.communicate(timeout=300)
    assert process.returncode == STOPPED, told
    assert sorted(path.read_text() for path in tmp_path.glob("ready-*")) == ["heard SIGUSR1"] * 2, told
    assert "Traceback" not in told and "ended with exit code 75" in told


def test_a_signal_is_a_shells_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher.ended("rank 1 (process 7)", -9) == 137
    assert capsys.readouterr().err == "launcher: rank 1 (process 7) was ended by signal 9; its message is above\n"


def test_accelerate_wants_to_know_how_many(tmp_path: Path) -> None:
    process = start("ddp", tmp_path / "found.json")
    _, told = process.communicate(timeout=300)
    assert process.returncode and "--num_processes" in told
