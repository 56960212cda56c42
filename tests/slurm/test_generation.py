"""What interrupts arrays of generating tasks, and that every row of their columns is there once, as if nothing had
happened.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, until
from tests.slurm.experiment import COLUMNS, Experiment, Ground, columns, model_server


def test_tasks_are_retried_alone(cluster: Cluster, ground: Ground, shared: Path) -> None:
    server = shared / "generation-server"
    with model_server(cluster, server) as url:
        data = ground.data(shared / "undisturbed-data")
        steps = ground.generation(data, url, tasks=1)
        done = (alone := Experiment.made(cluster, shared / "columns", steps)).ccr_dist(
            "run", alone.folder / "pipeline.yaml"
        )
        assert done.returncode == 0, done.stderr
        expected = columns(data)

        (server / "delay").write_text("2")
        data = ground.data(shared / "disturbed-data")
        steps = ground.generation(data, url)
        steps["describe"]["cpus"] = 4  # a task a node
        del steps["translate"]
        experiment = Experiment.made(cluster, shared / "disturbed", steps)
        array = experiment.submit()["describe"]
        until("all tasks have made something", lambda: len(list((data / COLUMNS[0]).glob("*.journal.*"))) >= 3)
        [node] = cluster.nodes_of(f"{array}_1")
        try:
            cluster.slurm("scancel", "--signal=KILL", f"{array}_0.0")  # its processes; the batch script lives
            cluster.do("crash", node)
            cluster.slurm("scancel", "--signal=USR1", "--batch", f"{array}_2")
            until("all start again", lambda: all(cluster.restarts(f"{array}_{task}") == 1 for task in range(3)), 300)
            (server / "delay").write_text("0")
            experiment.finish()
        finally:
            cluster.do("boot", node)
        assert "task" in experiment.why()
        killed, lost, warned = (experiment.attempts("describe", task) for task in range(3))
        assert [end["decision"] for end in killed] == ["again", "done"] and killed[0]["why"] == "crash", killed
        assert lost[0] == {} and lost[1]["decision"] == "done", lost
        assert warned[0]["why"] == "time limit" and warned[0]["code"] == 75 and warned[1]["decision"] == "done", warned
        assert cluster.nodes_of(f"{array}_1") != [node]

        (server / "delay").unlink()
        steps = ground.generation(data, url)
        translating = Experiment.made(cluster, shared / "translated", {"translate": steps["translate"]})
        translating.submit()
        translating.finish()
    assert columns(data) == expected


@pytest.mark.slow
def test_a_task_that_keeps_failing_is_given_up_alone_and_resumed(
    cluster: Cluster, ground: Ground, shared: Path
) -> None:
    server = shared / "failing-server"
    with model_server(cluster, server) as url:
        data = ground.data(shared / "failing-data")
        steps = {"translate": ground.generation(data, url)["translate"]}
        steps["translate"]["command"] += " --set retries=0"
        steps["next"] = {"command": f"report {shared} --out {shared}/nothing"}
        experiment = Experiment.made(cluster, shared / "failing", steps, retries=1)
        (server / "down").touch()
        jobs = experiment.submit()
        for task in range(3):
            assert cluster.wait(f"{jobs['translate']}_{task}") == "FAILED", experiment.why()
        assert [end["why"] for end in experiment.attempts("translate", 1)] == [
            "storage or engine failed",
            "too often without progress",
        ]
        assert cluster.wait(jobs["next"]) == "CANCELLED"
        (server / "down").unlink()
        done = experiment.ccr_dist("resume", experiment.run, "steps.next.command=methods --json")
        assert done.returncode == 0, done.stderr
        experiment.finish()
    found = experiment.status()
    assert found["translate"]["states"] == {"done": 3} and found["next"]["states"] == {"done": 1}
    assert json.loads((experiment.run / "record.json").read_text())["software"]["ccr_dist"]
