"""What would run, and why, without running it; and what is said where SLURM cannot be asked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist import errors
from ccr_dist.cluster import checks, job, ledger, local, slurm
from ccr_dist.cluster.ledger import Ledger
from ccr_dist.cluster.pipeline import Plan, load_plan
from ccr_dist.cluster.profile import load_profile
from ccr_dist.cluster.submit import submit
from ccr_dist.errors import ConfigError, EngineError
from tests import jobs

ROOT = Path(__file__).parents[3]
DASD = f"{ROOT}/configs/demo/dasd.yaml"
CONF = """\
ClusterName=x
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=9
AuthType=auth/none
NodeName=localhost
PartitionName=p Nodes=localhost
"""
installed = pytest.mark.skipif(shutil.which("scontrol") is None, reason="needs SLURM's commands")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm.conf").write_text(CONF)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))  # the commands are there, the controller is not
    jobs.captions(tmp_path / "data", rows=(2,))
    return tmp_path


def plan(**steps: str | dict[str, Any]) -> Plan:
    whole = {name: {"command": step} if isinstance(step, str) else step for name, step in steps.items()}
    Path("p.yaml").write_text(yaml.safe_dump({"name": "p", "folder": "runs", "steps": whole}, sort_keys=False))
    return load_plan("p.yaml")


def tried(plan: Plan, step: str, *, code: int | None = 0) -> None:
    """An attempt without its command; code None: it was killed."""
    ledger.record(plan, None, None)
    here = job.Here(plan.run, step, 0, 1, f"{step}.0", 3, plan.run / "notes")
    job.begin(here, plan.jobs[step].command, nodes=["n"], job=None)
    if code is not None:
        job.end(here, plan.jobs[step].command, code=code, heard="", job=None)


def told(plan: Plan) -> list[str]:
    said: list[str] = []
    assert local.run(plan, said.append, dry_run=True) == errors.DONE
    assert said.pop() == "nothing was run (--dry-run)"
    return said


def test_a_dry_run_says_what_would_run_and_why(folder: Path) -> None:
    steps = plan(first="shards inspect data", second="methods")
    assert told(steps) == [
        "first: 1 task(s), not done yet: ccr-dist shards inspect data",
        "second: 1 task(s), after first: ccr-dist methods",
    ]
    assert not Path("runs").exists()
    tried(steps, "first")
    tried(steps, "second", code=None)
    assert told(steps) == ["first: done already", "second: 1 task(s), begun and not finished: ccr-dist methods"]
    changed = plan(first="shards inspect data --rows 1", second="methods")
    assert told(changed) == [
        "first: 1 task(s), done before its command, a file that it names, or a step before it changed: ccr-dist shards"
        " inspect data --rows 1",
        "second: 1 task(s), after first: ccr-dist methods",
    ]


def test_a_dry_run_checks_what_a_run_checks(folder: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: there is no dataset"):
        told(plan(first="shards inspect nowhere"))
    steps = plan(first="methods")
    steps.run.mkdir(parents=True)
    (steps.run / "stop").touch()
    with pytest.raises(ConfigError, match="remove it first"):
        told(steps)


def test_a_dry_run_of_a_submission_needs_no_controller(folder: Path) -> None:
    steps = plan(first="methods")
    steps.run.mkdir(parents=True)
    Ledger.read(steps.run).write(event="submitting", token="t", step="first", tasks=[0], offset=0)
    said: list[str] = []
    submit(steps, load_profile("default").model_copy(update={"python": sys.executable}), dry_run=True, say=said.append)
    assert said[-2] == "first: 1 task(s): runs/p/steps/first/script.sbatch"
    reason = "SLURM's controller does not answer on this machine (Slurmctld(primary) at "
    assert said[-1].startswith(reason if slurm.shutil.which("sbatch") else "sbatch is not on the PATH: ")
    assert (
        "SLURM was not asked whether it takes these scripts, nor which jobs of this pipeline it has queued" in said[-1]
    )


@installed
def test_commands_without_a_configuration_say_where_to_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("this machine has a cluster")
    monkeypatch.delenv("SLURM_CONF")
    with pytest.raises(EngineError, match=r"^scontrol: SLURM's controller does not answer .*on a login node"):
        slurm.array_limit()


def test_two_steps_that_train_one_run_folder_are_refused(folder: Path) -> None:
    def problems(**steps: str | dict[str, Any]) -> list[str]:
        found = plan(**steps)
        return list(
            checks._trained_twice(found, {name: checks.uses_of(job.command, name) for name, job in found.jobs.items()})
        )

    [said] = problems(a=f"train {DASD} out=r", b=f"train {DASD} out={folder}/r stages.cla.steps=3")
    assert f"step b: step a makes {folder}/r/dasd-s0, too: give each its own name=, seed= or out=, or " in said
    assert said.startswith("p.yaml:")
    assert len(problems(a=f"train {DASD} --seeds 0,1", b=f"train {DASD} --seeds 1,2")) == 1
    assert not problems(a=f"train {DASD} seed=0", b=f"train {DASD} seed=1", c=f"evaluate {DASD} seed=0")
    with pytest.raises(ConfigError, match="step b: step a makes"):
        checks.check(plan(a=f"train {DASD}", b=f"train {DASD} seed=0"), free_disk_gib=0)
