"""The testbed is a cluster, and it does no harm: hosts share a disk with the machine that they are on, and their jobs
run as root.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.slurm.cluster import ROOT, Cluster, log_of, script


def test_jobs_cannot_harm_the_machine(cluster: Cluster, shared: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as one, tempfile.TemporaryDirectory(dir="/tmp") as other:
        kept = [Path(one, "kept"), Path(other, "kept"), ROOT / "pyproject.toml"]
        for path in kept[:2]:
            path.write_text("here")
        before = kept[2].read_bytes()
        lines = [f"rm -rf {one} {other}"]
        lines += [
            f"echo gone 2>/dev/null >{path}" for path in (*kept, Path(one, "new"), "/etc/new", "/usr/new", "/root/new")
        ]
        lines += [
            f"rm -f {ROOT}/pyproject.toml",
            'touch "$TMPDIR/mine" /dev/shm/mine && echo mine >' + f"{shared}/mine.$SLURMD_NODENAME",
        ]
        job = cluster.sbatch("--nodes=4", script(shared, "harm", ["srun bash <<'END'", *lines, "END", "true"]))
        assert cluster.wait(job) == "COMPLETED", log_of(shared)
        assert [path.read_text() for path in kept[:2]] == ["here", "here"] and kept[2].read_bytes() == before
        assert not any(
            Path(path).exists()
            for path in (f"{one}/new", "/etc/new", "/usr/new", "/root/new", "/tmp/mine", "/dev/shm/mine")
        )
    # What they are for does work: the shared folder, and a /tmp of each node.
    assert len(list(shared.glob("mine.n*"))) == 4, log_of(shared)


def test_hosts_are_several_and_gpus_are_given(cluster: Cluster, shared: Path) -> None:
    job = cluster.sbatch(
        "--nodes=4",
        "--gpus-per-node=1",
        script(shared, "who", ["srun sh -c 'hostname; echo gpu $CUDA_VISIBLE_DEVICES'"]),
    )
    assert cluster.wait(job) == "COMPLETED", log_of(shared)
    assert sorted((shared / f"who-{job}.log").read_text().split("\n")) == ["", *["gpu 0"] * 4, "n1", "n2", "n3", "n4"]
