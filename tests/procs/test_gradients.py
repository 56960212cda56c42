"""Losses and gradients of the global batch do not depend on how it is cut over processes:
real gloo processes, float64, ragged and empty ranks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.procs

WORKER = Path(__file__).with_name("gradients_worker.py")


def run(world: int, batch: int, out: Path, *, broken: str = "") -> dict[str, dict[str, list[float]]]:
    target = out / f"{world}-{batch}{broken}.json"
    launch = (
        [sys.executable]
        if world == 1
        else [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world), "--master_port", "0"]
    )
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"] if world > 1 else []
    done = subprocess.run([*launch, str(WORKER), str(batch), str(target), broken], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(target.read_text())


def distance(a: dict[str, dict[str, list[float]]], b: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Largest relative difference of each loss over its value and all its gradients."""
    assert a.keys() == b.keys()
    worst = {}
    for loss in a:
        assert a[loss].keys() == b[loss].keys()
        differences = []
        for name in a[loss]:
            scale = max(max(map(abs, a[loss][name])), 1e-30)
            differences.append(max(abs(x - y) for x, y in zip(a[loss][name], b[loss][name], strict=True)) / scale)
        worst[loss] = max(differences)
    return worst


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, list[float]]]]:
    folder = tmp_path_factory.mktemp("alone")
    return {batch: run(1, batch, folder) for batch in (10, 2)}


@pytest.mark.parametrize(("world", "batch"), [(2, 10), (3, 10), (3, 2)], ids=["2 ranks", "3 ranks, ragged", "3 ranks, one empty"])
def test_any_world_size_gives_the_gradients_of_one_process(alone: dict, tmp_path: Path, world: int, batch: int) -> None:
    for loss, worst in distance(alone[batch], run(world, batch, tmp_path)).items():
        assert worst < 1e-12, loss


def test_a_gradient_scaled_by_the_world_size_is_caught_for_every_loss(alone: dict, tmp_path: Path) -> None:
    assert all(worst > 0.1 for worst in distance(alone[10], run(2, 10, tmp_path, broken="scaled")).values())
