"""Records of a study, and its report from golden runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import ConfigError, DataError, OutOfMemoryError
from ccr_dist.scaling import planned, record
from ccr_dist.scaling.jobs import collect
from ccr_dist.scaling.plan import ScalingPlan
from ccr_dist.scaling.report import markdown, write
from ccr_dist.scaling.summary import _crowded, summarise
from tests import scaling_runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaling_runs.base(tmp_path_factory.mktemp("scaling"))


def measure(plan: ScalingPlan, seconds: dict[int, tuple[float, ...]], **about: Any) -> None:
    """world -> the seconds of a step in each repeat. `about`: what starts say of their machine."""
    record.keep_study(plan)
    for trial in plan.trials:
        took = seconds.get(trial.point.settings.world, ())
        if trial.repeat < len(took):
            scaling_runs.leave(trial, took[trial.repeat], about=about)
            record.write(trial, command=("python", "-m", "ccr_dist", *trial.command), exit=0, seconds=60.0)


def no_plan(*arguments: Any, **more: Any) -> tuple[dict[str, dict[str, Any]], str | None]:
    return {}, None


def test_medians_efficiency_and_the_serial_fraction(base: Path, tmp_path: Path) -> None:
    plan = scaling_runs.study(base, tmp_path, grid={"world": [1, 2, 4], "batch": [12]}, repeats=3)
    # Amdahl's law with 20 % serial; of 1 process the repeats differ, and the median follows it
    measure(plan, {1: (0.9, 1.0, 1.3), 2: (0.6, 0.6, 0.6), 4: (0.4, 0.4, 0.4)})
    found = summarise(plan.file.parent / "out", plan=no_plan)
    one, two, four = found.of("cla")
    assert (one.samples_per_s, two.samples_per_s, four.samples_per_s) == pytest.approx((12, 20, 30))
    assert (one.efficiency, two.efficiency, four.efficiency) == pytest.approx((1, 12 / 14.4, 0.625))
    assert one.repeated == (0.9, 1.0, 1.3) and one.repeats == 3 and one.quality["value"] == 41
    fitted = found.fits[one.series, "cla"]
    assert fitted.serial == pytest.approx(0.2, abs=0.1) and fitted.low < 0.2 < fitted.high


def test_the_report_says_the_same_everywhere(base: Path, tmp_path: Path) -> None:
    plan = scaling_runs.study(base, tmp_path, kind="weak", points=[{"world": 2, "batch": 12, "precision": "bf16"}])
    measure(plan, {1: (0.5, 0.5), 2: (0.6, 0.7)})
    failed = plan.trials[2]
    failed.log.parent.mkdir()
    failed.log.write_text("building\nerror: out of memory <in> backward | step 3\nlauncher: rank 1 ended\n")
    for number in (0, 1):
        plan.trials[2 + 3 * number].record.unlink()
    record.write(failed, command=("x",), exit=OutOfMemoryError.exit_code, seconds=3.0)

    def planner(
        study: Any, settings: Any, config: Any, per_node: int, **more: Any
    ) -> tuple[dict[str, Any], str | None]:
        assert settings.world == per_node and config.stages["cla"].batch == 12 * per_node
        return {stage: {"seconds": 0.5, "peak_bytes": 2 * 10**9, "sent_bytes": 1} for stage in ("cla", "cma")}, None

    summary = summarise(tmp_path / "out", plan=planner)
    page = write(summary, tmp_path / "report")
    html, text = page.read_text(), (tmp_path / "report/report.md").read_text()
    told = json.loads((tmp_path / "report/report.json").read_text())
    [one, two] = [row for row in told["rows"] if row["stage"] == "cla"]
    assert two["samples_per_s"] == pytest.approx(24 / 0.65) and two["efficiency"] == pytest.approx(0.5 / 0.65)
    assert two["residuals"] == {"seconds": pytest.approx(0.3), "peak_bytes": pytest.approx(1.001e9 / 2e9 - 1)}
    assert one["memory_bytes"] == [10**9] and two["traffic"]["gradients"] == scaling_runs.TRAINED
    for shown in (html, text):
        assert "36.92 (34.29 to 40)" in shown and "77%" in shown and "+30%" in shown and "9 to 12, 2 times" in shown
        assert "commit abc1234" in shown and "torch 2.0" in shown and "Gustafson" in shown and "out of memory" in shown
    assert (
        "Toy &lt;study&gt;" in html and "<study>" not in html and "a &lt;processor&gt;" in html and "<in>" not in html
    )
    assert r"out of memory <in> backward \| step 3" in text and "launcher: rank 1" not in text
    assert told["failed"][0]["exit"] == OutOfMemoryError.exit_code and "python -m ccr_dist train" in text
    for name in ("rate", "efficiency", "split", "memory", "traffic"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_planner_that_fails_keeps_nothing_from_being_reported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = scaling_runs.study(base, tmp_path, device="h100-80gb")
    measure(plan, {1: (0.5, 0.5), 2: (0.3, 0.3)})

    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(planned, "predict", fails)
    text = markdown(summarise(tmp_path / "out"), ())
    assert "No planner's curve: the planner failed: RuntimeError: no such operator." in text and "24 (24 to 24)" in text


def test_quality_against_batch(base: Path, tmp_path: Path) -> None:
    plan = scaling_runs.study(base, tmp_path, kind="batch", grid={"world": [2], "batch": [12, 24]}, repeats=1)
    measure(plan, {2: (0.5,)})
    summary = summarise(tmp_path / "out", plan=no_plan)
    assert [row.batch for row in summary.of("cma")] == [12, 24] and not summary.fits
    assert "| 24 | mR 42.00 |" in markdown(summary, ())
    assert (write(summary, tmp_path / "report").parent / "quality.png").exists()


def test_what_is_missing_or_damaged_is_said(base: Path, tmp_path: Path) -> None:
    plan = scaling_runs.study(base, tmp_path)
    with pytest.raises(ConfigError, match="no scaling study"):
        summarise(tmp_path / "out")
    record.keep_study(plan)
    with pytest.raises(DataError, match="no point is measured yet"):
        summarise(tmp_path / "out", plan=no_plan)
    measure(plan, {1: (0.5, 0.5)})
    summary = summarise(tmp_path / "out")
    assert summary.missing == ("w2-ddp-fp32-b12",) and "names no `device`" in next(iter(summary.curve.unplanned))
    assert "Not measured yet: w2-ddp-fp32-b12." in markdown(summary, ())
    path = plan.trials[0].record
    path.write_text(path.read_text().replace("0.5", "0.4", 1))
    with pytest.raises(DataError, match=r"r0\.json: damaged.*; delete it, and `ccr-dist scale run` measures"):
        summarise(tmp_path / "out", plan=no_plan)


def test_a_record_counts_for_its_own_point_alone(base: Path, tmp_path: Path) -> None:
    plan = scaling_runs.study(base, tmp_path)
    measure(plan, {1: (0.5,)})
    assert record.kept(plan.trials[0]) is not None and record.kept(plan.trials[1]) is None
    other = scaling_runs.study(base, tmp_path, overrides=["method.rank=8"])
    with pytest.raises(ConfigError, match=r"measured as another point:\n  config\.method\.rank: there 4, asked 8"):
        record.kept(other.trials[0])


def test_a_training_without_measurements_has_failed(base: Path, tmp_path: Path) -> None:
    trial = scaling_runs.study(base, tmp_path).trials[0]
    scaling_runs.leave(trial, 0.5)
    (trial.folder / "log.jsonl").write_text("")
    kept = record.write(trial, command=(), exit=0, seconds=1.0)
    assert kept.failed and kept.exit == 1 and "holds no step" in kept.error


def test_a_process_that_was_killed_is_said(base: Path, tmp_path: Path) -> None:
    trial = scaling_runs.study(base, tmp_path).trials[0]
    assert "where memory runs out" in record.write(trial, command=(), exit=137, seconds=1.0).said


def test_two_studies_do_not_share_a_folder(base: Path, tmp_path: Path) -> None:
    record.keep_study(scaling_runs.study(base, tmp_path))
    record.keep_study(scaling_runs.study(base, tmp_path, repeats=5))
    before = (tmp_path / "out/study.json").read_bytes()
    with pytest.raises(ConfigError, match=r"study\.yaml: out: .*out holds the study s, and this one is t: "):
        record.keep_study(scaling_runs.study(base, tmp_path, name="t"))
    assert (tmp_path / "out/study.json").read_bytes() == before


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"format": 9},
        {"format": 1, "study": {"later": 1}, "file": "s.yaml", "points": []},
        {"format": 1, "study": 3},
    ],
)
def test_a_study_that_cannot_be_read_is_said(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "study.json").write_text(json.dumps(values))
    for reads in (lambda: summarise(tmp_path, plan=no_plan), lambda: collect(tmp_path, print)):
        with pytest.raises(DataError, match=r"study\.json: no study that this version reads"):
            reads()


@pytest.mark.parametrize(
    ("cores", "hardware", "crowded"),
    [(2, "a <processor>", [4]), (None, "EPYC, 2 cores", [4]), (None, "EPYC", []), (8, "EPYC, 2 cores", [])],
)
def test_processes_that_take_turns_tell_nothing_of_the_law(
    base: Path, tmp_path: Path, cores: int | None, hardware: str, crowded: list[int]
) -> None:
    plan = scaling_runs.study(base, tmp_path, grid={"world": [1, 2, 4], "batch": [12]}, repeats=2)
    measure(plan, {1: (1.0, 1.0), 2: (0.6, 0.6), 4: (0.6, 0.6)}, cores=cores, hardware=hardware, threads=1)
    found = summarise(plan.file.parent / "out", plan=no_plan)
    assert [row.settings.world for row in found.of("cla") if row.crowded] == crowded
    text, fitted = markdown(found, ()), found.fits[found.of("cla")[0].series, "cla"]
    if crowded:
        assert fitted.worlds == (1, 2) and fitted.serial == pytest.approx(0.2, abs=1e-3)
        assert "| 4 * |" in text and "| 2 |" in text and "take turns" in text and "no serial fraction" in text
    else:
        assert fitted.worlds == (1, 2, 4) and "take turns" not in text
    if cores == 2:
        on_gpus = [replace(record, found=on_gpu(record.found)) for record in found.records]
        assert not any(map(_crowded, on_gpus))


def on_gpu(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "environment": {**found["environment"], "device": "NVIDIA H100"}}
