"""A run that began on a GPU goes on on a CPU, and the other way round, with the losses of the run that was not
interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.on import needs_gpu, on_cpu
from tests.procs import resume_worker

pytestmark = needs_gpu
TRAIN = """
import sys
from pathlib import Path
from tests.procs import resume_worker
resume_worker.train(Path(sys.argv[1]), [("cpu", "ddp", "fp32")])
"""
RESUME = """
import sys
from pathlib import Path
from tests.procs import resume_worker
resume_worker.resume(Path(sys.argv[1]), [("gpu", "gpu-cpu", "ddp", "fp32")], Path(sys.argv[1]) / "gpu-cpu.json")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole runs, `gpu` and `cpu`, and each continued on the other."""
    folder = tmp_path_factory.mktemp("resumed")
    resume_worker.prepare(folder)
    resume_worker.train(folder, [("gpu", "ddp", "fp32")])
    on_cpu(TRAIN, folder)
    on_cpu(RESUME, folder)
    resume_worker.resume(folder, [("cpu", "cpu-gpu", "ddp", "fp32")], folder / "cpu-gpu.json")
    return folder


@pytest.mark.parametrize("name", ["gpu-cpu", "cpu-gpu"])
def test_a_run_goes_on_on_the_other_device(runs: Path, name: str) -> None:
    found = json.loads((runs / f"{name}.json").read_text())[name]
    assert found["resumed_at"] == resume_worker.CUT and found["carried"] > 50 and not found["lost"]
    whole, other = (resume_worker.losses(runs / "runs" / f"{run}-s0") for run in (name.split("-")[0], name))
    assert whole.keys() == other.keys() and resume_worker.distance(whole, other) < 1e-3
