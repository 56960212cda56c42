"""Launch profiles, started for real on CPUs: what runs is what the profile is called. `cpu.yaml` is what
test_training.py starts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def test_accelerate_wants_to_know_how_many(tmp_path: Path) -> None:
    process = start("ddp", tmp_path / "found.json")
    _, told = process.communicate(timeout=300)
    assert process.returncode and "--num_processes" in told
