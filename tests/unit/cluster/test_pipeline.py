"""What becomes of a job that ended, how attempts are counted, and how a pipeline becomes scripts: without SLURM."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ccr_dist import errors
from ccr_dist.cluster import attempts, checks, job, local, preflight
from ccr_dist.cluster.decide import NODE, Ended, decide
from ccr_dist.cluster.ledger import Ledger
from ccr_dist.cluster.pipeline import load_plan
from ccr_dist.cluster.profile import Preflight, Profile, load_profile
from ccr_dist.cluster.progress import Progress, progress
from ccr_dist.cluster.render import render
from ccr_dist.data.storage import store
from ccr_dist.declare import Table, Uses
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.resources import PROFILES, folder
from tests import jobs

SCRIPTS = folder("slurm")
NAN, HANG = errors.NonFiniteError.exit_code, errors.HangError.exit_code


@pytest.mark.parametrize(
    ("ended", "why", "action", "counted"),
    [
        ({"code": 0}, "done", "done", False),
        ({"code": 0, "taken": True}, "done", "done", False),
        ({"code": 2}, "wrong config", "fail", False),
        ({"code": 2, "taken": True}, "wrong config", "fail", False),
        ({"code": 3}, "wrong config", "fail", False),
        ({"code": 4, "preempted": True}, "wrong config", "fail", False),
        ({"code": 8}, "wrong config", "fail", False),
        ({"code": 10}, "wrong config", "fail", False),
        ({"code": 137, "taken": True, "strikes": 9}, "cancelled, requeued", "leave", False),
        ({"code": 12, "taken": True}, "cancelled, requeued", "leave", False),
        ({"code": 75, "taken": True, "held": True}, "cancelled, requeued", "leave", False),
        ({"code": 75, "held": True}, "a person", "fail", False),
        ({"code": 75, "held": True, "preempted": True}, "a person", "fail", False),
        ({"code": 1, "held": True}, "crash", "again", True),
        ({"code": 75, "preempted": True, "strikes": 9}, "preempted", "again", False),
        ({"code": NAN, "preempted": True, "nonfinite_before": True}, "preempted", "again", False),
        ({"code": NAN, "strikes": 3}, "not a number: once more", "again", True),
        ({"code": NAN, "nonfinite_before": True, "progressed": True}, "not a number, again", "fail", False),
        ({"code": NODE, "all_blamed": True, "strikes": 3}, "no node is fit", "fail", False),
        ({"code": NODE}, "a node is not fit", "again", True),
        ({"code": NODE, "strikes": 3}, "too often", "fail", True),
        ({"code": HANG, "warned": True}, "hang", "again", True),
        ({"code": HANG, "strikes": 3}, "too often", "fail", True),
        ({"code": 75, "warned": True}, "time limit", "again", True),
        ({"code": 75, "warned": True, "strikes": 3}, "too often", "fail", True),
        ({"code": 75, "warned": True, "strikes": 3, "progressed": True}, "time limit", "again", True),
        ({"code": 75}, "stopped", "again", True),
        ({"code": 5}, "storage", "again", True),
        ({"code": 6, "strikes": 3}, "too often", "fail", True),
        ({"code": 1}, "crash", "again", True),
        ({"code": 1, "strikes": 3}, "too often", "fail", True),
        ({"code": 137}, "crash", "again", True),
    ],
)
def test_decisions(ended: dict[str, Any], why: str, action: str, counted: bool) -> None:
    decision = decide(Ended(**ended))
    assert decision.why.startswith(why) and (decision.action, decision.counted) == (action, counted)


def test_nodes_are_left_out_and_checkpoints_set_aside() -> None:
    bad = frozenset({"n2"})
    assert decide(Ended(HANG, blamed=bad)).exclude == decide(Ended(NODE, blamed=bad)).exclude == bad
    assert decide(Ended(errors.CRASH, blamed=bad)).exclude == frozenset()
    everybody = decide(Ended(NODE, blamed=frozenset({"n1", "n2"}), all_blamed=True))
    assert everybody.action == "fail" and not everybody.exclude
    assert decide(Ended(NAN)).back and not decide(Ended(HANG)).back


def test_who_is_to_blame_for_silence() -> None:
    nodes = frozenset({"n1", "n2", "n3"})
    assert job.blame({"n1": "backward", "n3": "backward"}, nodes) == {"n2"}
    assert job.blame({"n1": "backward", "n2": "data", "n3": "backward"}, nodes) == {"n2"}
    assert job.blame({"n1": "backward", "n2": "backward", "n3": "backward"}, nodes) == frozenset()
    # names that SLURM has not
    assert job.blame({"x1": "data", "x2": "backward", "x3": "backward"}, nodes) == frozenset()
    assert job.blame({}, nodes) == frozenset() and job.blame({}, frozenset({"n1"})) == {"n1"}


def attempt(name: str, done: int, **end: Any) -> attempts.Attempt:
    start = {"progress": Progress("steps", done, 100).to_json(), "nodes": []}
    return attempts.Attempt(
        name, start, {"counted": True, "exclude": [], **end} if end.get("counted", True) is not None else None
    )


def test_strikes_are_counted_in_a_row_without_progress() -> None:
    lost = attempts.Attempt("7.1", attempt("7.1", 20).start, None)
    tried = [attempt("7.0", 0), attempt("7.1", 20), lost, attempt("7.2", 20, counted=False)]
    assert attempts.strikes(tried, Progress("steps", 20, 100)) == 2
    assert attempts.strikes(tried, Progress("steps", 30, 100)) == 0
    assert attempts.strikes(tried[:1], Progress("steps", 0, 100)) == 1


PIPELINE = """
name: mine
folder: FOLDER
values: {data: my data}
steps:
  describe:
    {command: "describe '$data/train' --engine replay --set path=a.jsonl --column description.a", tasks: 12, gpus: 1}
  train: {command: "train a.yaml", nodes: 2-4, gpus: 8, memory: 64G, after: [describe]}
