"""Every run config that comes with the project can be planned, or the planner says in one sentence what it lacks."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config
from tests.shipped import ROOT, SHIPPED

NEVER = "has nothing to train"
ABSENT = "A plan needs no weights of it, only its config.json and tokeniser"  # and no network here
# what the planner says, and what it says to do
REMEDIES = {
    "or say how many with --captions": ["--captions", "145000"],
    "or plan with method.frontend.rows=all": ["method.frontend.rows=all"],
    r"--gpus 64: stage '\w+' has (\d+) rows a batch": ["--gpus", "1,8"],
}
QUICK = {
    "demo/english": True,
    "queries/own": None,
    "clip/zero_shot": False,
}  # whether it is planned; None: if its model is here


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_some_configs_are_planned(name: str) -> None:
    found = plan(Path("configs") / f"{name}.yaml", "--gpus", "16", "--strategies", "fsdp2")
    assert QUICK[name] in (None, found is not None)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_is_planned(path: Path) -> None:
    plan(path.relative_to(ROOT))


def plan(path: Path, *more: str) -> dict[str, Any] | None:
    """The plan as JSON, after the planner's own advice was taken, and checked. None: a model of a hub is not here, or
    there is nothing to train; that has to be said.
    """
    words = [str(path), "--gpus", "1,8,64", "--device", "h100-80gb", "--nodes-of", "8", "--json", *more]
    for _ in range(1 + len(REMEDIES)):
        done = CliRunner().invoke(app, ["plan", *words])
        if done.exit_code == 0:
            found: dict[str, Any] = json.loads(done.stdout)
            check(found, path)
            return found
        said = " ".join(done.stderr.split())
        assert (
            done.exit_code == ConfigError.exit_code and said.startswith("error: ") and "\n" not in done.stderr.strip()
        )
        if NEVER in said or ABSENT in said:
            return None
        words += next((more for text, more in REMEDIES.items() if re.search(text, said)), [])
    raise AssertionError(f"its advice does not help: {said}")


def check(found: dict[str, Any], path: Path) -> None:
    """Numbers are there and finite; what is recommended can be run."""
    for option in found["options"]:
        assert bool(option["stages"]) != bool(option["refused"])
        for stage in option["stages"]:
            numbers = [*stage["memory"].values(), *stage["seconds"].values(), *stage["hidden"].values()]
            numbers += [stage["total_s"], stage["gpu_hours"], stage["samples_per_s"]]
            assert all(math.isfinite(number) and number >= 0 for number in numbers)
            assert sum(stage["memory"].values()) == stage["peak_bytes"] and stage["memory"]["trained"] > 0
            parts = sum(value for name, value in stage["seconds"].items() if name != "step")
            assert stage["seconds"]["compute"] > 0 and stage["seconds"]["step"] == pytest.approx(parts)
            assert stage["total_s"] > 0 and (sum(stage["sent"].values()) > 0) == (option["gpus"] > 1)
    for best in found["recommendations"]:
        if best["strategy"] is None:
            assert "nothing fits" in best["reason"] or "nothing can be" in best["reason"]
            continue
        runs(best["command"], path)
        if best["gpus"] > 8:
            step = yaml.safe_load(best["pipeline_step"])["steps"]["train"]
            assert step["nodes"] * step["gpus"] == best["gpus"] and launch(step["launch"]).exists()
            runs(f"ccr-dist {step['command']}", path)


def runs(command: str, path: Path) -> None:
    """`train` takes these words, and the config these overrides."""
    words = shlex.split(command)
    if words[0] == "accelerate":
        assert Path(words[words.index("--config_file") + 1]).exists()
        words = words[words.index("ccr_dist") :]
    train: Any = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    assert words[1:3] == ["train", str(path)]
    with train.make_context("train", words[2:]) as context:
        load_config(context.params["config"], context.params["overrides"] or ())


def launch(name: str) -> Path:
    return ROOT / "launch" / "accelerate" / f"{name}.yaml"
