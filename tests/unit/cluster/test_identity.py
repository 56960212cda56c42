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
from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError
from tests import jobs

BASE = "method: {name: english}\n"
CONFIG = Path(__file__).parents[3] / "configs/demo/dasd.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("steps: 1\n")
    (tmp_path / "a.yaml").write_text("base: base.yaml\nname: a\nnotes: said.txt\n")
    (tmp_path / "said.txt").write_text("one")
    (tmp_path / "words.txt").write_text("one")
    (tmp_path / "other.txt").write_text("made")
    (tmp_path / "text.txt").write_text("one")
    return tmp_path


STEPS: dict[str, dict[str, Any]] = {
    "first": {"command": "config show a.yaml"},
    "second": {"command": "methods"},
    "third": {"command": "shards convert replay said.txt --out=words.txt", "after": ["first"]},
    "other": {"command": "shards convert replay text.txt --out other.txt", "after": []},
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
    (edit("text.txt", "two"), ["other"]),
    (edit("words.txt", "two"), []),  # it is the output of `third`
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
        "second": {"command": "shards convert replay a.yaml --out w.txt"},
        "third": {"command": "shards convert replay w.txt --out v.txt"},
    }
    carry_out(plan(folder, **made), *STEPS)
    for name in ("w.txt", "v.txt"):
        (folder / name).write_bytes(b"made")
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
        (edit("text.txt", "two"), ("other",)),
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


def planned(plan: Plan) -> dict[str, str]:
    return identity.Standing(plan).planned


def of(folder: Path, *commands: str) -> Plan:
    steps = {f"s{number}": {"command": command} for number, command in enumerate(commands)}
    (folder / "p.yaml").write_text(yaml.safe_dump({"name": "p", "folder": "runs", "steps": steps}, sort_keys=False))
    return load_plan(folder / "p.yaml")


def test_files_in_the_folder_that_a_step_builds_in_are_its_inputs_all_the_same(folder: Path) -> None:
    """The whole project as `--out`: only what a dataset's folder holds is made there."""
    (folder / "t.jsonl").write_text('{"id": "a", "text": "x"}\n')
    commands = ("shards build texts --out . file=t.jsonl name=t keep_apart=false", "config show a.yaml")
    before = planned(of(folder, *commands))
    for made in ("dataset.json", "recipe.json", "train/dataset.json", "train/caption.en/column.json"):
        (folder / made).parent.mkdir(parents=True, exist_ok=True)
        (folder / made).write_text("{}")
    assert planned(of(folder, *commands)) == before
    (folder / "a.yaml").write_text("name: b\n")
    after = planned(of(folder, *commands))
    assert after["s0"] == before["s0"] and after["s1"] != before["s1"]
    (folder / "t.jsonl").write_text('{"id": "a", "text": "y"}\n')
    assert planned(of(folder, *commands))["s0"] != before["s0"]


WAITING = Queued("1", None, "PENDING", "", "", "")


def test_a_file_that_an_earlier_step_makes_is_known_by_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = jobs.captions(tmp_path / "data", rows=(2,))
    (tmp_path / "in.txt").write_text("one")
    commands = ("shards convert replay in.txt --out ./x.jsonl", f"replay {data.root} x.jsonl --column caption.de")
    own = of(tmp_path, *commands)
    before, asked = planned(own), submit._asked(identity.Standing(own), "s1")
    (tmp_path / "x.jsonl").write_text("made")
    assert planned(own) == before
    known = Ledger(own.run, [Submitted("t", "s1", [0], 0, job="1", asked=asked)])
    submit._forbid_changed(known, [WAITING], identity.Standing(own))
    (tmp_path / "in.txt").write_text("two")
    after = planned(own)
    assert after["s0"] != before["s0"] and after["s1"] != before["s1"]
    alone = [planned(of(tmp_path, commands[1]))["s0"]]  # without the step before it is a file like any other
    (tmp_path / "x.jsonl").write_text("another")
    alone.append(planned(of(tmp_path, commands[1]))["s0"])
    assert alone[0] != alone[1]