"""


def plan_in(folder: Path, text: str = PIPELINE) -> Any:
    path = folder / "pipeline.yaml"
    path.write_text(text.replace("FOLDER", str(folder)))
    return load_plan(path)


def test_scripts_are_those_of_the_folder_with_settings_filled_in(tmp_path: Path) -> None:
    plan, profile = plan_in(tmp_path), load_profile("default")
    text = render(plan, plan.jobs["describe"], profile, root=tmp_path, tasks=[5, 6, 7, 9], offset=5)
    assert "#SBATCH --array=0-2,4\n" in text and "OFFSET=5\n" in text and "TASKS=12\n" in text
    assert "COMMAND=(describe 'my data/train' --engine replay --set path=a.jsonl --column description.a)\n" in text
    tail = (SCRIPTS / "describe.sbatch").read_text().partition("# <<< settings")[2]
    assert text.endswith(tail) and tail.strip()
    site = profile.model_copy(update={"gpus": "--gres=gpu:a100:{n}", "throttle": 2, "account": "ours", "lead_s": 300})
    text = render(plan, plan.jobs["train"], site, root=tmp_path, tasks=[0], offset=0)
    for line in (
        "--nodes=2-4",
        "--gres=gpu:a100:8",
        "--mem=64G",
        "--account=ours",
        "--signal=B:USR1@300",
        "--requeue",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}\n" in text, line
    assert "--array" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("$data/train", "$dta/train"), "$dta is no entry of `values`"),
        (("nodes: 2-4", "nodes: 4-2"), "expected a number of nodes"),
        (("nodes: 2-4", "tasks: 3"), "only describe, translate, featurise are shared"),
        (("tasks: 12", "nodes: 12"), "only train, evaluate run on several nodes"),
        (("after: [describe]", "after: [decsribe]"), "no step above it"),
        (("memory: 64G", "memroy: 64G"), "did you mean 'memory'"),
        (("after: [describe]", "after: [x]"), "pipeline.yaml: step 'train' comes after 'x', no step above it"),
    ],
)
def test_wrong_pipelines_name_their_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_in(tmp_path, PIPELINE.replace(*change))
    assert message in str(refused.value) and "pipeline.yaml:" in str(refused.value)


@pytest.mark.parametrize("name", sorted(PROFILES.files()))
def test_shipped_profiles_are_valid(name: str) -> None:
    load_profile(name)


def test_shipped_pipelines_are_valid() -> None:
    found = {path.stem: len(load_plan(path).jobs) for path in (SCRIPTS.parent / "configs" / "pipelines").glob("*.yaml")}
    assert found == {"emoji14": 12, "scale": 4}


def test_a_container_is_put_before_what_runs_on_nodes_alone(tmp_path: Path) -> None:
    """The batch script itself needs SLURM's commands, which images have not."""
    plan, site = plan_in(tmp_path), load_profile("example")
    text = render(plan, plan.jobs["train"], site, root=tmp_path, tasks=[0], offset=0)
    assert f"PREFIX=({site.prefix})\nexport " in text and "\nmodule load apptainer\nCOMMAND=" in text
    shared = (SCRIPTS / "job.sh").read_text()
    for script in ("ranks.sh", "task.sh"):
        assert f'${{PREFIX[@]+"${{PREFIX[@]}}"}} bash "$SCRIPTS/{script}"' in shared


def test_every_setting_of_a_profile_is_in_the_docs() -> None:
    text = (SCRIPTS.parent / "docs" / "slurm.md").read_text()
    missing = [name for name in (*Profile.model_fields, *Preflight.model_fields) if f"`{name}`" not in text]
    assert not missing


@pytest.mark.parametrize(
    ("code", "ranks", "combined"),
    [
        (0, [0, 0], 0),
        (0, [75, 75], 75),
        (1, [1, 9], 9),
        (143, [75, 75], 75),
        (1, [75, 1], 75),
        (1, [1, 1], 1),
        (137, [], 137),
        (NODE, [1], NODE),
        (1, [2, 9], 2),
    ],
)
def test_the_exit_code_that_tells_most(tmp_path: Path, code: int, ranks: list[int], combined: int) -> None:
    for rank, own in enumerate(ranks):
        (tmp_path / f"rank-{rank}.json").write_text(f'{{"code": {own}}}')
    assert job.combined(code, tmp_path) == combined


