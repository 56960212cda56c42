"""The cluster that the tests of this folder share: four hosts, for one process of pytest. `cluster.py` is what they do
with it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.experiment import Experiment, Ground, Run, training


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(1500))  # SLURM takes its time, and a busy machine more


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for the shared file system; all that jobs can write into."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def cluster(shared: Path) -> Iterator[Cluster]:
    # Unix sockets lie in it, whose paths are short.
    with (
        tempfile.TemporaryDirectory(prefix=f"ccr-{os.getpid()}-", dir="/tmp") as folder,
        Cluster.started(Path(folder), shared) as started,
    ):
        yield started


@pytest.fixture(autouse=True)
def idle(cluster: Cluster) -> Iterator[None]:
    """Nothing of one test is left for the next."""
    yield
    cluster.settle()


@pytest.fixture(scope="session")
def ground(shared: Path) -> Ground:
    return Ground.made(shared / "ground")


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, ground: Ground, shared: Path) -> Run:
    """The run that interrupted ones end like: 150 steps on two ranks, without SLURM."""
    experiment = Experiment.made(
        cluster, shared / "undisturbed", {"train": training(ground.config("undisturbed"), nodes=1, ranks=2)}
    )
    done = experiment.ccr_dist("run", experiment.folder / "pipeline.yaml")
    assert done.returncode == 0, done.stderr + experiment.why()
    return ground.run("undisturbed")
