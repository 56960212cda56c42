"""Losses and gradients of the global batch do not depend on how it is cut over processes:
real gloo processes, float64, ragged and empty ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.procs

ROOT = Path(__file__).parents[2]
Losses = dict[str, dict[str, list[float]]]  # loss -> its value, and the gradient of each parameter
MANY = ["2 ddp", "3 ddp", "4 ddp", "3 fsdp2"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By world size and strategy; one start computes all losses of both batches."""
    out = tmp_path_factory.mktemp("gradients") / "found.json"
    command = [sys.executable, "-m", "tests.procs.gradients_worker", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def distances(many: Losses, alone: Losses) -> dict[str, float]:
    """Largest relative difference of each loss over its value and all its gradients."""
    assert {loss: found.keys() for loss, found in many.items()} == {loss: alone[loss].keys() for loss in many}
    return {loss: max(distance(found[name], alone[loss][name]) for name in found) for loss, found in many.items()}


def distance(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) / max(map(abs, b))


@pytest.mark.parametrize("batch", ["10", "2"])  # 10 does not divide by 3 and 4; with 2 rows, a third rank holds none
@pytest.mark.parametrize("world", MANY)
def test_any_world_size_gives_the_losses_and_gradients_of_one_process(
    results: dict[str, Any], world: str, batch: str
) -> None:
    alone, many = (results[size][batch] for size in ("1 ddp", world))
    assert {loss: worst for loss, worst in distances(many, alone).items() if worst > 1e-12} == {}


@pytest.mark.parametrize("loss", ["contrastive", "groups", "slots", "texts alone", "images alone", "temperature alone"])
def test_all_ways_to_compute_the_contrastive_loss_give_the_same(results: dict[str, Any], loss: str) -> None:
    for found in results.values():
        gathered, *others = ({loss: found["10"][f"{loss}, {way}"]} for way in ("gathered", "tiled", "ring"))
        assert all(worst < 1e-12 for other in others for worst in distances(other, gathered).values())


@pytest.mark.parametrize("world", MANY)
def test_a_loss_multiplied_by_the_world_size_is_caught_everywhere(results: dict[str, Any], world: str) -> None:
    alone, many = results["1 ddp"]["10"], results[world]["scaled"]
    assert len(many) > 30
    for loss, found in many.items():
        assert all(distance(found[name], alone[loss][name]) > 0.1 for name in found), loss


@pytest.mark.parametrize("world", ["1 ddp", *MANY])
def test_what_a_rank_holds(results: dict[str, Any], world: str) -> None:
    """(n, B) logits; the global batch's features; its own."""
    batch, dim = 90, 16
    rows = -(-batch // int(world[0]))
    assert results[world]["largest"] == {"gathered": rows * batch, "tiled": batch * dim, "ring": rows * dim}
