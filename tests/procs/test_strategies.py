"""Every strategy, in worlds of 1 to 4 gloo processes: gradients and steps of one process, together or not at all, and
really sharded.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.procs, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NAMES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
WORLDS = (1, 2, 3, 4)
PLACES = [*((world, name) for world in WORLDS for name in NAMES), (2, "zero3 offload")]
EVERY = pytest.mark.parametrize(("world", "name"), PLACES)
SEVERAL = pytest.mark.parametrize(("world", "name"), [place for place in PLACES if place[0] > 1])
Named = dict[str, list[float]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Any]]]:
    """By world size and strategy; one start for all."""
    folder = tmp_path_factory.mktemp("strategies")
    done = subprocess.run(
        [sys.executable, "-m", "tests.procs.strategies_worker", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {world: json.loads((folder / f"{world}.json").read_text()) for world in WORLDS}


def tolerance(name: str) -> float:
    return 1e-5 if name.startswith("zero") else 1e-12


def distances(many: Named, alone: Named) -> dict[str, float]:
    """Largest difference in each tensor, relative to its largest value; where that is nothing but rounding, to that of
    all tensors.
    """
    assert many.keys() == alone.keys() and len(many) > 10
    largest = {name: max(map(abs, values)) for name, values in alone.items()}
    floor = 1e-6 * max(largest.values())
    return {
        name: max(abs(a - b) for a, b in zip(values, alone[name], strict=True))
        / (largest[name] if largest[name] > floor else floor / 1e-6)
        for name, values in many.items()
    }


def wrong(many: Named, alone: Named, allowed: float) -> dict[str, float]:
    return {name: distance for name, distance in distances(many, alone).items() if distance > allowed}


@EVERY
@pytest.mark.parametrize("batch", ["10", "2"])
def test_losses_and_gradients_are_those_of_one_process(
    found: dict[int, Any], world: int, name: str, batch: str
) -> None:
    alone, many = found[1]["ddp"]["right"][batch], found[world][name]["right"][batch]
    assert {loss: wrong(many[loss], alone[loss], tolerance(name)) for loss in alone} == {loss: {} for loss in alone}


def test_parameters_that_a_batch_does_not_use_have_a_gradient_of_zero(found: dict[int, Any]) -> None:
    losses = found[1]["ddp"]["right"]["10"]
    seen = {loss: {lang: any(values[f"languages.{lang}"]) for lang in ("es", "de")} for loss, values in losses.items()}
    assert list(seen.values())[:2] == [{"es": True, "de": False}, {"es": False, "de": True}]


@SEVERAL
def test_a_loss_multiplied_by_the_world_size_is_caught_in_every_tensor(
    found: dict[int, Any], world: int, name: str
) -> None:
    (alone,), (many,) = (
        each.values()
        for each in ({"": found[1]["ddp"]["right"]["10"]["contrastive, gathered"]}, found[world][name]["loss scaled"])
    )
    used = {key for key, values in alone.items() if max(map(abs, values)) > 1e-9}
    assert set(wrong(many, alone, 0.1)) == used and len(used) > 10


@SEVERAL
def test_one_gradient_multiplied_by_the_world_size_is_caught(found: dict[int, Any], world: int, name: str) -> None:
    alone, many = (
        found[1]["ddp"]["right"]["10"]["contrastive, gathered"],
        found[world][name]["temperature scaled"]["contrastive, gathered"],
    )
    assert {"temperature"} <= set(wrong(many, alone, 0.1)) <= {"temperature", "norm"}
    assert wrong(many, alone, tolerance(name)).keys() <= {"temperature", "norm"}


@EVERY
@pytest.mark.parametrize("how", ["step", "step in parts"])
def test_a_plain_step_is_that_of_one_process(found: dict[int, Any], world: int, name: str, how: str) -> None:
    """SGD, clipped, with a part of the parameters at half the rate. Float32 rounds what is added to weights."""
    alone, many = found[1]["ddp"]["step"], found[world][name][how]
    assert wrong(many, alone, 1e-4 if name.startswith("zero") else 1e-12) == {}


@SEVERAL
def test_a_step_multiplied_by_the_world_size_is_caught(found: dict[int, Any], world: int, name: str) -> None:
    alone, many = found[1]["ddp"]["step scaled"], found[world][name]["step scaled"]
    moved = {key for key, values in alone.items() if any(values)}
    assert set(wrong(many, alone, 0.1)) == moved and len(moved) > 8


@EVERY
def test_a_gradient_of_one_rank_that_is_not_finite_stops_the_step_of_all(
    found: dict[int, Any], world: int, name: str
) -> None:
    """Weights and moments stay as they are, bit for bit, and the next step is one again."""
    assert found[world][name]["skipped"] == [{"refused": True, "unchanged": True, "goes on": True}] * world


@EVERY
def test_a_bounded_parameter_stays_at_its_bound_and_comes_back_from_it(
    found: dict[int, Any], world: int, name: str
) -> None:
    first, up, still_up, down = found[world][name]["bounded"]["temperature"]
    assert first == up == still_up == pytest.approx(math.log(100)), "the optimiser's copies are bounded, too"
    assert down == pytest.approx(math.log(100) - 0.1 * 1e-3 * 100, abs=1e-5)


@EVERY
def test_shards_are_shards(found: dict[int, Any], world: int, name: str) -> None:
    held = found[world][name]["held"]
    bounds = {what: (1 / world + 0.05) * held["whole"][what] for what in ("optimizer", "parameters")}
    shared = {"ddp": (), "zero1": ("optimizer",), "zero2": ("optimizer",)}.get(name, ("optimizer", "parameters"))
    assert len(held["ranks"]) == world
    for what in ("optimizer", "parameters"):
        bytes_held = [rank[what] for rank in held["ranks"]]
        assert sum(bytes_held) >= held["whole"][what], "nothing is missing"
        if what in shared:
            assert max(bytes_held) <= bounds[what]
        else:
            assert bytes_held == [held["whole"][what]] * world
