"""Training by `accelerate launch` with real processes: the same losses and gradients for any world size, and the same
bits after a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ccr_dist.train.record.phases import STEP
from tests import toy
from tests.nearness import close

pytestmark = pytest.mark.procs

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "launch" / "accelerate" / "cpu.yaml"


def command(config: Path, *arguments: str, world: int) -> list[str]:
    """The command of the README: python -m ccr_dist for one process, accelerate launch for more."""
    if world == 1:
        return [sys.executable, "-m", "ccr_dist", "train", str(config), *arguments]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(PROFILE),
        "--num_processes",
        str(world),
    ]
    return [*launch, "-m", "ccr_dist", "train", str(config), "--world", str(world), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def train(config: Path, *arguments: str, world: int, code: int = 0) -> str:
    done = subprocess.run(
        command(config, *arguments, world=world), env=environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == code, done.stderr[-4000:]
    return done.stderr


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: Path) -> dict[int, dict[str, float]]:
    """All logged numbers of each step that do not depend on the clock."""
    numbers = {}
    for line in lines(run / "log.jsonl"):
        if "event" not in line:
            numbers[line["step"]] = {
                k: v for k, v in line.items() if isinstance(v, float) and k not in ("data_s", "step_s", "samples_per_s")
            }
    return numbers


def gradients(run: Path, step: int) -> dict[str, Any]:
    return load_file(run / "trace" / f"gradients-{step:08d}.safetensors")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and its one-process run. Batches of 10: uneven on 3 processes."""
    folder = tmp_path_factory.mktemp("worlds")
    config = toy.dasd(folder, cla=3, cma=3, runtime={"trace": "gradients"}, name="one")
    train(config, "--test", world=1)
    return config, folder / "runs" / "one-s0"


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_share_the_work_of_one(traced: tuple[Path, Path], world: int) -> None:
    config, alone = traced
    train(config, f"name=world{world}", "runtime.profile={first: 2, steps: 1}", "--test", world=world)
    run = alone.parent / f"world{world}-s0"
    start = lines(run / "starts.jsonl")[-1]
    assert (start["strategy"], start["world"], start["backend"]) == ("ddp", world, "gloo")
    assert len({process["pid"] for process in start["processes"]}) == world

    log = lines(run / "log.jsonl")
    for speed in (line["speed"] for line in log if "event" not in line):
        assert speed["longest_s"] >= sum(speed[f"{name}_s"] for name in STEP) * 0.999 and speed["sent_bytes"] > 0
    most = {line["stage"]: line["bytes"] for line in log if line.get("event") == "memory"}
    assert [len(each) for each in most.values()] == [world] * 2 and min(map(min, most.values())) > 2**27

    [held, *_] = (line for line in log if line.get("event") == "held")
    gradients_of_all = held["bytes"][0]["optimizer"] // 2 // 4  # two moments, fp32; what reports compute bytes from
    seen = json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    reduced = [each["args"]["Input Dims"] for each in seen if each["name"] == "gloo:all_reduce"]
    assert reduced.count([[gradients_of_all]]) == 1 and held["regathered"] == 0, reduced

    whole = lines(alone / "trace" / "rank0.jsonl")
    parts = [lines(run / "trace" / f"rank{rank}.jsonl") for rank in range(world)]
    for step, everything in enumerate(whole):
        slots = [slot for part in parts for slot in part[step]["slots"]]
        items = [item for part in parts for item in part[step]["items"]]
        assert len(slots) == len(set(slots)) == 10, "no sample is seen by two ranks"
        assert (slots, items) == (everything["slots"], everything["items"])
        assert {len(part[step]["slots"]) for part in parts} == ({5} if world == 2 else {3, 4})

    one, many = losses(alone), losses(run)
    assert one.keys() == many.keys()
    for step in one:
        assert many[step] == pytest.approx(one[step], rel=2e-4), f"step {step}"
    for step in range(6):
        mine, theirs = gradients(alone, step), gradients(run, step)
        assert mine.keys() == theirs.keys()
        close(theirs, mine, tolerance=1e-3, msg=f"step {step}:")

    measured = [json.loads((folder / "results" / "test.json").read_text()) for folder in (alone, run)]
    assert measured[0]["languages"]["es"]["counts"] == measured[1]["languages"]["es"]["counts"]
    assert measured[1]["languages"]["es"]["metrics"] == pytest.approx(
        measured[0]["languages"]["es"]["metrics"], abs=7
    ), "all ranks count"


