"""A study on a cluster: a pipeline with a step for each training, submitted as any other pipeline.

Steps do not depend on each other, so that one that fails stops none; SLURM starts them in the order of their repeats.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccr_dist import yamlfile
from ccr_dist.cluster import attempts, pipeline
from ccr_dist.cluster.profile import load_profile
from ccr_dist.cluster.status import errors_in
from ccr_dist.cluster.submit import submit as submit_pipeline
from ccr_dist.errors import CRASH, DONE, ConfigError
from ccr_dist.scaling import record
from ccr_dist.scaling.plan import ScalingPlan, Trial, load_plan
from ccr_dist.train.assemble import check_columns

Say = Callable[[str], None]


def submit(plan: ScalingPlan, *, again: bool, dry_run: bool, say: Say) -> None:
    """Queue what is left of a study.

    Args:
        plan: The study.
        again: Whether points that failed are measured again.
        dry_run: Whether to check only, and queue nothing.
        say: Prints a line.

    Raises:
        ConfigError: The profile has no GPUs where the study asks for them, or as `cluster.submit`.
    """
    study = plan.study
    try:
        profile = load_profile(study.profile)
    except ConfigError as error:
        raise ConfigError(f"{plan.file}: profile: {error}") from None
    if study.gpus and profile.gpus is None:
        raise ConfigError(
            f"{plan.file}: gpus: true, and the site profile {study.profile} says that the site has none (gpus: null);"
            " take another profile, or gpus: false"
        )
    for point in plan.points[:1]:
        check_columns(point.config)
    if not dry_run:
        record.keep_study(plan)
        collect(Path(study.out), say, plan=plan)
    known = [(trial, record.kept(trial)) for trial in plan.trials]
    failed = {trial.name for trial, ended in known if ended is not None and ended.failed}
    if all(ended is not None for _, ended in known) and not (failed and again):
        say(f"study {study.name}: all trainings have ended; `ccr-dist scale report {study.out}`")
        return
    # steps that are done stay in the pipeline, and are not queued again
    trials = [trial for trial in plan.trials if again or trial.name not in failed]
    if again and not dry_run:
        for trial in trials:
            if trial.name in failed:
                trial.record.unlink()
    submit_pipeline(pipeline.plan_of(document(plan, trials)), profile, dry_run=dry_run, say=say)
    say(f"when they have ended: ccr-dist scale report {study.out}")


def document(plan: ScalingPlan, trials: list[Trial]) -> yamlfile.Document:
    """The pipeline of a study, as its YAML would be read."""
    study = plan.study
    made = yamlfile.Document(str(plan.file))
    steps: dict[str, Any] = {}
    for trial in trials:
        point = trial.point
        steps[trial.name] = {
            "command": shlex.join(trial.command).replace("$", "$$"),
            "kind": "train",
            "after": [],
            "nodes": point.nodes,
            "ranks": point.per_node,
            "gpus": point.per_node if study.gpus else 0,
            "cpus": study.cpus * point.per_node,
            "launch": point.settings.strategy,
            **({"memory": study.memory} if study.memory else {}),
            **({"time": study.time} if study.time else {}),
        }
    made.data = {"name": study.name, "folder": str(Path(study.out) / "pipeline"), "steps": steps}
    return made


def collect(folder: Path, say: Say, *, plan: ScalingPlan | None = None) -> None:
    """Keep records of the trainings that have ended as SLURM jobs, of a study that runs as such.

    Args:
        folder: The study's `out`.
        say: Prints a line.
        plan: The study, if it is at hand; otherwise it is read from the file that it was.
    """
    if not (folder / record.NAME).exists():
        return
    kept = record.study_of(folder)
    if kept.study.where != "slurm":
        return
    if plan is None and not kept.file.exists():
        say(
            f"{kept.file}: not here, so that jobs that have ended since are not in the report: start it in the folder"
            " where `scale run` was started"
        )
        return
    plan = plan or load_plan(kept.file)
    run = folder / "pipeline" / plan.study.name
    for trial in plan.trials:
        if record.kept(trial) is not None:
            continue
        tried = attempts.read(attempts.path_of(run, trial.name, 0))
        if not tried or tried[-1].end is None or tried[-1].end["decision"] not in ("done", "fail"):
            continue
        last = tried[-1]
        assert last.end is not None
        code = DONE if last.done else int(last.end["code"]) or CRASH
        reasons = errors_in(attempts.step_folder(run, trial.name) / "logs", trial.name)
        ended = record.write(
            trial, command=("ccr-dist", *trial.command), exit=code, seconds=last.end["time"] - last.start["time"],
            said=reasons.get(last.name, str(last.end["why"])),
        )  # fmt: skip
        say(f"{trial.name}: {ended.said}")
