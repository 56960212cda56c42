"""The planner's curve beside measured points: which speeds it uses, what a training gives to it, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ccr_dist.plan.cost import calibration as calibrations
from ccr_dist.plan.cost.calibration import Calibration, Product
from ccr_dist.scaling import planned, record, speeds
from ccr_dist.scaling.plan import ScalingPlan
from ccr_dist.scaling.report import as_json, markdown
from ccr_dist.scaling.summary import summarise
from tests import scaling_runs

ONE_THREAD = ["runtime.threads=1"]
GRID = {"world": [1, 2, 4], "batch": [12]}


def speeds_file(path: Path, processes: int, **machine: Any) -> Path:
    about = {"name": "a <processor>", "torch": "2", "device": "cpu", "clock": "cpu", **machine}
    made = Calibration(
        about, 2, 1, {"fp32": (Product("product", 64, 64, 64, 1, 1e9),)}, ((1e3, 1e9),), 1e-5, 2**34, processes,
        {"all_reduce": 1e-3, "all_gather": 1e-3}, {"all_reduce": 1e-9, "all_gather": 1e-9},
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    calibrations.write(made, path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaling_runs.base(tmp_path_factory.mktemp("scaling"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of a planner that says: 0.2 s of computations by the factor, 0.1 s of collectives, 0.4 GB."""
    found: list[Any] = []

    def predict(config: Any, *, gpus: int, calibration: Any, **more: Any) -> list[Any]:
        found.append((gpus, calibration.processes, calibration.factor, more["network"]))
        step = 0.2 * calibration.factor + (0.1 if gpus > 1 else 0.0)
        memory = {"trained": 4 * 10**8, "process": 10**8}
        return [
            SimpleNamespace(stage=name, seconds={"step": step}, peak_bytes=5 * 10**8, memory=memory, sent={"x": 7})
            for name in config.stages
        ]

    monkeypatch.setattr(planned, "predict", predict)
    return found


def measured(plan: ScalingPlan, seconds: dict[int, float]) -> Path:
    record.keep_study(plan)
    for trial in plan.trials:
        scaling_runs.leave(trial, seconds[trial.point.settings.world])
        record.write(trial, command=(), exit=0, seconds=1.0)
    return Path(plan.study.out)


def test_one_point_of_one_process_gives_the_factor(base: Path, tmp_path: Path, asked: list[Any]) -> None:
    plan = scaling_runs.study(base, tmp_path, grid=GRID, overrides=ONE_THREAD, measure="cpu", repeats=1, tokens=5)
    out = measured(plan, {1: 0.3, 2: 0.5, 4: 0.3})
    for processes in (1, 2):
        speeds_file(out / planned.FOLDER / f"{processes}.json", processes)
    summary = summarise(out)
    one, two, four = summary.of("cla")
    # speeds over as many processes as the node has, or the most that were measured; and a factor of 0.3 by 0.2
    assert asked == [(1, 1, 1.0, None), (2, 2, pytest.approx(1.5), None), (4, 2, pytest.approx(1.5), None)]
    assert [row.planned["seconds"] for row in (one, two, four)] == pytest.approx([0.3, 0.4, 0.4])
    assert [row.residuals["seconds"] for row in (one, two, four)] == pytest.approx([0, 0.25, -0.25])
    # 1 GB was held where 0.4 were planned: the rest is the process, which has more ranks of 1 MB each
    assert [row.residuals["peak_bytes"] for row in (one, two, four)] == pytest.approx([0, 0.001, 0.003])
    text = markdown(summary, ())
    assert "over 1 and 2 process(es) in processor time" in text and "w1-ddp-fp32-b12 by the sum" in text
    assert "300 ms (gives the factor)" in text and "400 ms |" in text and "+25%" in text
    assert "Planned for captions of 5 tokens; in the trainings a row of the batch had" in text
    told = json.loads(json.dumps(as_json(summary)))["planner"]
    assert told["given"] == {
        "point": "w1-ddp-fp32-b12",
        "factor": pytest.approx(1.5),
        "process_bytes": pytest.approx(6e8),
    }
    assert [each["processes"] for each in told["speeds"]] == [1, 2] and told["speeds"][0]["clock"] == "cpu"


