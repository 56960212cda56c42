"""A script of slurm/ that a person edits and submits, without `ccr-dist submit`: a scaling experiment on one node and
on two.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, Cluster, log_of
from tests.slurm.experiment import CPU, Experiment, Ground


@pytest.mark.slow
def test_a_scaling_experiment(cluster: Cluster, ground: Ground, shared: Path) -> None:
    place = shared / "by-hand"
    place.mkdir()
    text = (ROOT / "slurm" / "scale.sbatch").read_text()
    command = f"train {ground.folder}/dasd.yaml name=scale-$SLURM_JOB_NUM_NODES stages.cla.steps=30 stages.cma.steps=20"
    for pattern, line in {
        r"#SBATCH --gpus-per-node=8\n": "",
        r"#SBATCH --output=.*": f"#SBATCH --output={place}/%j.log",
        r"RUN=\S+": (
            f"export PYTHON={shlex.quote(sys.executable)} PYTHONPATH={ROOT} OMP_NUM_THREADS=1"
            f" HF_HUB_OFFLINE=1\nRUN={place}/run"
        ),
        r"LAUNCH=\S+": f"LAUNCH={CPU}",
        r"COMMAND=.*": f"COMMAND=({command})",
    }.items():
        text, count = re.subn(pattern, line, text)
        assert count == 1, pattern
    (place / "scale.sbatch").write_text(text)
    jobs = [cluster.sbatch(f"--nodes={nodes}", place / "scale.sbatch") for nodes in (1, 2)]
    assert [cluster.wait(job) for job in jobs] == ["COMPLETED", "COMPLETED"], log_of(place)

    runs = [ground.run(f"scale-{nodes}").folder for nodes in (1, 2)]
    done = Experiment(cluster, place).ccr_dist("scale", "compare", *runs, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(row["stage"], row["nodes"], row["ranks"], row["steps"]) for row in found] == [
        ("cla", 1, 1, 20), ("cla", 2, 2, 20), ("cma", 1, 1, 10), ("cma", 2, 2, 10),
    ]  # fmt: skip
    for alone, both in (found[:2], found[2:]):
        assert alone["efficiency"] == 1 and alone["communication"] is None and alone["samples_per_s"] > 0
        assert (
            both["efficiency"] == both["samples_per_s"] / alone["samples_per_s"] / 2 and 0 < both["communication"] < 1
        )
