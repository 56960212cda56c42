"""Growth along curves: exact lines, a crossing that is known, and the command on results of a study."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ccr_dist.errors import ConfigError, DataError
from ccr_dist.study.cli import study_app
from ccr_dist.study.compare import Estimate, Sampled, over, sample
from ccr_dist.study.growth import Curve, Grown, Point, crossing, fitted, grown
from ccr_dist.study.growth_report import _csv as table
from ccr_dist.study.growth_report import markdown, place
from ccr_dist.study.plan import Growth, load_plan
from ccr_dist.study.summary import measured
from tests.studies import make_study, ranks, result_of

X = (2000.0, 10_000.0, 40_000.0)
SIZES = ("2k", "10k", "40k")
LABELS = {"half": "half", "none": "none"}


def lines(at: float, slope: float, replicates: int = 400) -> list[Sampled]:
    """Values on a line, with replicates on lines of their own: slopes from slope - 1 to slope + 1."""
    slopes = slope + np.linspace(-1, 1, replicates)
    return [Sampled(at + slope * np.log10(x), at + slopes * np.log10(x)) for x in X]


def test_a_line_is_found_in_every_replicate() -> None:
    fit = fitted(X, lines(100.0, 40.0))
    assert fit.slope.mean == pytest.approx(40) and fit.at.mean == pytest.approx(100) and fit.points == 3
    assert fit.misfit == pytest.approx(0, abs=1e-9)
    assert fit.slope.draws == pytest.approx(40 + np.linspace(-1, 1, 400))
    assert fit.value(1e5).mean == pytest.approx(300)
    found = crossing(fit, Sampled(300.0, np.full(400, 300.0)))
    # 300 = 100 + slope * log10(x)
    assert found.mean == pytest.approx(1e5)
    assert found.low == pytest.approx(10 ** (200 / 41), rel=0.02) and found.high == pytest.approx(
        10 ** (200 / 39), rel=0.02
    )


def test_the_fit_is_that_of_least_squares_and_says_how_far_it_is_off() -> None:
    values = (110.0, 180.0, 190.0)
    fit = fitted(X, [Sampled(value, np.array([value, value + 1])) for value in values])
    slope, at = np.polyfit(np.log10(X), values, 1)
    assert fit.slope.mean == pytest.approx(slope) and fit.at.mean == pytest.approx(at)
    assert fit.at.draws == pytest.approx([at, at + 1]) and fit.slope.draws == pytest.approx([slope, slope])
    assert fit.misfit == pytest.approx(np.abs(np.array(values) - (at + slope * np.log10(X))).max())


def test_a_line_that_does_not_rise_reaches_nothing() -> None:
    flat = fitted(X[:2], [Sampled(100.0, np.linspace(99, 101, 100)), Sampled(100.0, np.linspace(101, 99, 100))])
    found = crossing(flat, Sampled(300.0, np.full(100, 300.0)))
    assert flat.misfit == 0 and found.mean == np.inf and found.high == np.inf and np.isfinite(found.low)
    assert [place(x) for x in (np.inf, 3e12, 145_000, 0.2)] == ["never", "beyond 1 B", "145 k", "below 1"]


def test_a_line_that_falls_from_above_a_level_does_not_never_reach_it() -> None:
    """Points of 400 and 398 are above 350, whichever way the line goes."""
    falls = fitted(X[:2], [Sampled(400.0, np.linspace(398, 402, 100)), Sampled(398.0, np.linspace(400, 396, 100))])
    assert (falls.slope.draws > 0).any() and (falls.slope.draws < 0).any()
    below, above = (crossing(falls, Sampled(level, np.full(100, level))) for level in (350.0, 500.0))
    assert below.mean == 0 and below.high < X[0] and above.mean == np.inf
    assert place(below.mean) == "above from the start"


def test_a_curve_against_parts_has_their_places() -> None:
    """x may be a part of the data, not a number of captions."""
    points = {x: 200 + 100 * np.log10(x) for x in (0.05, 0.1, 1.0)}
    values = [Sampled(value, np.full(50, value)) for value in points.values()]
    made = tuple(Point(x, value, 2) for x, value in zip(points, values, strict=True))
    fit = fitted(list(points), values)
    level = Sampled(150.0, np.full(50, 150.0))
    curve = Curve("c", made, fit, {"half": crossing(fit, level), "none": crossing(fit, Sampled(0.0, np.zeros(50)))})
    found = Grown(Growth(x="part"), "t", (curve,), {}, {}, (), ())
    assert "| curve, SumR at part | 0.05 | 0.1 | 1 |" in markdown(found)
    told = markdown(replace(found, levels={"half": level.estimate(), "none": level.estimate()}, labels=LABELS))
    assert "| 0.316 (0.316 to 0.316) | below 0.05 (" in told


def test_places_are_whole_in_the_table_of_points() -> None:
    values = lines(100.0, 10.0)
    made = tuple(Point(x, value, 1) for x, value in zip((0.1, 145_000, 1_234_567), values, strict=True))
    found = Grown(Growth(x="captions"), "t", (Curve("c", made, None, {}),), {}, {}, (), ())
    assert [line.split(",")[1] for line in table(found).splitlines()] == ["captions", "0.1", "145000", "1234567"]


def growing(configs: Path, out: Path, **changes: object) -> Path:
    """A study with two curves, of three points and of two, and one level."""
    base = {"config": "clip.yaml", "group": "g"}
    template = make_study(configs, out=str(out))
    rows = load_plan(template).study.rows
    zero, dasd = rows[0].config, rows[1].config
    made: list[dict[str, object]] = [{**base, "name": "zero", "label": "zero-shot", "config": zero}]
    for size, x in zip(SIZES, X, strict=True):
        made.append({"name": f"dasd-{size}", "config": dasd, "curve": "DASD", "x": x})
        if size != "40k":
            made.append(
                {"name": f"bare-{size}", "config": dasd, "overrides": ["method.use=none"], "curve": "bare", "x": x}
            )
    growth = {"x": "captions", "levels": ["zero"], "differences": [{"a": "DASD", "b": "bare", "claim": "a generator"}]}
    return make_study(configs, out=str(out), **{"rows": made, "comparisons": [], "growth": growth, **changes})


def test_the_command_reports_curves_levels_and_differences(configs: Path, tmp_path: Path) -> None:
    file = growing(configs, tmp_path / "out")
    plan = load_plan(file)
    scale = {"2k": 20.0, "10k": 10.0, "40k": 5.0}
    for n, run in enumerate(plan.runs):
        if run.name != "dasd-40k-s1":
            kind, _, size = run.row.name.partition("-")
            result_of(run, *ranks(n, scale.get(size, 6) + (3 if kind == "bare" else 0)), languages=("en", "es", "pt"))
    done = CliRunner().invoke(study_app, ["growth", str(file)])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "out/report"
    told = json.loads((folder / "growth.json").read_text())
    assert told["missing"] == ["dasd-40k-s1"] and "No result yet: dasd-40k-s1." in (folder / "growth.md").read_text()
    dasd, bare = told["curves"]
    assert [point["x"] for point in dasd["points"]] == list(X) and [p["seeds"] for p in dasd["points"]] == [2, 2, 1]
    outcomes, _ = measured(plan)
    drawn = {name: over(each, ["es", "pt"]) for name, each in sample(outcomes).items()}  # English is no target
    for name, points in (("dasd", dasd["points"]), ("bare", bare["points"])):
        for size, point in zip(SIZES, points, strict=False):
            expected = drawn[f"{name}-{size}"].estimate()
            assert [point[key] for key in ("mean", "low", "high")] == pytest.approx(
                [expected.mean, expected.low, expected.high]
            )
    values = np.stack([drawn[f"dasd-{size}"].draws for size in SIZES])
    slopes = np.polyfit(np.log10(X), values, 1)[0]
    slope = dasd["fit"]["slope"]
    assert [slope["low"], slope["high"]] == pytest.approx(list(np.percentile(slopes, [2.5, 97.5])))
    (difference,) = told["differences"]
    gap = (drawn["dasd-10k"] - drawn["bare-10k"]).estimate()
    assert [point["x"] for point in difference["points"]] == list(X[:2])
    assert difference["points"][1]["low"] == pytest.approx(gap.low) and bare["fit"]["misfit"] == 0
    assert dasd["reaches"]["zero"]["low"] is None or dasd["reaches"]["zero"]["low"] > 0
    records = list(csv.DictReader((folder / "growth.csv").open()))
    assert len(records) == 5 and float(records[0]["SumR"]) == pytest.approx(dasd["points"][0]["mean"], abs=1e-3)
    assert (folder / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_there_is_said(configs: Path, tmp_path: Path) -> None:
    plan = load_plan(growing(configs, tmp_path))
    with pytest.raises(DataError, match="no run of the study 'toy' is complete"):
        grown(plan)
    result_of(plan.runs[0], *ranks(1, 5))
    with pytest.raises(DataError, match="no run of a curve of the study 'toy' is complete"):
        grown(plan)
    result_of(plan.runs[1], *ranks(1, 5))
    (curve,) = grown(plan, replicates=20).curves
    assert curve.fit is None and curve.crossings == {} and isinstance(curve.points[0].value.estimate(), Estimate)
    with pytest.raises(ConfigError, match="has no section `growth`"):
        grown(load_plan(make_study(configs, out=str(tmp_path / "other"))))


@pytest.mark.parametrize(
    ("growth", "row", "said"),
    [
        ({"x": "n", "levels": ["dasd-2k"]}, {}, "growth.levels: no row without x is called 'dasd-2k'; "),
        (
            {"x": "n", "differences": [{"a": "DASD", "b": "bear", "claim": "c"}]},
            {},
            "no curve is called 'bear'; did you mean 'bare'",
        ),
        ({"x": "n"}, {"name": "again", "curve": "DASD", "x": 2000}, "'dasd-2k' and 'again' are the same point"),
        ({"x": "n"}, {"name": "again", "curve": "DASD"}, "both `curve` and `x`"),
        (None, {}, "nothing says what it counts"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(
    configs: Path, tmp_path: Path, growth: object, row: dict[str, object], said: str
) -> None:
    values = yaml.safe_load(growing(configs, tmp_path).read_text())
    file = configs / "wrong.yaml"
    more = [{**values["rows"][1], **{"curve": None, "x": None}, **row}] if row else []
    file.write_text(yaml.safe_dump({**values, "growth": growth, "rows": values["rows"] + more}))
    with pytest.raises(ConfigError, match=said):
        load_plan(file)
