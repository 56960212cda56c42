"""Stages in closed form on any number of processes: the same weights from float16 and float32 columns, under every way
to shard weights, and after a rank was killed in the midst of the sums.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ccr_dist.models import tensorfile
from tests.nearness import close
from tests.procs.fit_worker import KILLED_AT

pytestmark = [pytest.mark.procs, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BLOCKS = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, out of one start."""
    folder = tmp_path_factory.mktemp("fit")
    done = subprocess.run(
        [sys.executable, "-m", "tests.procs.fit_worker", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def run(folder: Path, name: str) -> Path:
    return folder / "runs" / f"{name}-s0"


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return tensorfile.read(run(folder, name) / "model.safetensors")[0]


def predictions(found: dict[str, Tensor], of: dict[str, Tensor]) -> Tensor:
    """What a kernel's weights make of the landmarks of other ones."""
    net = {name.removeprefix("net.kernel."): tensor.double() for name, tensor in found.items() if "kernel" in name}
    kernel = torch.exp(-2 * net["gamma"] * (1 - of["net.kernel.landmarks"].double() @ net["landmarks"].T))
    return kernel @ net["coefficients"] + net["bias"]


def require_alike(folder: Path, method: str, name: str) -> None:
    found, alone = weights(folder, f"{method}-{name}"), weights(folder, f"{method}-float16-1")
    assert found.keys() == alone.keys()
    if method == "map":
        assert {"net.map.weight", "net.bias.lang-es"} <= found.keys()
        close(found, alone, tolerance=1e-6)
    else:
        close(predictions(found, alone), predictions(alone, alone), tolerance=1e-5)
        assert torch.equal(found["net.kernel.landmarks"], alone["net.kernel.landmarks"])


METHODS = pytest.mark.parametrize("method", ["map", "kernel"])


@METHODS
@pytest.mark.parametrize("name", ["float32-1", *(f"{kind}-{n}" for n in (2, 3) for kind in ("float16", "float32"))])
def test_weights_do_not_depend_on_processes_or_the_type_of_columns(folder: Path, method: str, name: str) -> None:
    require_alike(folder, method, name)


@METHODS
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_strategies_that_shard_weights_solve_for_the_same(folder: Path, method: str, strategy: str) -> None:
    require_alike(folder, method, strategy)
    [made_by] = [
        json.loads(path.read_text())["made_by"] for path in run(folder, f"{method}-{strategy}").rglob("state.json")
    ]
    assert made_by == {"strategy": strategy, "world": 2}


@METHODS
@pytest.mark.parametrize("world", [1, 3])
def test_after_a_kill_another_number_of_processes_sums_up_the_rest(folder: Path, method: str, world: int) -> None:
    assert any((run(folder, f"{method}-killed") / "sums" / "fit").iterdir())
    summed = [int(path.read_text()) for path in folder.glob(f"{method}-killed-{world}.*")]
    assert len(summed) == world and BLOCKS - 2 * KILLED_AT <= sum(summed) < BLOCKS
    require_alike(folder, method, f"killed-{world}")
    assert not (run(folder, f"{method}-killed-{world}") / "sums").exists()
