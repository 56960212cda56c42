"""A study's runs as they really are: forks of one process that has imported torch, each a command of its own."""

from __future__ import annotations

import gc
import shutil
import time
from pathlib import Path

import pytest
import yaml

from ccr_dist import __version__
from ccr_dist.errors import DONE, HeldError
from ccr_dist.evaluate.schema import read_result
from ccr_dist.retriever import model_folder
from ccr_dist.study.plan import load_plan, state
from ccr_dist.study.runner import run_study
from ccr_dist.study.summary import summarise
from ccr_dist.study.warm import Warm
from ccr_dist.train.state.run_folder import RunFolder
from tests import toy

pytestmark = pytest.mark.procs


def test_a_real_study_from_run_to_report(tmp_path: Path) -> None:
    """Two real processes; what they leave is complete, comparable, and not done again."""
    zero, dasd = toy.config(tmp_path, {"name": "clip"}, {}), toy.dasd(tmp_path, cla=2, cma=2)
    fusion = toy.config(tmp_path, {"name": "fusion"}, {})
    rows = [
        {"name": "zero", "config": zero.name},
        {"name": "dasd", "config": dasd.name},
        {"name": "fused", "config": fusion.name, "start_from": "dasd"},
    ]
    study = {"name": "real", "title": "Real", "out": str(tmp_path / "out"), "seeds": [0], "rows": rows}
    study["checkpoints"] = "drop"
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump(study))
    said: list[str] = []
    assert run_study(load_plan(path), jobs=2, say=said.append) == DONE, said
    plan = load_plan(path)
    assert [state(run) for run in plan.runs] == ["complete"] * 3
    assert run_study(plan, jobs=2, say=said.append) == DONE and "3 complete, 0 to do" in said[-1]
    first, *log = (tmp_path / "out/logs/dasd-s0.log").read_text().splitlines()
    assert first.startswith("$ ccr-dist train ") and any("complete; best validation" in line for line in log)
    summary = summarise(plan, replicates=50)
    assert summary.targets == ("es",) and summary.missing == ()
    parameters = {line.row.name: line.parameters for line in summary.lines}
    assert parameters["zero"] == parameters["fused"] == 0 < parameters["dasd"]
    dasd_model, fused = (model_folder.read(run.config.folder / "model") for run in plan.runs[1:])
    assert fused.files["model.safetensors"] == dasd_model.files["model.safetensors"]
    assert fused.config["method"]["of"]["name"] == "dasd" and not (plan.runs[1].config.folder / "checkpoints").exists()
    # another training of the row that it starts from: what it measured is not what the study says any more
    shutil.rmtree(plan.runs[1].config.folder)
    again = yaml.safe_load(path.read_text())
    again["rows"][1]["overrides"] = ["stages.cla.lr=0.02"]
    path.write_text(yaml.safe_dump(again))
    assert run_study(load_plan(path).select(["dasd"], None), jobs=1, say=said.append) == DONE
    plan = load_plan(path)
    assert [state(run) for run in plan.runs] == ["complete", "complete", "outdated"]
    assert "fused-s0" in summarise(plan, replicates=50).missing
    assert run_study(plan, jobs=1, say=said.append) == DONE
    assert [state(run) for run in plan.runs] == ["complete"] * 3
    assert read_result(plan.runs[2].result).test_reads == 2


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """What one of them trains is no failure of the other."""
    first, second = toy.dasd(tmp_path, cla=2, cma=2), toy.config(tmp_path, {"name": "clip"}, {})
    rows = [{"name": "dasd", "config": first.name}, {"name": "zero", "config": second.name}]
    path = tmp_path / "shared.yaml"
    study = {"name": "shared", "title": "Shared", "out": str(tmp_path / "out"), "seeds": [0], "rows": rows}
    path.write_text(yaml.safe_dump(study))
    [dasd, zero], said = load_plan(path).runs, list[str]()
    held = RunFolder(dasd.config.folder)
    held.lock()  # as the process that trains it does
    assert run_study(load_plan(path), jobs=1, say=said.append) == HeldError.exit_code, said
    assert any("dasd-s0: held by another process" in line for line in said) and zero.result.exists()
    del held
    gc.collect()
    assert run_study(load_plan(path), jobs=1, say=said.append) == DONE, said


def test_commands_have_their_own_exit_codes_and_output(tmp_path: Path) -> None:
    warm = Warm(1)
    runs = {name: warm.start(arguments, tmp_path / name) for name, arguments in {
        "well": ["--version"], "wrong": ["train", str(tmp_path / "nowhere.yaml")], "nonsense": ["trayn"],
    }.items()}  # fmt: skip
    for process in runs.values():
        process.join(60)
    assert {name: process.exitcode for name, process in runs.items()} == {"well": 0, "wrong": 2, "nonsense": 2}
    assert (tmp_path / "well").read_text().strip() == __version__ and "nowhere.yaml: no such file" in (
        tmp_path / "wrong"
    ).read_text()
    ended = warm.start(["study", "run", "--help"], tmp_path / "ended")
    ended.kill()
    ended.join(60)
    assert ended.exitcode == -9
    deadline = time.monotonic() + 60  # an end that nobody waited for is seen, too: a study only looks
    looked_at = warm.start(["--version"], tmp_path / "again")
    while looked_at.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert looked_at.exitcode == 0
