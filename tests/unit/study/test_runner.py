"""Runs of a study, acted by small scripts: side by side, skipped, failed, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ccr_dist.data.storage.checked import with_digest
from ccr_dist.data.storage.store import pretty_json, sha256_file
from ccr_dist.errors import CRASH, DONE, STOPPED, ConfigError, DataError, HeldError
from ccr_dist.study import runner
from ccr_dist.study.plan import StudyPlan, state
from ccr_dist.study.runner import run_study
from tests.studies import ranks, result_of, study

ACTOR = """
import json, os, pathlib, signal, sys, time
name, result, behaviour, trace = sys.argv[1:]
note = lambda what: open(trace, "a").write(json.dumps([what, name, time.time()]) + "\\n")
note("begin")
if behaviour == "fail":
    print("line one\\nthe reason of " + name, flush=True)
    sys.exit(7)
if behaviour == "held":
    sys.exit(14)
if behaviour == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (note("stopped"), os._exit(75)))
    open(trace + "." + name, "w").close()
    time.sleep(60)
time.sleep(0.3)
if behaviour == "work":
    path = pathlib.Path(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    (path.parent.parent / "checkpoints").mkdir()
note("end")
"""


class Actor(subprocess.Popen):
    exitcode = property(subprocess.Popen.poll)


class Actors:
    """In place of `Warm`: processes of the script."""

    def __init__(self, script: Path) -> None:
        self.script = script

    def start(self, arguments: list[str], log: Path) -> Actor:
        with log.open("ab") as file:
            return Actor([sys.executable, str(self.script), *arguments], stdout=file, stderr=file)


class Acted:
    """Runs are acted; `trace()` says what began and ended, in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.file, self.behaviour = folder, folder / "trace", dict[str, str]()
        script = folder / "actor.py"
        script.write_text(ACTOR)
        monkeypatch.setattr(
            runner,
            "command_of",
            lambda run, threads: [run.name, str(run.result), self.behaviour.get(run.name, "work"), str(self.file)],
        )
        monkeypatch.setattr(runner, "Warm", lambda threads: Actors(script))
        self.said: list[str] = []

    def run(self, plan: StudyPlan, jobs: int = 2, **options: Any) -> int:
        self.said.clear()
        return run_study(plan, jobs=jobs, say=self.said.append, **options)

    def trace(self, what: str) -> list[str]:
        lines = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        return [name for kind, name, _ in lines if kind == what]

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def acted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Acted:
    return Acted(tmp_path, monkeypatch)


def complete(plan: StudyPlan) -> None:
    for run in (*plan.first, *plan.runs):
        result_of(run, *ranks(0, 5))


def test_runs_are_carried_out_together_and_in_order(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out")
    assert acted.run(plan, jobs=2) == DONE
    assert acted.trace("begin")[0] == "english-s0" and sorted(acted.trace("end")) == sorted(
        run.name for run in (*plan.first, *plan.runs)
    )
    lines = [json.loads(line) for line in acted.file.read_text().splitlines()]
    kinds = [kind for kind, _, _ in lines]
    assert kinds[:2] == ["begin", "end"]  # nothing stands beside what the others stand on
    most = max(kinds[:n].count("begin") - kinds[:n].count("end") for n in range(len(kinds) + 1))
    assert most == 2
    assert "6 runs, 0 complete, 6 to do; 2 at a time" in acted.said[0]
    assert (
        acted.said[1].startswith("[1/6] english-s0: done")
        and "ETA" in acted.said[1]
        and acted.said[6].startswith("[6/6]")
    )
    assert (tmp_path / "out/logs/dasd-s1.log").read_text().startswith("$ ")


def test_complete_runs_are_skipped(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out")
    complete(plan)
    plan.runs[2].result.unlink()
    (plan.runs[2].config.folder / "checkpoints").mkdir()
    assert acted.run(plan, dry_run=True) == DONE and acted.trace("begin") == []
    assert sum(line.startswith("complete ") for line in acted.said) == 5 and "interrupted  dasd-s1" in acted.text
    (plan.runs[2].config.folder / "checkpoints").rmdir()
    assert acted.run(plan) == DONE and acted.trace("begin") == ["dasd-s1"]


@pytest.mark.parametrize("within", ["", "/", "/model.safetensors"])
def test_what_stands_on_a_run_that_is_made_again_is_measured_again(
    configs: Path, tmp_path: Path, acted: Acted, within: str
) -> None:
    on = [f"backbone.weights={tmp_path / 'out/english-s0'}{within}"]
    rows = [
        {"name": "zero", "config": "clip.yaml", "overrides": on},
        {"name": "other", "config": "clip.yaml"},
        {"name": "dasd", "config": "dasd.yaml", "overrides": on},
    ]
    plan = study(configs, tmp_path / "out", rows=rows, comparisons=[])
    complete(plan)
    plan.first[0].result.unlink()
    assert acted.run(plan, dry_run=True) == DONE and "outdated     zero-s0" in acted.text
    assert acted.run(plan) == DONE and acted.trace("begin") == ["english-s0", "zero-s0"]


def test_a_run_that_was_trained_on_other_weights_is_refused(configs: Path, tmp_path: Path, acted: Acted) -> None:
    english = tmp_path / "english.safetensors"
    save_file({"backbone.x": torch.zeros(2)}, english)
    row = {"name": "dasd", "config": "dasd.yaml", "overrides": [f"backbone.weights={english}"]}
    plan = study(configs, tmp_path / "out", rows=[row], comparisons=[])
    run, _ = plan.runs
    result_of(run, *ranks(0, 5))
    kept = {"weights": {"backbone": sha256_file(english)}}
    (run.config.folder / "identity.json").write_bytes(pretty_json(with_digest(kept)))
    assert state(run) == "complete"
    save_file({"backbone.x": torch.ones(2)}, english)
    assert state(run) == "outdated"
    with pytest.raises(ConfigError, match=r"(?s)1 run was trained on .*dasd-s0: backbone.weights.*delete"):
        acted.run(plan)
    assert acted.trace("begin") == []
    english.unlink()
    assert state(run) == "complete"


def test_a_failure_stops_nobody_and_is_told_at_the_end(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out")
    acted.behaviour = {"dasd-s0": "fail"}
    assert acted.run(plan) == 7
    assert sorted(acted.trace("begin")) == sorted(run.name for run in (*plan.first, *plan.runs))
    assert "dasd-s0: FAILED with exit code 7" in acted.text
    end = acted.text[acted.text.index("1 run failed") :]
    assert "dasd-s0: exit code 7" in end and "    | the reason of dasd-s0" in end and "dasd-s0.log" in end
    acted.behaviour = {"bare-s1": "nothing"}  # ends well, without a result
    assert acted.run(study(configs, tmp_path / "other").select(["bare"], None)) == CRASH


def test_a_run_that_another_process_holds_is_no_failure(configs: Path, tmp_path: Path, acted: Acted) -> None:
    rows = [
        {"name": "dasd", "config": "dasd.yaml"},
        {"name": "next", "config": "dasd.yaml", "start_from": "dasd"},
    ]
    plan = study(configs, tmp_path / "out", rows=rows, comparisons=[], first=[])
    acted.behaviour = {"dasd-s0": "held"}
    assert acted.run(plan) == HeldError.exit_code == 14
    assert "dasd-s0: held by another process" in acted.text and "failed" not in acted.text.lower()
    assert "next-s0: not started: it needs dasd-s0, which another process holds" in acted.text
    assert "left to it: dasd-s0; when it has ended, the same command does the rest" in acted.text
    assert sorted(acted.trace("end")) == ["dasd-s1", "next-s1"]
    acted.behaviour |= {"next-s1": "fail"}
    other = study(configs, tmp_path / "again", rows=rows, comparisons=[], first=[])
    assert acted.run(other) == 7 and "next-s1: exit code 7" in acted.text and "left to it: dasd-s0" in acted.text
    acted.behaviour = {"english-s0": "held"}
    assert acted.run(study(configs, tmp_path / "other")) == 14
    assert "5 runs were not started: they need english-s0, which another process holds" in acted.text


def test_a_run_waits_for_the_one_that_it_starts_from(configs: Path, tmp_path: Path, acted: Acted) -> None:
    rows = [
        {"name": "dasd", "config": "dasd.yaml"},
        {"name": "next", "config": "dasd.yaml", "start_from": "dasd"},
        {"name": "last", "config": "dasd.yaml", "start_from": "next"},
    ]
    plan = study(configs, tmp_path / "out", rows=rows, comparisons=[], first=[])
    acted.behaviour = {"dasd-s1": "fail"}
    assert acted.run(plan, jobs=3) == 7
    order = [json.loads(line)[:2] for line in acted.file.read_text().splitlines()]
    for before, after in (("dasd-s0", "next-s0"), ("next-s0", "last-s0")):
        assert order.index(["end", before]) < order.index(["begin", after])
    assert {name for _, name in order} == {"dasd-s0", "dasd-s1", "next-s0", "last-s0"}
    assert "next-s1: not started: it needs dasd-s1, which failed" in acted.text
    assert "last-s1: not started: it needs next-s1" in acted.text


def test_rows_do_not_start_on_a_failed_prerequisite(configs: Path, tmp_path: Path, acted: Acted) -> None:
    acted.behaviour = {"english-s0": "fail"}
    assert acted.run(study(configs, tmp_path / "out")) == 7
    assert acted.trace("begin") == ["english-s0"] and "5 runs were not started" in acted.text


def test_a_stop_request_reaches_the_runs(configs: Path, tmp_path: Path, acted: Acted) -> None:
    acted.behaviour = dict.fromkeys(["zero-s0", "dasd-s0"], "wait")

    def stop() -> None:
        while not all((tmp_path / f"trace.{name}").exists() for name in acted.behaviour):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=stop)
    asking.start()
    assert acted.run(study(configs, tmp_path / "out")) == STOPPED
    asking.join()
    assert (
        sorted(acted.trace("stopped")) == ["dasd-s0", "zero-s0"] and "the same command resumes from here" in acted.text
    )
    assert "failed" not in acted.text and len(acted.trace("begin")) == 3


def test_checkpoints_of_measured_rows_can_be_dropped(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out", checkpoints="drop")
    assert acted.run(plan) == DONE
    assert not (plan.runs[1].config.folder / "checkpoints").exists() and plan.runs[1].result.exists()
    assert (plan.first[0].config.folder / "checkpoints").exists()  # others stand on it


def test_a_missing_column_is_said_before_anything_runs(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out", overrides=["data.targets={es: caption.es.none}"])
    with pytest.raises(DataError, match=r"dasd: .*caption\.es\.none"):
        acted.run(plan)
    assert acted.trace("begin") == []
