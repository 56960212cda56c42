"""A study as a pipeline: what is submitted, and what becomes of jobs that have ended. Without SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist.cluster import attempts, checks
from ccr_dist.cluster.pipeline import load_plan as load_pipeline
from ccr_dist.cluster.pipeline import plan_of
from ccr_dist.cluster.profile import Profile, load_profile
from ccr_dist.cluster.render import render
from ccr_dist.commands import uses_of
from ccr_dist.errors import ConfigError, OutOfMemoryError
from ccr_dist.scaling import record
from ccr_dist.scaling.jobs import collect, document, submit
from ccr_dist.scaling.plan import ScalingPlan
from tests import scaling_runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaling_runs.base(tmp_path_factory.mktemp("scaling"))


def study(base: Path, folder: Path, **changes: Any) -> ScalingPlan:
    asked = {"where": "slurm", "per_node": 4, "gpus": True, "cpus": 3, "time": "0:30:00", "repeats": 1, **changes}
    return scaling_runs.study(base, folder, grid={"world": [2, 8], "batch": [12]}, **asked)


def test_every_training_is_a_step_of_its_own(base: Path, tmp_path: Path) -> None:
    plan = study(base, tmp_path, overrides=["label=costs $5"])
    made = plan_of(document(plan, plan.trials))
    few, many = made.jobs.values()
    assert (few.step.nodes, few.step.ranks, few.step.gpus, few.step.cpus) == ("1", 2, 2, 6)
    assert (many.step.nodes, many.step.ranks, many.step.gpus, many.step.cpus) == ("2", 4, 4, 12)
    assert few.after == many.after == () and few.kind == "train" and made.run == tmp_path / "out/pipeline/s"
    assert few.command == plan.trials[0].command and "label=costs $5" in few.command
    assert [run for run in uses_of(many.command, "step").runs] == [plan.trials[1].folder]
    script = render(made, many, Profile(), root=tmp_path, tasks=[0], offset=0)
    assert "#SBATCH --nodes=2" in script and "#SBATCH --gpus-per-node=4" in script and "time=0:30:00" in script


def test_a_site_without_gpus_is_refused_early(base: Path, tmp_path: Path) -> None:
    profile = tmp_path / "none.yaml"
    profile.write_text("gpus: null\n")
    plan = study(base, tmp_path, profile=str(profile))
    with pytest.raises(ConfigError, match=r"study\.yaml: gpus: true, and the site profile .*none\.yaml .*has none"):
        submit(plan, again=False, dry_run=True, say=print)
    assert not Path(plan.study.out).exists()

    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "steps": {"a": {"command": "train x", "gpus": 8}}}))
    pipeline = load_pipeline(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match=r"p\.yaml:\d+: step a: gpus: 8, and the profile says that the site has none"):
        checks.gpus(pipeline, load_profile(profile))
    checks.gpus(pipeline, Profile())


def test_a_profile_that_is_missing_is_said_with_the_study(base: Path, tmp_path: Path) -> None:
    plan = study(base, tmp_path, profile="mysite")
    with pytest.raises(ConfigError, match=r"study\.yaml: profile: .*mysite"):
        submit(plan, again=False, dry_run=True, say=print)


def test_a_report_elsewhere_says_what_it_does_not_read(base: Path, tmp_path: Path) -> None:
    plan, said = study(base, tmp_path), list[str]()
    record.keep_study(plan)
    plan.file.unlink()
    collect(Path(plan.study.out), said.append)
    assert len(said) == 1 and "start it in the folder where `scale run` was started" in said[0]


def test_jobs_that_have_ended_become_records(base: Path, tmp_path: Path) -> None:
    plan = study(base, tmp_path)
    out, said = Path(plan.study.out), list[str]()
    collect(tmp_path, said.append)  # no study there
    record.keep_study(plan)
    run = out / "pipeline" / "s"
    done, lost = plan.trials
    scaling_runs.leave(done, 0.5)
    path = attempts.path_of(run, lost.name, 0)
    attempts.write(path, {"event": "start", "attempt": "7.0", "nodes": ["n1"]})
    collect(out, said.append)
    assert said == [] and not lost.record.exists(), "it still runs"

    logs = attempts.step_folder(run, lost.name) / "logs"
    logs.mkdir()
    (logs / "7.log").write_text(
        f"error: rank 1 ran out of memory\nsrun: x\nattempt 7.0 of {lost.name}: exit code 10: no\n"
    )
    code = OutOfMemoryError.exit_code
    attempts.write(path, {"event": "end", "attempt": "7.0", "code": code, "decision": "fail", "why": "out of memory"})
    path = attempts.path_of(run, done.name, 0)
    attempts.write(path, {"event": "start", "attempt": "8.0", "nodes": ["n1"]})
    attempts.write(path, {"event": "end", "attempt": "8.0", "code": 0, "decision": "done", "why": "done"})
    collect(out, said.append)
    assert said == [f"{done.name}: measured", f"{lost.name}: out of memory"]
    kept = record.read(lost.record)
    assert (kept.exit, kept.error) == (code, "rank 1 ran out of memory")
    assert record.read(done.record).found["stages"]["cla"]["seconds"] == [0.5] * 4
    collect(out, said.append)
    assert len(said) == 2
