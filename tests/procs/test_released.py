"""DASD by the released recipe, where the main optimiser steps a replicated network: no part of it depends on the number
of processes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy
from tests.nearness import close
from tests.procs import forked
from tests.procs.test_training import gradients, losses

pytestmark = pytest.mark.procs


def test_processes_share_the_work_of_one_by_the_released_recipe(tmp_path: Path) -> None:
    # An odd batch: one rank has a row more, and the middle row is paired with itself.
    config = toy.dasd(tmp_path, cla=2, cma=2, runtime={"trace": "gradients"})
    recipe = ["method.discriminator=released", "method.pairing=reversed", "method.adversarial=0.1"]
    for stage in ("cla", "cma"):
        recipe += [
            f"stages.{stage}.{key}" for key in ("batch=9", "optimizer=bert_adam", "schedule=bert", "clip=tensor")
        ]
    forked.trainings(config, *((world, [f"name=world{world}", *recipe]) for world in (1, 2)))
    one, two = (tmp_path / "runs" / f"world{world}-s0" for world in (1, 2))
    assert losses(one).keys() == losses(two).keys() == {1, 2, 3, 4}
    for step, numbers in losses(one).items():
        assert losses(two)[step] == pytest.approx(numbers, rel=2e-4), f"step {step}"
    for step in range(4):
        mine, theirs = gradients(one, step), gradients(two, step)
        assert mine.keys() == theirs.keys() and "aux.discriminator.layers.0.weight" in mine
        close(theirs, mine, tolerance=1e-3, msg=f"step {step}:")
