"""Lazy embedding tables under DDP: ranks exchange rows, and train what one process trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests import toy
from tests.procs.test_training import gradients, lines, losses, train

pytestmark = pytest.mark.procs

TABLE = "net.front_end.table.weight"
LAZY = (
    *(f"stages.{stage}.lazy_tables=true" for stage in ("cla", "cma")),
    *(f"method.frontend.{option}" for option in ("rows=all", "pad=packed")),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and its one-process run. Batches of 10 by parts of 3 rows: uneven on 3 processes, and gradients add up over the parts."""
    folder = tmp_path_factory.mktemp("lazy")
    config = toy.dasd(folder, cla=3, cma=3, runtime={"trace": "gradients", "micro_batch": 3}, name="one")
    train(config, *LAZY, world=1)
    return config, folder / "runs" / "one-s0"


def weights(run: Path, kind: str = "weights") -> dict[str, Any]:
    return load_file(max((run / "checkpoints").glob("step-*")) / f"{kind}.safetensors")


@pytest.mark.parametrize("world", [2, 3])
def test_processes_train_what_one_trains(alone: tuple[Path, Path], world: int) -> None:
    config, one = alone
    train(config, *LAZY, f"name=world{world}", world=world)
    run = one.parent / f"world{world}-s0"
    assert lines(run / "starts.jsonl")[-1]["world"] == world
    expected, found = losses(one), losses(run)
    for step in expected:
        assert found[step] == pytest.approx(expected[step], rel=2e-4), f"step {step}"
    for step in range(6):
        mine, theirs = gradients(one, step), gradients(run, step)
        for name, value in mine.items():
            assert abs(theirs[name] - value).max() <= 1e-3 * abs(value).max() + 1e-9, f"step {step}: {name}"
    table, moved = weights(one)[TABLE], weights(run)[TABLE]
    assert abs(table - moved).max() < 1e-3
    assert [(row != 0).any() for row in weights(one, "optimizer")[f"{TABLE}/exp_avg"]] == [
        (row != 0).any() for row in weights(run, "optimizer")[f"{TABLE}/exp_avg"]
    ]


def test_resumed_on_another_number_of_processes(alone: tuple[Path, Path]) -> None:
    """After 4 of 6 steps on 2 processes the run goes on alone; its state is laid out as the dense optimiser's."""
    config, one = alone
    short = (*LAZY, "name=resumed", "runtime.checkpoint_every=1")
    train(config, *short, "stages.cma.steps=1", world=2)
    train(config, *short, world=1)
    expected, found = losses(one), losses(one.parent / "resumed-s0")
    assert found[6] == pytest.approx(expected[6], rel=1e-3)
    states = weights(one, "optimizer")
    assert {name for name in states if name.startswith(TABLE)} == {f"{TABLE}/{key}" for key in ("exp_avg", "exp_avg_sq", "step")}
    assert states[f"{TABLE}/exp_avg"].shape == weights(one)[TABLE].shape