def kill_after(config: Path, *arguments: str, run: Path, step: int, every: int, world: int) -> int:
    """Start a run and SIGKILL all its processes once it has logged `step`, off a checkpoint. Returns the last logged
    step.
    """
    process = subprocess.Popen(
        command(config, *arguments, world=world),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            logged = losses(run) if (run / "log.jsonl").exists() else {}
            if logged and max(logged) >= step and max(logged) % every:
                break
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        # the launcher gives its workers sessions of their own
        for worker in lines(run / "starts.jsonl")[-1]["processes"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)
        process.wait()
    return max(losses(run))


# several: also in test_resume_matrix.py
@pytest.mark.parametrize("world", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path, world: int) -> None:
    every, total = 9, 70
    config = toy.dasd(tmp_path, cla=40, cma=30, runtime={"checkpoint_every": every, "trace": "samples"}, name="calm")
    train(config, world=world)
    calm, hurt = tmp_path / "runs" / "calm-s0", tmp_path / "runs" / "hurt-s0"

    died_at = kill_after(config, "name=hurt", run=hurt, step=12, every=every, world=world)
    before = len(lines(hurt / "trace" / "rank0.jsonl"))
    said = train(config, "name=hurt", world=world)
    resumed = lines(hurt / "starts.jsonl")[-1]
    assert resumed["resumed"] and 0 < resumed["step"] <= died_at < total
    assert f"resuming at step {resumed['step']} of {total}" in said
    assert len(lines(hurt / "trace" / "rank0.jsonl")) - before == total - resumed["step"], (
        "exactly the missing steps were run"
    )

    assert losses(hurt) == losses(calm)
    last = f"checkpoints/step-{total:08d}"
    for name in (
        f"{last}/weights.safetensors",
        f"{last}/optimizer.safetensors",
        f"{last}/auxiliary.safetensors",
        "model.safetensors",
    ):
        assert (hurt / name).read_bytes() == (calm / name).read_bytes(), name


@pytest.mark.slow
def test_without_its_checkpoints_a_killed_run_starts_again(tmp_path: Path) -> None:
    """The counterpart of the test above: it is the checkpoints that carry a run."""
    config = toy.dasd(tmp_path, cla=40, cma=30, runtime={"checkpoint_every": 9})
    run = tmp_path / "runs" / "dasd-s0"
    kill_after(config, run=run, step=12, every=9, world=1)
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    train(config, world=1)
    start = lines(run / "starts.jsonl")[-1]
    assert not start["resumed"] and start["step"] == 0


def test_a_stop_file_saves_and_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path, cla=400, cma=30, runtime={"checkpoint_every": 1000})
    run = tmp_path / "runs" / "dasd-s0"
    process = subprocess.Popen(command(config, world=1), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not ((run / "log.jsonl").exists() and losses(run)):
        time.sleep(0.01)
    (run / "stop").touch()
    said = process.communicate(timeout=200)[1]
    (stopped,) = (int(path.name[5:]) for path in (run / "checkpoints").iterdir())
    assert (
        process.returncode == 75
        and 0 < stopped < 400
        and f"stopped by file {run / 'stop'} at step {stopped}, saved" in said
    )
    assert "stopped by file" in train(config, world=1, code=75), "before it builds anything"
    (run / "stop").unlink()
    shorter = (f"stages.cla.steps={stopped + 5}", "stages.cma.steps=5")
    assert f"resuming at step {stopped} of {stopped + 10}" in train(config, *shorter, world=1)


def test_a_launcher_that_starts_fewer_processes_is_an_error(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path)
    done = subprocess.run(
        [*command(config, world=1), "--world", "2"], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2 and "--world 2 was asked for, but 1 process(es) run" in done.stderr