def test_a_node_with_a_problem_is_told_from_those_that_are_killed_for_it(tmp_path: Path) -> None:
    for node, problems in (("n1", []), ("n2", ["no disk"])):
        (tmp_path / f"node-{node}.json").write_text(json.dumps({"node": node, "problems": problems}))
    assert job.combined(143, tmp_path) == NODE and job.bad_nodes(tmp_path, frozenset({"n1", "n2"})) == {"n2"}


def test_the_newest_checkpoint_is_set_aside_unless_it_is_the_selected_or_the_only_one(tmp_path: Path) -> None:
    for step in (10, 20):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "best.json").write_text('{"step": 20}')
    assert job.step_back([tmp_path]) == []
    damaged = json.dumps(store.with_digest({"step": 20})).replace("20", "10")
    (tmp_path / "best.json").write_text(damaged)  # which one is selected cannot be told
    assert job.step_back([tmp_path]) == []
    (tmp_path / "best.json").write_text('{"step": 10}')
    assert job.step_back([tmp_path]) == [tmp_path / "nonfinite" / "step-00000020"]
    assert job.step_back([tmp_path]) == [] and (tmp_path / "checkpoints" / "step-00000010").exists()


def test_preflight_names_the_node_that_is_not_like_the_others() -> None:
    sound = {"problems": [], "software": {"torch": "2.13", "ccr_dist": "aa"}}
    records = [{"node": "n1", **sound}, {"node": "n2", **sound}, {"node": "n3", "problems": ["no disk"]}]
    assert preflight.compare(records, None) == [("n3", "no disk")]
    records[1] = {"node": "n2", "problems": [], "software": {"torch": "2.12", "ccr_dist": "aa"}}
    assert preflight.compare(records[:2], sound["software"]) == [("n2", "another environment: torch is 2.12, not 2.13")]


@pytest.mark.parametrize(
    ("took", "warned"), [(None, "was not measured yet"), (40.0, "took 40.0 s, the site gives 30 s"), (4.0, "")]
)
def test_a_warning_that_leaves_no_time_to_save_is_told(tmp_path: Path, took: float | None, warned: str) -> None:
    plan, checked = plan_in(tmp_path), checks.Checked({"train": Uses(steps=1)})
    if took is not None:
        path = attempts.path_of(plan.run, "train", 0)
        attempts.write(path, {"event": "start", "attempt": "7.0"})
        attempts.write(path, {"event": "end", "attempt": "7.0", "saved_s": took})
    checks.grace(plan, checked, load_profile("default"))
    assert len(checked.notes) == bool(warned) and warned in "".join(checked.notes)


def test_to_have_begun_is_no_progress(tmp_path: Path) -> None:
    data = jobs.captions(tmp_path / "data", rows=(3, 2, 2))
    facts = Uses(fills=Table(str(data.root), "caption.xx"))
    assert progress(facts) == Progress("shards", 0, 3)
    folder = data.root / "caption.xx"
    folder.mkdir()
    for generation, rows in ((1, 0), (2, 2), (3, 1)):
        (folder / f"000001.journal.{generation}").write_text("{header}\n" + "{row}\n" * rows)
    (folder / "000000.journal.1").write_text("{header}\n")
    (folder / "000002.json").touch()
    assert progress(facts) == Progress("shards", 1, 3, 2)
    assert progress(facts, (1, 2)) == Progress("shards", 0, 1, 2) and progress(facts, (0, 2)) == Progress(
        "shards", 1, 2, 0
    )


def test_a_job_whose_first_line_is_damaged_is_not_overlooked(tmp_path: Path) -> None:
    ledger = Ledger.read(tmp_path)
    ledger.write(event="submitting", token="t", step="a", tasks=[0], offset=0)
    ledger.write(event="submitted", token="t", job="7")
    assert Ledger.read(tmp_path).jobs() == ["7"]
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(DataError, match=r"jobs\.jsonl: damaged in line 1, .*what job 7 is"):
        Ledger.read(tmp_path)


def test_a_failed_step_is_named_with_the_error_of_its_log(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    step = plan.jobs["train"]
    plan = dataclasses.replace(
        plan, pipeline=plan.pipeline.model_copy(update={"folder": str(tmp_path)}), jobs={"train": step}
    )
    folder = attempts.step_folder(plan.run, "train")
    (folder / "logs").mkdir(parents=True)
    path = attempts.path_of(plan.run, "train", 0)
    path.parent.mkdir(parents=True)
    attempts.write(path, {"event": "start", "attempt": "a.0"})
    (folder / "logs/a_0.log").write_text("x\nerror: data/train: damaged\nattempt a.0 of train: exit code 3: ...\n")
    assert local._ending(plan, step, DataError.exit_code) == "failed: data/train: damaged"
    assert local._ending(plan, step, errors.STOPPED) == "stopped; the same command resumes it"
    (folder / "logs/a_0.log").unlink()
    assert local._ending(plan, step, DataError.exit_code) == "failed"
