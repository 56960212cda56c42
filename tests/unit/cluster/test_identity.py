"""When a step of a pipeline is done: what it names, and what comes before it, count as much as its command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist.cluster import attempts, identity, job, ledger, local, submit
from ccr_dist.cluster.ledger import Ledger, Submitted
from ccr_dist.cluster.pipeline import Plan, load_plan
from ccr_dist.cluster.slurm import Queued
from ccr_dist.cluster.status import status
from ccr_dist.errors import ConfigError
from tests import jobs

BASE = "method: {name: english}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("steps: 1\n")
    (tmp_path / "a.yaml").write_text("base: base.yaml\nname: a\nnotes: said.txt\n")
    (tmp_path / "said.txt").write_text("one")
    (tmp_path / "words.txt").write_text("one")
    return tmp_path


STEPS: dict[str, dict[str, Any]] = {
    "first": {"command": "config show a.yaml"},
    "second": {"command": "methods"},
    "third": {"command": "doctor --out=words.txt", "after": ["first"]},
    "other": {"command": "shards inspect words.txt", "after": []},
}


def plan(folder: Path, **changes: dict[str, Any]) -> Plan:
    steps = {name: {**step, **changes.get(name, {})} for name, step in STEPS.items()}
    (folder / "p.yaml").write_text(yaml.safe_dump({"name": "p", "folder": "runs", "steps": steps}, sort_keys=False))
    return load_plan(folder / "p.yaml")


def carry_out(plan: Plan, *steps: str, number: int = 1, code: int = 0) -> None:
    """Attempts of these steps, without their commands."""
    ledger.record(plan, None, None)
    for step in steps:
        here = job.Here(plan.run, step, 0, 1, f"{number}.0", 3, plan.run / "notes")
        job.begin(here, plan.jobs[step].command, nodes=["n"], job=None)
        job.end(here, plan.jobs[step].command, code=code, heard="", job=None)


def undone(plan: Plan) -> list[str]:
    standing = identity.Standing(plan)
    return [step for step in plan.jobs if standing.undone(step)]


def edit(path: str, text: str) -> Callable[[Path], Plan]:
    def change(folder: Path) -> Plan:
        (folder / path).write_text(text)
        return plan(folder)

    return change


CHANGES = [
    (lambda folder: plan(folder), []),
    (lambda folder: plan(folder, first={"command": "config show a.yaml seed=2"}), ["first", "second", "third"]),
    (lambda folder: plan(folder, second={"command": "methods --json"}), ["second"]),
    (lambda folder: plan(folder, second={"memory": "4G"}), []),  # what SLURM is asked for decides nothing
    (edit("a.yaml", "base: base.yaml\nname: b\nnotes: said.txt\n"), ["first", "second", "third"]),
    (edit("a.yaml", "# the same\nnotes: said.txt\nname: a\nbase: [base.yaml]\n"), []),
    (edit("base.yaml", "steps: 2\n"), ["first", "second", "third"]),  # a base of the file that is named
    (edit("said.txt", "two"), ["first", "second", "third"]),  # a file that the file names
    (edit("words.txt", "two"), ["other"]),  # of `third` it is the output
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_what_makes_a_step_run_again(folder: Path, number: int) -> None:
    carry_out(plan(folder), *STEPS)
    change, again = CHANGES[number]
    changed = change(folder)
    assert undone(changed) == again
    ledger.record(changed, None, None)
    states = {step["step"]: step["states"] for step in status(changed.run)["steps"]}
    assert states == {step: {"outdated" if step in again else "done": 1} for step in STEPS}


def test_what_comes_after_is_done_again_when_a_step_was(folder: Path) -> None:
    """Also where the step's command is what it was: its output may be another one."""
    carry_out(plan(folder), *STEPS)
    carry_out(plan(folder), "first", number=2)
    assert undone(plan(folder)) == ["second", "third"]
    carry_out(plan(folder), "second", "third", number=2)
    assert undone(plan(folder)) == []


def test_a_change_that_was_tried_and_taken_back_is_not_done(folder: Path) -> None:
    """What failed may have written half of its output over the other one."""
    carry_out(plan(folder), *STEPS)
    carry_out(plan(folder, first={"command": "config show a.yaml seed=2"}), "first", number=2, code=2)
    assert undone(plan(folder)) == ["first", "second", "third"]


