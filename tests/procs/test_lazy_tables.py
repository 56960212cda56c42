"""Lazy embedding tables under DDP: ranks exchange rows, and train what one process trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests import toy
from tests.nearness import close
from tests.procs import forked
from tests.procs.test_training import gradients, lines, losses

pytestmark = pytest.mark.procs

TABLE = "net.front_end.table.weight"
LAZY = (
    *(f"stages.{stage}.lazy_tables=true" for stage in ("cla", "cma")),
    *(f"method.frontend.{option}" for option in ("rows=all", "pad=packed")),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs. Batches of 10 by parts of 3 rows: uneven on 3 processes, and gradients add up over the
    parts.
    """
    folder = tmp_path_factory.mktemp("lazy")
    config = toy.dasd(folder, cla=3, cma=3, runtime={"trace": "gradients", "micro_batch": 3})
    resumed = (*LAZY, "name=resumed", "runtime.checkpoint_every=1")
    worlds = [(world, (*LAZY, f"name=world{world}")) for world in (1, 2, 3)]
    forked.trainings(config, *worlds, (2, (*resumed, "stages.cma.steps=1")), (1, resumed))
    return folder / "runs"


def weights(run: Path, kind: str = "weights") -> dict[str, Any]:
    return load_file(max((run / "checkpoints").glob("step-*")) / f"{kind}.safetensors")


@pytest.mark.parametrize("world", [2, 3])
def test_processes_train_what_one_trains(runs: Path, world: int) -> None:
    one, run = runs / "world1-s0", runs / f"world{world}-s0"
    assert lines(run / "starts.jsonl")[-1]["world"] == world
    expected, found = losses(one), losses(run)
    for step in expected:
        assert found[step] == pytest.approx(expected[step], rel=2e-4), f"step {step}"
    for step in range(6):
        mine, theirs = gradients(one, step), gradients(run, step)
        close(theirs, mine, tolerance=1e-3, msg=f"step {step}:")
    table, moved = weights(one)[TABLE], weights(run)[TABLE]
    close(moved, table, tolerance=1e-2)  # steps of Adam: where a gradient is all rounding, its sign is chance
    assert [(row != 0).any() for row in weights(one, "optimizer")[f"{TABLE}/exp_avg"]] == [
        (row != 0).any() for row in weights(run, "optimizer")[f"{TABLE}/exp_avg"]
    ]


def test_resumed_on_another_number_of_processes(runs: Path) -> None:
    """After 4 of 6 steps on 2 processes the run goes on alone; its state is laid out as the dense optimiser's."""
    one, run = runs / "world1-s0", runs / "resumed-s0"
    assert [(start["world"], start["step"]) for start in lines(run / "starts.jsonl")] == [(2, 0), (1, 4)]
    assert losses(run)[6] == pytest.approx(losses(one)[6], rel=1e-3)
    states = weights(one, "optimizer")
    assert {name for name in states if name.startswith(TABLE)} == {
        f"{TABLE}/{key}" for key in ("exp_avg", "exp_avg_sq", "step")
    }
    assert states[f"{TABLE}/exp_avg"].shape == weights(one)[TABLE].shape
