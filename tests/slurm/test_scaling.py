"""A scaling study as SLURM jobs: submitted, one point failing, read from what the jobs have left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.experiment import Experiment, Ground


@pytest.mark.slow
def test_a_scaling_study(cluster: Cluster, ground: Ground, shared: Path) -> None:
    experiment = Experiment.made(cluster, shared / "scaling", {})
    folder = experiment.folder
    values = {
        "name": "study", "title": "Weak scaling on hosts that share two cores", "out": str(folder / "out"),
        "config": str(ground.folder / "dasd.yaml"), "kind": "weak", "where": "slurm", "per_node": 1,
        "grid": {"world": [1, 2, 4], "batch": [10]}, "points": [{"world": 1, "batch": 10, "precision": "fp16"}],
        "steps": 10, "warmup": 4, "repeats": 1, "profile": str(folder / "profile.yaml"),
    }  # fmt: skip
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values))
    done = experiment.ccr_dist("scale", "run", file)
    assert done.returncode == 0, done.stderr
    ledger = (folder / "out/pipeline/study").glob("*.jsonl")
    jobs = [line["job"] for path in ledger for line in map(json.loads, path.read_text().splitlines()) if "job" in line]
    assert len(set(jobs)) == 4
    for job in dict.fromkeys(jobs):
        cluster.wait(job)
    report = experiment.ccr_dist("scale", "report", folder / "out", "--json")
    assert report.returncode == 0, report.stderr
    told = json.loads(report.stdout)
    rows = [row for row in told["rows"] if row["stage"] == "cma"]
    assert [(row["settings"]["world"], row["nodes"], row["batch"]) for row in rows] == [
        (1, 1, 10),
        (2, 2, 20),
        (4, 4, 40),
    ]
    assert [len(row["memory_bytes"]) for row in rows] == [1, 2, 4] and rows[2]["traffic"]["gradients"] > 0
    assert told["failed"][0]["point"] == "w1-ddp-fp16-b10" and told["failed"][0]["exit"] == 2
    assert "fp16 needs a GPU" in told["failed"][0]["error"]
    again = experiment.ccr_dist("scale", "run", file)
    assert again.returncode == 0 and "all trainings have ended" in again.stderr