def test_a_file_that_a_step_makes_is_no_input_of_the_pipeline(folder: Path) -> None:
    made = {
        "second": {"command": "checkpoint convert a.yaml w.safetensors"},
        "third": {"command": "shards inspect w.safetensors"},
    }
    carry_out(plan(folder, **made), *STEPS)
    (folder / "w.safetensors").write_bytes(b"made")
    assert undone(plan(folder, **made)) == []


def test_a_file_that_is_edited_while_a_step_waits_counts_as_it_was_read(folder: Path) -> None:
    carry_out(plan(folder), "first")
    (folder / "a.yaml").write_text("name: b\n")  # after `first` has read it
    carry_out(plan(folder), "second", "third", "other")
    assert undone(plan(folder)) == ["first", "second", "third"]


def test_a_run_folder_of_earlier_versions_keeps_what_is_done(folder: Path) -> None:
    carry_out(plan(folder), *STEPS)
    for path in (folder / "runs").rglob("attempts/*.jsonl"):
        lines = [
            {k: v for k, v in json.loads(line).items() if k not in ("identity", "crc")}
            for line in path.read_text().splitlines()
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert undone(plan(folder)) == []
    changed = plan(folder, first={"command": "config show a.yaml seed=2"})
    assert undone(changed) == ["first", "second", "third"]
    carry_out(changed, "first", number=2)
    assert undone(changed) == ["second", "third"]


def test_a_column_that_was_removed_is_made_again(tmp_path: Path) -> None:
    data = jobs.captions(tmp_path / "data", rows=(2,))
    column = data.column("caption.en").name
    steps = {"import": {"command": f"replay {data.root} x.jsonl --column {column}"}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "folder": str(tmp_path / "runs"), "steps": steps}))
    own = load_plan(tmp_path / "p.yaml")
    carry_out(own, "import")
    assert undone(own) == []
    for path in (data.root / column).iterdir():
        path.unlink()
    assert undone(own) == ["import"]


def test_a_queued_pipeline_that_changed_is_refused(folder: Path) -> None:
    before = identity.Standing(plan(folder))
    known = Ledger(
        folder / "runs" / "p",
        [Submitted("t", step, [0], 0, job=str(n), asked=submit._asked(before, step)) for n, step in enumerate(STEPS)],
    )
    queued = [
        Queued(str(n), None, state, "", "", "")
        for n, state in enumerate(("RUNNING", "PENDING", "COMPLETED", "PENDING"))
    ]

    def refused(changed: Plan) -> str:
        try:
            submit._forbid_changed(known, queued, identity.Standing(changed))
        except ConfigError as error:
            return str(error)
        return ""

    assert refused(plan(folder)) == ""
    assert refused(plan(folder, third={"command": "methods"})) == ""  # over
    changes: list[tuple[Callable[[Path], Plan], tuple[str, ...]]] = [
        (lambda folder: plan(folder, first={"command": "config show a.yaml seed=2"}), ("first", "second")),
        (lambda folder: plan(folder, second={"memory": "4G"}), ("second",)),
        (edit("words.txt", "two"), ("other",)),
    ]
    for change, steps in changes:
        said = refused(change(folder))
        for step in STEPS:
            assert (f"step {step} (job" in said) == (step in steps), (step, said)
        assert "p.yaml:" in said and "ccr-dist cancel" in said


def test_alone_what_comes_after_an_edited_step_runs_again(folder: Path) -> None:
    """With the real commands."""
    steps = {
        "first": {"command": "shards build texts --out $out file=t.jsonl name=t keep_apart=false -q"},
        "second": {"command": "methods"},
    }
    (folder / "t.jsonl").write_text('{"id": "a", "text": "x"}\n')
    (folder / "p.yaml").write_text(
        yaml.safe_dump({"name": "q", "folder": "runs", "values": {"out": "one"}, "steps": steps})
    )
    for override, again in (("out=one", ["first", "second"]), ("out=one", []), ("out=two", ["first", "second"])):
        said: list[str] = []
        assert local.run(load_plan("p.yaml", [f"values.{override}"]), said.append) == 0, said
        assert [line.partition(":")[0] for line in said if not line.endswith("done already")] == again
    assert len(attempts.read(folder / "runs/q/steps/second/attempts/0.jsonl")) == 2
