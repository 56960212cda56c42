"""The demo as a chain of jobs, to its final report: what a user's first pipeline does."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import yaml

from ccr_dist.data.table.dataset import Dataset
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.experiment import CPU, Experiment, Run, model_server

SMALL = (
    "values.limit=64",
    "steps.describe.tasks=2",
    "values.engine=openai",
    "values.model=toy",
    "values.cla=stages.cla.steps=3",
    "values.cma=stages.cma.steps=2",
)


def test_the_demo_to_its_report(cluster: Cluster, shared: Path) -> None:
    """As it is shipped, but with one of two trainings, few rows and steps, no GPUs, and a model server that says what
    it is told.
    """
    place = shared / "demo"
    experiment = Experiment.made(cluster, place, {}, preflight={"free_memory_gib": 0.1, "free_disk_gib": 0.1})
    for name in ("configs", "launch"):
        (place / name).symlink_to(ROOT / name)
    shipped = yaml.safe_load((ROOT / "configs" / "pipelines" / "emoji14.yaml").read_text())
    steps = shipped["steps"]
    del steps["dasd"], steps["evaluate"]
    steps["report"]["after"].remove("evaluate")
    steps["report"]["command"] = steps["report"]["command"].replace(" $out/dasd-s0", "")
    for settings in steps.values():
        if "gpus" in settings:
            settings |= {"gpus": 0, "ranks": 1, "launch": CPU}
    pipeline = place / "emoji14.yaml"
    pipeline.write_text(yaml.safe_dump(shipped, sort_keys=False))
    overrides = [*SMALL, f"folder={experiment.folder}/runs", "name=toy"]
    with model_server(cluster, shared / "demo-server") as url:
        profile = yaml.safe_load((place / "profile.yaml").read_text())
        profile["environment"]["OPENAI_BASE_URL"] = url
        experiment.write("profile", profile)
        words = ["submit", pipeline, "--profile", place / "profile.yaml", *overrides]
        done = cluster.run(sys.executable, "-m", "ccr_dist", *words, cwd=place)
        assert done.returncode == 0, done.stderr
        experiment.finish(900)
    found = experiment.status()
    assert {state for each in found.values() for state in each["states"]} == {"done"} and found["describe"][
        "states"
    ] == {"done": 2}
    Dataset.open(place / "data" / "emoji14" / "train").column("description.mllm").require_complete()
    [start] = Run(place / "runs" / "emoji14" / "described-s0").starts()
    assert start["world"] == 2 and len({process["host"] for process in start["processes"]}) == 2
    rows = list(csv.DictReader((place / "runs" / "emoji14" / "report" / "results.csv").open()))
    assert {row["label"] for row in rows} == {"zero-shot", "DASD, described"}
    said = "".join(path.read_text() for path in (experiment.run / "steps" / "described" / "logs").iterdir())
    assert "preflight: all-reduce" in said and "slowest link" in said
