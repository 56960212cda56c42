"""Recalls by length and by agreement of translations: against loops over the queries, with several captions a row and
seeds.
"""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ccr_dist.data.media.decode import encode
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.evaluate.schema import read_result, written
from ccr_dist.study.bins import _counted, _queries, binned, markdown
from ccr_dist.study.cli import study_app
from ccr_dist.study.plan import StudyPlan, load_plan
from tests import toy
from tests.studies import make_study, result_of

ITEMS = 24


@pytest.fixture
def plan(configs, tmp_path) -> StudyPlan:
    """Rows zero (one run) and dasd, bare (two seeds) with results on 24 of the toy corpus's 30 rows, the 4th to the
    27th.
    """
    plan = load_plan(make_study(configs, out=str(tmp_path / "out")))
    for n, run in enumerate(plan.runs):
        random = np.random.default_rng(n)
        result_of(run, random.integers(1, 14, ITEMS), random.integers(1, 14, ITEMS))
    return plan


def ranks_of(run):
    with np.load(run.result.with_name("test.ranks.npz")) as kept:
        return kept["es/t2v"]


def test_recalls_by_length_are_those_of_the_queries_of_that_length(plan):
    (table,) = binned(plan, "words", 3)
    lengths = [len(toy.SPANISH[(n + 3) % 30].split()) for n in range(ITEMS)]
    assert table.lang == "es" and sum(table.queries) == ITEMS and len(set(lengths)) > 0
    for b, name in enumerate(table.bins):
        low, high = (float(x) for x in name.split("–"))
        inside = [n for n in range(ITEMS) if low <= lengths[n] <= high]
        assert len(inside) == table.queries[b]
        for label, row in (("zero-shot", "zero"), ("DASD", "dasd"), ("DASD <bare>", "bare")):
            runs = [ranks_of(run) for run in plan.runs if run.row.name == row]
            for k, found in zip((1, 10), table.recalls[label][b], strict=True):
                assert found == pytest.approx(100 * np.mean([ranks[n] <= k for ranks in runs for n in inside]))


def test_differences_are_paired_over_queries(plan, monkeypatch):
    monkeypatch.setattr(
        "ccr_dist.study.bins._measure", lambda by: lambda dataset, column, lang, asked: asked[:, 0].astype(float)
    )
    (table,) = binned(plan, "rows", 2)
    assert table.bins == ("3–14", "15–26") and table.queries == (12, 12)
    dasd, zero = ([ranks_of(run) for run in plan.runs if run.row.name == name] for name in ("dasd", "zero"))
    for b, inside in enumerate((range(12), range(12, 24))):
        each = [100 * (np.mean([r[n] <= 10 for r in dasd]) - np.mean([r[n] <= 10 for r in zero])) for n in inside]
        mean, error = table.differences["DASD > zero-shot"][b]
        assert mean == pytest.approx(np.mean(each)) and error == pytest.approx(1.96 * np.std(each, ddof=1) / 12**0.5)
    assert "a generator | helps" in table.differences


def test_agreement_is_chrf_of_two_columns(plan):
    sacrebleu = pytest.importorskip("sacrebleu")
    (table,) = binned(plan, "chrf:caption.{lang}:caption.en", 2)
    score = sacrebleu.metrics.CHRF().sentence_score
    values = [round(score(toy.SPANISH[n % 30], [toy.ENGLISH[n % 30]]).score) for n in range(3, 3 + ITEMS)]
    assert float(table.bins[0].split("–")[0]) == min(values) and float(table.bins[-1].split("–")[1]) == max(values)
    assert sum(table.queries) == ITEMS
    (same,) = binned(plan, "chrf:caption.es:caption.es", 4)
    assert same.bins == ("100–100",) and same.queries == (ITEMS,)


def test_captions_of_one_row_are_asked_in_their_order(tmp_path):
    dataset = create_dataset(tmp_path / "d", name="d", split="test", keys=[["a", "b"], ["c"]])
    column = create_column(dataset, "caption.es", kind="texts", extension="json", plan={}, provenance={})
    for shard, values in enumerate(([["one", "two"], None], [["three"]])):
        column.commit(shard, [encode("texts", value) for value in values])
    asked = np.array([[0, 0], [0, 1], [2, 0]])
    assert np.array_equal(_counted(asked[:, 0]), asked[:, 1])
    assert _queries(Dataset(tmp_path / "d"), "caption.es", asked) == ["one", "two", "three"]
    assert _queries(Dataset(tmp_path / "d"), "caption.es", np.array([[0, 1]])) == ["two"], "the first was blank"
    with pytest.raises(DataError, match=r"caption\.es: row 2 has 1 texts, and query 1 was asked"):
        _queries(Dataset(tmp_path / "d"), "caption.es", np.array([[2, 1]]))


def test_what_cannot_be_binned_is_refused(plan, configs, tmp_path):
    with pytest.raises(ConfigError, match="expected words, or chrf:A:B"):
        binned(plan, "length")
    with pytest.raises(DataError, match="is complete"):
        binned(load_plan(make_study(configs, out=str(tmp_path / "nothing"))), "words")
    (plan.runs[0].result.with_name("test.ranks.npz")).unlink()
    with pytest.raises(DataError, match="no ranks beside"):
        binned(plan, "words")


def test_runs_on_other_queries_are_noticed(plan):
    file = plan.runs[-1].result.with_name("test.ranks.npz")
    with np.load(file) as kept:
        arrays = {name: kept[name] for name in kept}
    np.savez(file, **{**arrays, "es/rows": arrays["es/rows"] + 1})
    with pytest.raises(DataError, match="other queries than"):
        binned(plan, "words")


def test_runs_that_were_measured_on_other_content_are_not_set_beside_each_other(plan):
    for number, run in enumerate(plan.runs[:2]):
        result = read_result(run.result)
        run.result.write_bytes(written(result.model_copy(update={"rules": {"pictures": number}})))
    with pytest.raises(DataError, match="were not measured on the same toy/test: pictures were read by rule"):
        binned(plan, "words")


def test_the_command_writes_tables(plan, configs, tmp_path):
    file = configs / "study.yaml"  # the last study made there: that of `plan`
    done = CliRunner().invoke(study_app, ["bins", str(file), "--count", "2"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "out/report"
    text = (folder / "bins-words.md").read_text()
    assert text in done.output and text == markdown(binned(plan, "words", 2)) and "| *DASD > zero-shot* |" in text
    records = list(csv.DictReader((folder / "bins-words.csv").open()))
    assert {record["row"] for record in records} == {"zero-shot", "DASD", "DASD <bare>"} and json.loads(
        records[0]["R10"]
    ) >= 0
