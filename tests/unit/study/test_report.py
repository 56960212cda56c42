"""What the report of a study says, and that it says the same everywhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ccr_dist.errors import DataError
from ccr_dist.methods.run_config import load_config
from ccr_dist.study.plan import StudyPlan, load_plan
from ccr_dist.study.report import table_markdown, write
from ccr_dist.study.summary import magnitude, summarise
from ccr_dist.yamlfile import load
from tests.studies import ranks, result_of, study


def reported(configs: Path, out: Path) -> tuple[StudyPlan, Path]:
    plan = study(configs, out)
    for n, run in enumerate(plan.runs[:-1]):  # bare-s1 has not run
        result_of(run, *ranks(n, 30 if run.row.name == "zero" else 5), languages=("en", "es", "pt"))
    return plan, write(summarise(plan, replicates=200), out / "report")


def test_the_report_says_the_same_everywhere(configs: Path, tmp_path: Path) -> None:
    plan, page = reported(configs, tmp_path)
    summary = summarise(plan, replicates=200)
    folder = page.parent
    rows = {row["name"]: row for row in csv.DictReader((folder / "rows.csv").open())}
    told = json.loads((folder / "study.json").read_text())
    markdown, html = (folder / "table.md").read_text(), page.read_text()
    assert markdown == table_markdown(summary)
    for line, record in zip(summary.lines, told["rows"], strict=True):
        sumr = np.mean([run.languages["es"].metrics["SumR"] for run in line.runs])
        assert record["SumR.es"] == pytest.approx(sumr) == float(rows[line.row.name]["SumR.es"])
        assert f"{sumr:.1f}" in markdown and f"{sumr:.1f}" in html
    # without the table
    assert rows["dasd"]["trained_parameters"] == "4000" and rows["zero"]["trained_parameters"] == "0"
    first = told["comparisons"][0]
    assert first["verdict"] == "shown" and first["all.low"] > 0
    assert f"{first['all.mean']:.1f}" in html and f"{first['all.mean']:+.1f}" in (folder / "comparisons.md").read_text()
    assert told["missing"] == ["bare-s1"] and "1 runs have no result yet: bare-s1" in html
    assert (folder / "results.csv").exists() and (folder / "results.json").exists()
    for name in ("comparisons", "rows", "parameters"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_of_rows_that_train_nothing_has_a_report(configs: Path, tmp_path: Path) -> None:
    plan = study(configs, tmp_path)
    for n, run in enumerate(plan.runs):
        result_of(run, *ranks(n, 5))
        told = json.loads(run.result.read_text())
        told["meta"]["parameters"]["trainable"] = 0
        run.result.write_text(json.dumps(told))
    page = write(summarise(plan, replicates=50), tmp_path / "report")
    assert (page.parent / "rows.png").exists() and not (page.parent / "parameters.png").exists()
    assert "against trained parameters" not in page.read_text()


def test_means_are_over_the_languages_that_all_rows_have(configs: Path, tmp_path: Path) -> None:
    plan = study(configs, tmp_path)
    for n, run in enumerate(plan.runs):
        result_of(run, *ranks(n, 5), languages=("en", "es", "pt") if run.row.name == "dasd" else ("en", "es"))
    summary = summarise(plan, replicates=50)
    for line in summary.lines:
        assert line.stats["all"] == line.stats["es"] and line.estimates["all"] == line.estimates["es"]
    assert summary.targets == ("es", "pt") and "over es, which all rows have" in table_markdown(summary)


def test_rows_without_a_common_language_are_not_compared(configs: Path, tmp_path: Path) -> None:
    plan = study(configs, tmp_path)
    for n, run in enumerate(plan.runs):
        result_of(run, *ranks(n, 5), languages=("en", "pt" if run.row.name == "dasd" else "es"))
    with pytest.raises(DataError, match=r"no target language is common to all rows.*dasd: en, pt"):
        summarise(plan, replicates=50)


def test_rows_that_read_texts_say_what_of_the_test_is_in_them(configs: Path, tmp_path: Path) -> None:
    plan, page = reported(configs, tmp_path)
    assert "test concepts in texts" not in (page.parent / "table.md").read_text() + page.read_text().lower()
    for run in plan.runs[:-1]:
        if run.row.name == "dasd":
            told = json.loads(run.result.read_text())
            told["meta"]["texts"] = {"rows": 900, "concepts": 60, "whole": 2, "within": 7}
            run.result.write_text(json.dumps(told))
    summary = summarise(plan, replicates=200)
    write(summary, page.parent)
    assert "| 7 of 60 (2 whole) |" in table_markdown(summary) and "<td>7 of 60 (2 whole)</td>" in page.read_text()
    rows = {row["name"]: row for row in csv.DictReader((page.parent / "rows.csv").open())}
    assert (rows["dasd"]["texts_within"], rows["dasd"]["texts_rows"], rows["zero"]["texts_within"]) == ("7", "900", "")


def test_numbers_of_parameters_have_three_digits() -> None:
    given = (0, 950, 999.6, 1234, 999_600, 3.4e6, 999.7e6, 1e9, 5.61e9)
    assert [magnitude(n) for n in given] == ["0", "950", "1 k", "1.23 k", "1 M", "3.4 M", "1 B", "1 B", "5.61 B"]


def test_the_report_escapes_what_it_shows(configs: Path, tmp_path: Path) -> None:
    _, page = reported(configs, tmp_path)
    html = page.read_text()
    assert "DASD &lt;bare&gt;" in html and "<bare>" not in html and "A toy &lt;study&gt;" in html
    assert r"a generator \| helps" in (page.parent / "comparisons.md").read_text()


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[3] / "configs/studies").glob("[a-z]*.yaml")), ids=lambda file: file.stem
)
def test_shipped_studies_and_their_configs_are_right(file: Path) -> None:
    if "rows" in load(file).data:
        plan = load_plan(file)
        assert {run.config.out for run in (*plan.first, *plan.runs)} == {plan.study.out}
    else:
        load_config(file)


def test_nothing_to_report_is_said(configs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run of the study 'toy' is complete"):
        summarise(study(configs, tmp_path))
