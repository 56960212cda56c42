"""Damaged records of a pipeline: one sentence that names the file and says what to do, or as good as not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.cluster import attempts, job, ledger, local
from ccr_dist.cluster.ledger import Ledger
from ccr_dist.cluster.pipeline import Plan, load_plan
from ccr_dist.cluster.status import status
from ccr_dist.errors import CRASH, ConfigError, DataError

SHAPES = [b"", b"\x00\xff" * 50, b"[]\n", b"3\n", b"null\n", b"{}\n", b'{"a": 1}\n']


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A pipeline whose step was done."""
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(yaml.safe_dump({"name": "p", "folder": "runs", "steps": {"a": {"command": "methods"}}}))
    made = load_plan("p.yaml")
    ledger.record(made, None, None)
    attempt(made, "7.0", 0)
    return made


def attempt(plan: Plan, name: str, code: int) -> None:
    here = job.Here(plan.run, "a", 0, 1, name, 3, plan.run / "notes")
    job.begin(here, ["methods"], nodes=["n"], job=None)
    job.end(here, ["methods"], code=code, heard="", job=None)


def changes(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The line with each of its values of another type."""
    values: tuple[Any, ...] = (None, [1], {"a": 1}, "x", 1.5)
    return [{**line, key: value} for key in line for value in values if type(value) is not type(line[key])]


@pytest.mark.parametrize("content", SHAPES)
@pytest.mark.parametrize("command", ["status", "cancel", "resume"])
def test_a_damaged_record_says_where_to_start(plan: Plan, command: str, content: bytes) -> None:
    (plan.run / "record.json").write_bytes(content)
    done = CliRunner().invoke(app, [command, str(plan.run)])
    assert done.exit_code == DataError.exit_code
    assert "record.json: damaged, it does not say where the pipeline was submitted; remove it" in done.output


@pytest.mark.parametrize("name", ["pipeline.yaml", "profile.yaml"])
def test_a_damaged_copy_says_that_it_is_one(plan: Plan, name: str) -> None:
    (plan.run / name).write_bytes(b"\x00\xff")
    with pytest.raises(ConfigError, match=rf"{name}:1: .*\nThis is a copy of what was submitted: start your own file"):
        ledger.recorded(plan.run)


def test_a_line_of_a_ledger_that_is_none_is_never_overlooked(plan: Plan) -> None:
    """Else a job that SLURM has would be queued once more."""
    known, path = Ledger.read(plan.run), plan.run / "jobs.jsonl"
    known.write(event="submitting", token="t", step="a", tasks=[0], offset=0)
    known.write(event="submitted", token="t", job="7")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    checked = [{key: value for key, value in line.items() if key not in ("crc", "time")} for line in lines]
    for number, line in enumerate(checked):
        for other in [*changes(line), {}, {"event": "else"}, *({k: line[k] for k in line if k != x} for x in line)]:
            wrong = [other if number == n else each for n, each in enumerate(checked)]
            path.write_text("".join(json.dumps(each) + "\n" for each in wrong))
            with pytest.raises(DataError, match=r"jobs\.jsonl: .*see in the site's queue wh.*, then take"):
                Ledger.read(plan.run)
    path.write_bytes(b"\x00\xff\n")
    with pytest.raises(DataError, match="damaged in line 1, so that a job may be unknown; see in the site's queue"):
        local.run(plan, print, dry_run=True)


def test_a_line_of_an_attempt_that_is_none_counts_as_an_attempt_that_was_killed(plan: Plan) -> None:
    path = attempts.path_of(plan.run, "a", 0)
    begun, ended = (json.loads(line) for line in path.read_text().splitlines())
    for line in (begun, ended):
        line.pop("crc")
    assert [each.done for each in attempts.read(path)] == [True]
    for other in [*changes(ended), *({k: ended[k] for k in ended if k != x} for x in ended)]:
        path.write_text(json.dumps(begun) + "\n" + json.dumps(other) + "\n")
        status(plan.run)
        attempt(plan, "8.0", CRASH)
    for other in [*changes(begun), *({k: begun[k] for k in begun if k != x} for x in begun)]:
        path.write_text(json.dumps(other) + "\n" + json.dumps(ended) + "\n")
        status(plan.run)
        attempt(plan, "8.0", CRASH)
    path.write_bytes(b"\x00\xff\n" + json.dumps({"event": "start", "attempt": 3}).encode() + b"\n")
    assert attempts.read(path) == [] and attempts.damaged(path) == [1, 2]
    [step] = status(plan.run)["steps"]
    assert step["states"] == {"none": 1}
    assert step["why"] == [f"{path}: damaged in line 1, 2, which is left out: what was done may be done once more"]


@pytest.mark.parametrize("content", [*SHAPES, b'{"code": "x"}', b'{"code": 5'])
def test_a_rank_that_left_no_code_has_crashed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rank-0.json").write_bytes(content)
    assert job.combined(1, tmp_path) == CRASH
    (tmp_path / "rank-1.json").write_text('{"code": 7}')
    assert job.combined(1, tmp_path) == 7