def test_what_a_done_step_made_is_made_again_when_it_is_gone(folder: Path) -> None:
    own = of(folder, "shards convert replay words.txt --out 'my x.jsonl'", "methods")
    carry_out(own, "s0", "s1")
    assert undone(own) == ["s0", "s1"]
    (folder / "my x.jsonl").write_text("made")
    assert undone(own) == []


def test_a_run_without_its_weights_is_trained_again(folder: Path) -> None:
    own = of(folder, f"train {CONFIG} out=o")
    carry_out(own, "s0")
    (folder / "o" / "dasd-s0").mkdir(parents=True)
    assert undone(own) == ["s0"]
    (folder / "o" / "dasd-s0" / "model.safetensors").write_text("made")
    assert undone(own) == []


def test_what_lies_in_the_pipelines_own_folder_is_no_input(folder: Path) -> None:
    """It changes as the pipeline runs."""
    file = folder / "runs" / "p" / "steps.yaml"
    file.parent.mkdir(parents=True)
    seen = []
    for text in ("one: 1", "two: 2"):
        file.write_text(text)
        seen.append(planned(of(folder, "config show runs/p/steps.yaml")))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("config show a.yaml notes=other.txt", "other.txt"),  # an override that names another file
        ("config show 'my config.yaml'", "my config.yaml"),
        ("config show below/b.yaml", "below/notes.txt"),  # named from the folder of the file that names it
        ("featurise data --backbone dual --set weights=w --column feature.x", "w/model.safetensors"),
        ("featurise data --backbone dual --set weights=w.safetensors --column feature.x", "w.safetensors"),
        ("replay data x.jsonl --column caption.de", "x.jsonl"),
        ("describe data --engine replay --set path=x.jsonl --prompt ask.yaml --column description.x", "x.jsonl"),
        ("report w --out r", "w/results/test.json"),
        ("shards seal data", "data/dataset.json"),
        ("shards seal data", "data/train/dataset.json"),
        ("featurise data --backbone dual --from caption.en --column feature.x", "data/caption.en/column.json"),
    ],
)
def test_a_step_is_another_when_what_it_reads_is(folder: Path, command: str, file: str) -> None:
    (folder / "ask.yaml").write_text("views: {a: {text: Say.}}\n")
    (folder / "below").mkdir()
    (folder / "below/b.yaml").write_text("notes: notes.txt\n")
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = []
    for text in ("one: 1", "two: 2", "one: 1"):
        path.write_text(text)
        seen.append(planned(of(folder, command))["s0"])
    assert seen[0] == seen[2] != seen[1]


def by_the_earlier_rule(plan: Plan) -> dict[str, str]:
    """The digests of attempts `1.0` as the version before wrote them, of steps whose files did not count."""
    found: dict[str, str] = {}
    for name, each in plan.jobs.items():
        after = {before: [("1.0", found[before])] for before in each.after}
        found[name] = store.digest_json({"command": each.command, "files": {}, "after": after})
    return found


def test_what_was_done_or_queued_under_the_earlier_rule_stays_so(folder: Path) -> None:
    """There a file below any output folder did not count."""
    (folder / "t.jsonl").write_text('{"id": "a", "text": "x"}\n')
    commands = (
        "shards build texts --out . file=t.jsonl name=t",
        "shards convert replay words.txt --out x.txt",
        "shards convert replay x.txt --out y.txt",
    )
    for made in ("dataset.json", "recipe.json", "x.txt", "y.txt"):
        (folder / made).write_text("made")
    own = of(folder, *commands)
    carry_out(own, *own.jobs)
    digests = by_the_earlier_rule(own)
    for path in (folder / "runs").rglob("attempts/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line.pop("crc")
            if "identity" in line:
                line["identity"] = digests[path.parents[1].name]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert undone(own) == []
    asked = {**submit._asked(identity.Standing(own), "s0"), "planned": digests["s0"]}
    known = Ledger(own.run, [Submitted("t", "s0", [0], 0, job="1", asked=asked)])
    submit._forbid_changed(known, [WAITING], identity.Standing(own))
    assert undone(of(folder, commands[0] + " limit=1", *commands[1:])) == ["s0", "s1", "s2"]
