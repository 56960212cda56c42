"""What a scaling study asks for, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ccr_dist.cluster.profile import load_profile
from ccr_dist.errors import ConfigError
from ccr_dist.scaling.plan import ScalingPlan, load_plan
from tests import scaling_runs, toy

SHIPPED = Path(__file__).parents[3] / "configs" / "scaling"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage = {"steps": 3, "batch": 10, "lr": 1e-2, "validate_every": 1}
    return toy.config(
        tmp_path_factory.mktemp("scaling"), {"name": "dasd", "rank": 4}, {"cla": stage, "cma": stage},
        backbone={"kind": "dual"},
    )  # fmt: skip


def plan(base: Path, tmp_path: Path, **changes: Any) -> ScalingPlan:
    return scaling_runs.study(base, tmp_path, **changes)


def test_strong_keeps_the_batch_and_weak_the_rows_of_a_process(base: Path, tmp_path: Path) -> None:
    for kind, batches in (("strong", [12, 12]), ("weak", [12, 24])):
        found = plan(base, tmp_path, kind=kind)
        assert [point.global_batch for point in found.points] == batches
        assert [point.config.stages["cla"].batch for point in found.points] == batches
    stage, runtime = found.points[0].config.stages["cma"], found.points[0].config.runtime
    assert (stage.steps, stage.validate_every, runtime.log_every) == (6, None, 1)
    assert runtime.checkpoint_every > 12  # none but those at the ends of stages


def test_a_grid_is_every_combination_and_repeats_go_round(base: Path, tmp_path: Path) -> None:
    grid = {"world": [1, 2], "batch": [12], "precision": ["fp32", "bf16"], "micro_batch": [None, 3]}
    points = [{"world": 2, "batch": 12, "strategy": "zero3_offload", "contrastive": "ring"}]
    found = plan(base, tmp_path, grid=grid, points=points)
    names = [point.name for point in found.points]
    assert len(set(names)) == 9 and names[:2] == ["w1-ddp-fp32-b12", "w1-ddp-fp32-b12-m3"]
    assert names[-1] == "w2-zero3-offload-fp32-b12-ring"
    assert [trial.name for trial in found.trials] == [f"{name}.r{n}" for n in (0, 1) for name in names]
    command = found.trials[8].command
    assert command[-2:] == ("--strategy", "zero3") and 'runtime.contrastive="ring"' in command
    assert len({trial.folder for trial in found.trials}) == len({trial.record for trial in found.trials}) == 18


def test_the_same_point_is_the_same_in_a_larger_study(base: Path, tmp_path: Path) -> None:
    small = plan(base, tmp_path).points[0].identity
    assert small == plan(base, tmp_path, grid={"world": [1, 8], "batch": [12, 24]}, repeats=5).points[0].identity
    assert small != plan(base, tmp_path, steps=5).points[0].identity


def test_samples_instead_of_steps_and_rates_that_follow(base: Path, tmp_path: Path) -> None:
    grid = {"world": [1], "batch": [10, 40]}
    found = plan(base, tmp_path, kind="batch", grid=grid, samples=200, lr="sqrt", warmup=1)
    assert [point.config.stages["cla"].steps for point in found.points] == [20, 5]
    assert [point.config.stages["cla"].lr for point in found.points] == [0.01, 0.02]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"world": [1], "batch": [12], "strategi": ["ddp"]}}, r"study\.yaml:\d+.*strategi.*strategy"),
        ({"grid": {"world": [0], "batch": [12]}}, r"study\.yaml:\d+.*world"),
        ({"grid": None}, "needs `grid` or `points`"),
        ({"points": [{"world": 1, "batch": 12}]}, r"study\.yaml:\d+: the point w1-ddp-fp32-b12 is there twice"),
        (
            {"grid": {"world": [6], "batch": [12]}, "per_node": 4, "where": "slurm"},
            r"world 6: .*multiple of per_node, 4",
        ),
        ({"per_node": 1}, r"study\.yaml:\d+: per_node 1 with where: local and world 2"),
        ({"samples": 30, "warmup": 1}, r"samples 30: 2 steps of 12, of which 1 are warm-up"),
        ({"overrides": ["runtime.preci=1"]}, r"study\.yaml:\d+: .*preci"),
        ({"device": "h1000"}, r"study\.yaml:\d+: device 'h1000'.*did you mean h100"),
        ({"network": "ndr40"}, r"study\.yaml:\d+: link between nodes 'ndr40'.*did you mean ndr400"),
        ({"network": "ndr400x0"}, r"study\.yaml:\d+: network ndr400x0: a node needs at least one adapter"),
        ({"measure": "cpu", "where": "slurm"}, r"study\.yaml.*this machine is not the nodes that train"),
        ({"measure": "cpu", "calibration": "c.json"}, r"study\.yaml.*measured, or read from a file; keep one"),
        ({"measure": "cpu", "gpus": True}, r"study\.yaml.*processor time says nothing of a GPU"),
        ({"config": "nowhere.yaml"}, r"study\.yaml:\d+: .*nowhere\.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(base, tmp_path, **changes)


def test_a_run_without_steps_has_nothing_to_measure(tmp_path: Path) -> None:
    zero = toy.config(tmp_path, {"name": "clip"}, {}, backbone={"kind": "dual"})
    with pytest.raises(ConfigError, match="'clip' has no stage of steps to measure"):
        plan(zero, tmp_path)


@pytest.mark.parametrize("path", sorted(path for path in SHIPPED.glob("[!_]*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    found = load_plan(path)
    assert {point.settings.world for point in found.points} == {1, 2, 4} and found.study.repeats > 1
    assert not found.study.profile.endswith(".yaml") or load_profile(found.study.profile).gpus is None