def test_without_a_point_of_one_process_nothing_is_fitted(base: Path, tmp_path: Path, asked: list[Any]) -> None:
    file = speeds_file(tmp_path / "c.json", 2)
    plan = scaling_runs.study(
        base, tmp_path, grid={"world": [2], "batch": [12]}, overrides=ONE_THREAD, calibration=str(file), repeats=1,
        network="hdr200x4",
    )  # fmt: skip
    summary = summarise(measured(plan, {2: 0.5}))
    assert asked == [(2, 2, 1.0, "hdr200x4")] and summary.curve.given is None
    assert "No point of one process was measured" in markdown(summary, ())


@pytest.mark.parametrize(
    ("machine", "overrides", "said"),
    [
        ({"name": "another <one>"}, ONE_THREAD, "of another <one>, and the points were measured on a <processor>"),
        ({"name": "H100", "device": "cuda"}, ONE_THREAD, "a GPU, and the points were measured on a CPU"),
        ({}, ["runtime.threads=2"], "processes with 1 thread(s), and the point's processes had 2"),
        ({}, ["runtime.threads=null"], "processes with 1 thread(s), and the point's processes had 2"),
    ],
)
def test_speeds_of_another_machine_are_refused(
    base: Path, tmp_path: Path, asked: list[Any], machine: dict[str, Any], overrides: list[str], said: str
) -> None:
    file = speeds_file(tmp_path / "c.json", 1, **machine)
    plan = scaling_runs.study(
        base, tmp_path, grid={"world": [1], "batch": [12]}, overrides=overrides, calibration=str(file), repeats=1
    )
    summary = summarise(measured(plan, {1: 0.5}))
    assert asked == [] and not summary.of("cla")[0].planned
    [why] = summary.curve.unplanned
    assert said in why


def test_speeds_that_are_missing_or_damaged(base: Path, tmp_path: Path) -> None:
    plan = scaling_runs.study(base, tmp_path, overrides=ONE_THREAD, measure="wall", repeats=1)
    out = measured(plan, {1: 0.5, 2: 0.4})
    [why] = summarise(out).curve.unplanned
    assert "the machine is not measured yet; `ccr-dist scale run` measures it" in why
    file = speeds_file(out / planned.FOLDER / "1.json", 1)
    file.write_text(file.read_text().replace('"cores": 2', '"cores": 64'))
    [why] = summarise(out).curve.unplanned
    assert f"{file}: damaged" in why


def test_a_machine_is_measured_for_each_number_of_processes_that_has_places(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "places_here", lambda threads, gpu: 2 // threads)
    plan = scaling_runs.study(base, tmp_path, grid=GRID, overrides=ONE_THREAD, measure="cpu", tokens=9)
    one, several = speeds.measurements(plan)
    assert one.file == tmp_path / "out/calibrations/1.json" and several.file.stem == "2"
    assert several.command[:2] == ("plan", str(plan.points[1].file)) and "stages.cla.batch=12" in several.command
    told = " ".join(several.command)
    assert "--gpus 2,4 --strategies ddp --tokens 9 --precision fp32 --measure --clock cpu --calibration" in told
    speeds_file(one.file, 1)
    assert [each.file for each in speeds.measurements(plan)] == [several.file]
    assert speeds.measurements(replace(plan, study=plan.study.model_copy(update={"measure": None}))) == []
    # of weak scaling the rows of a rank are the same, so that one number of processes has all shapes
    weak = speeds.measurements(scaling_runs.study(base, tmp_path, grid=GRID, kind="weak", measure="wall",
                                                  overrides=ONE_THREAD))  # fmt: skip
    assert "--gpus 2 " in " ".join(weak[0].command) and "--clock" not in weak[0].command
