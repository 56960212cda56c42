"""Datasets, runs, jobs, studies and pipelines of earlier versions are opened, finished and measured by this one.

`make.py` of a version made its set, NAME.tar.xz. Losses and weights are compared closely, not bit for bit, since
another machine computed them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from ccr_dist.cli import app
from tests import jobs  # the half-finished job is one of its engine
from tests.golden import make

SETS = sorted(path.name.removesuffix(".tar.xz") for path in make.HERE.glob("*.tar.xz"))
assert jobs.Shout.batch


@pytest.fixture(params=SETS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of a set, as the working directory."""
    with tarfile.open(make.HERE / f"{request.param}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ccr(*words: str) -> str:
    """A command, in this process; what it printed."""
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def found(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "found.json").read_text())


def alike(value: Any, expected: Any) -> None:
    """JSON is the same but for rounding: scores of examples are kept with six digits."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key, each in expected.items():
            alike(value[key], each)
    elif isinstance(expected, list):
        assert len(value) == len(expected)
        for mine, each in zip(value, expected, strict=True):
            alike(mine, each)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        assert value == expected


def test_there_is_a_set() -> None:
    assert "0.1.0" in SETS


def test_datasets_give_the_same_values(golden: Path) -> None:
    assert {str(path): make.values(path) for path in make.datasets_here()} == found(golden)["datasets"]
    for name in ("photos/train", "val", "test"):
        assert "wrong" not in ccr("shards", "verify", f"data/{name}", "--quiet")
    before = {path: path.stat().st_mtime_ns for path in Path("data/photos").rglob("*")}
    ccr("shards", "build", "sources/recipe.yaml", "--out", "data/photos")
    assert {path: path.stat().st_mtime_ns for path in Path("data/photos").rglob("*")} == before, "everything was there"


def test_a_half_finished_job_ends_with_the_same_files(golden: Path) -> None:
    assert list(Path("data/train/caption.xx").glob("*.journal.*")) and list(
        Path("data/train/caption.xx").glob("*.lease.*")
    )
    said = ccr(*make.JOB, "--lease-s", "1")
    assert make.files(Path("data/train/caption.xx")) == found(golden)["job"], said
    ccr("shards", "verify", "data/train", "--quiet")


def test_a_finished_run_is_measured_as_it_was(golden: Path) -> None:
    ccr("checkpoint", "verify", "runs/done-s0")
    ccr("checkpoint", "inspect", "runs/done-s0")
    result, ranks = Path("runs/done-s0/results/test.json"), Path("runs/done-s0/results/test.ranks.npz")
    before, kept = json.loads(result.read_text()), dict(np.load(ranks))
    ccr("evaluate", "done.yaml", "--again")
    after, made = json.loads(result.read_text()), dict(np.load(ranks))
    alike(after["languages"], before["languages"])
    assert after["test_reads"] == before["test_reads"] + 1
    assert kept.keys() == made.keys() and all((kept[name] == made[name]).all() for name in kept)
    assert "complete already" in ccr("train", "done.yaml", "--test")


@pytest.mark.parametrize("run", ["half", "parts"])
def test_an_interrupted_run_ends_as_it_would_have(golden: Path, run: str) -> None:
    """half: killed; parts: stopped under FSDP2 on two processes, with a sharded checkpoint."""
    folder = Path(f"runs/{run}-s0")
    ccr("checkpoint", "verify", str(folder))
    ccr("train", f"{run}.yaml", "runtime.checkpoint=whole")
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert starts[-1]["resumed"] and starts[-1]["step"] > 0
    losses, expected = make.losses(folder), found(golden)["losses"][run]
    assert losses.keys() == expected.keys()
    np.testing.assert_allclose([losses[step] for step in expected], list(expected.values()), rtol=1e-3, atol=1e-5)
    weights, kept = load_file(folder / "model.safetensors"), load_file(f"weights/{run}.safetensors")
    assert weights.keys() == kept.keys()
    for name, tensor in kept.items():
        np.testing.assert_allclose(weights[name], tensor, err_msg=name, rtol=1e-2, atol=1e-3)


def test_a_study_is_complete_and_reported_as_it_was(golden: Path) -> None:
    assert "2 complete, 0 to do" in ccr("study", "run", "study.yaml")
    tables = {path: path.read_bytes() for path in Path("study").rglob("*.csv")}
    assert tables
    ccr("study", "report", "study.yaml")
    assert {path: path.read_bytes() for path in tables} == tables


def test_a_pipeline_is_done(golden: Path) -> None:
    record = Path("pipelines/pipeline/record.json")  # names the folder in which the command was given; a set has none
    record.write_text(json.dumps({**json.loads(record.read_text()), "folder": str(golden)}))
    state = json.loads(ccr("status", "pipelines/pipeline", "--json"))
    assert [step["states"] for step in state["steps"]] == [{"done": 2}, {"done": 1}]
    assert ccr("run", "pipeline.yaml").count("done already") == 2
