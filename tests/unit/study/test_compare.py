"""Comparisons of rows, against loops and simulations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccr_dist.errors import DataError
from ccr_dist.evaluate.protocols import hits, metrics, recalls
from ccr_dist.study.compare import ALL, Estimate, Judged, _seed_weights, judge, load_outcome, opened_ranks, sample
from ccr_dist.study.plan import Comparison
from tests.studies import ITEMS, ranks, result_of, study


def outcomes(
    configs: Path, out: Path, made: dict[str, list[tuple[np.ndarray, np.ndarray]]], **changes: Any
) -> dict[str, list[Any]]:
    plan = study(configs, out, seeds=list(range(max(map(len, made.values())))), **changes)
    found: dict[str, list[Any]] = {}
    for name, each in made.items():
        runs = [run for run in plan.runs if run.row.name == name]
        for run, values in zip(runs, each, strict=False):
            result_of(run, *values)
            found.setdefault(name, []).append(load_outcome(run.result, name))
    return found


def test_resampled_sums_are_the_metrics_of_repeated_items() -> None:
    random = np.random.default_rng(0)
    item = np.sort(random.integers(0, 12, 40))
    t2v, v2t = random.integers(1, 20, 40), random.integers(0, 20, 12)
    table = hits(t2v, v2t, item)
    times = random.multinomial(12, np.full(12, 1 / 12), size=5)
    for counts in times:
        captions = [t2v[n] for i in range(12) for _ in range(counts[i]) for n in np.flatnonzero(item == i)]
        asked = [v2t[i] for i in range(12) for _ in range(counts[i]) if v2t[i] > 0]
        expected = metrics(np.array(captions), np.array(asked))
        assert recalls(counts @ table).sum() == pytest.approx(expected["SumR"], abs=1e-9)


def test_a_row_is_the_mean_of_its_seeds_and_a_difference_is_paired(configs: Path, tmp_path: Path) -> None:
    made = {"dasd": [ranks(s, 5) for s in (1, 2, 3)], "bare": [ranks(s, 7) for s in (4, 5, 6)], "zero": [ranks(9, 30)]}
    found = outcomes(configs, tmp_path, made)
    drawn = sample(found, replicates=300)
    measured = {name: np.mean([metrics(*values)["SumR"] for values in each]) for name, each in made.items()}
    for name, value in measured.items():
        assert drawn[name]["es"].mean == pytest.approx(value, abs=1e-9)
    alone = sample({"dasd": found["dasd"]}, replicates=300)
    # what is drawn does not depend on the other rows
    assert np.array_equal(alone["dasd"]["es"].draws, drawn["dasd"]["es"].draws)
    # by a loop over the same draws
    times = np.random.default_rng(0).multinomial(ITEMS, np.full(ITEMS, 1 / ITEMS), size=300)
    weights = _seed_weights([0, 1, 2], 300, 0)
    for at in (0, 17, 299):
        values = []
        for t2v, v2t in made["dasd"]:
            again = np.repeat(np.arange(ITEMS), times[at])
            values.append(metrics(t2v[again], v2t[again])["SumR"])
        assert drawn["dasd"]["es"].draws[at] == pytest.approx(np.dot(weights[at], values), abs=1e-9)
    difference = (drawn["dasd"]["es"] - drawn["zero"]["es"]).estimate()
    assert (
        difference.mean == pytest.approx(measured["dasd"] - measured["zero"], abs=1e-9)
        and difference.low < difference.mean < difference.high
    )


def test_equal_rows_do_not_differ_and_verdicts_follow_the_interval(configs: Path, tmp_path: Path) -> None:
    made = {"dasd": [ranks(s, 4) for s in (1, 2)], "bare": [ranks(s, 4) for s in (1, 2)], "zero": [ranks(9, 40)]}
    drawn = sample(outcomes(configs, tmp_path, made), replicates=500)

    def verdict(a: str, b: str) -> Judged:
        return judge(Comparison(a=a, b=b, claim="x"), drawn, {name: len(each) for name, each in made.items()}, ("es",))

    same = verdict("dasd", "bare")
    # the same draws for both: nothing is left
    assert same.difference == Estimate(0.0, 0.0, 0.0) and same.verdict == "not shown"
    assert verdict("dasd", "zero").verdict == "shown" and verdict("zero", "dasd").verdict == "contradicted"
    assert verdict("dasd", "zero").seeds == (2, 1)


def test_the_mean_over_languages_is_drawn_jointly(configs: Path, tmp_path: Path) -> None:
    plan = study(configs, tmp_path)
    run, zero = plan.runs[1], plan.runs[0]
    result_of(run, *ranks(1, 5), languages=("en", "es", "pt"))
    result_of(zero, *ranks(2, 9), languages=("en", "es", "pt"))
    drawn = sample({"dasd": [load_outcome(run.result, "a")], "zero": [load_outcome(zero.result, "b")]}, replicates=400)
    judged = judge(Comparison(a="dasd", b="zero", claim="x"), drawn, {"dasd": 1, "zero": 1}, ("es", "pt"))
    # equal languages: no narrower than one
    assert judged.by_language[ALL].high == pytest.approx(judged.by_language["es"].high)
    assert set(judged.by_language) == {"es", "pt", ALL}  # the source language does not count


def test_the_seeds_share_of_the_variance_is_unbiased() -> None:
    values = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    drawn = _seed_weights([0, 1, 2, 3, 4], 200_000, 0) @ values
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 5, rel=0.02)
    assert np.array_equal(_seed_weights([0, 1], 10, 0), _seed_weights([0, 1], 10, 0))
    assert np.array_equal(_seed_weights([3], 10, 0), np.ones((10, 1)))


def test_equal_methods_are_seldom_told_apart(configs: Path, tmp_path: Path) -> None:
    """Simulated: items of different hardness, methods without a difference, three seeds each. Nominal: 5 % of the
    verdicts.
    """
    random, wrong, trials = np.random.default_rng(5), 0, 150
    base = outcomes(
        configs, tmp_path, {"dasd": [ranks(s, 5) for s in range(3)], "bare": [ranks(s, 5) for s in range(3)]}
    )
    for _ in range(trials):
        hardness = random.exponential(8, ITEMS)
        for each in (*base["dasd"], *base["bare"]):
            t2v, v2t = (1 + np.minimum(ITEMS - 1, random.exponential(hardness)).astype(int) for _ in range(2))
            each.tables["es"] = hits(t2v, v2t, np.arange(ITEMS))
        drawn = sample(base, replicates=300)
        wrong += (
            judge(Comparison(a="dasd", b="bare", claim="x"), drawn, {"dasd": 3, "bare": 3}, ("es",)).verdict
            != "not shown"
        )
    assert wrong / trials < 0.12


def test_runs_that_were_asked_different_queries_are_not_compared(configs: Path, tmp_path: Path) -> None:
    found = outcomes(configs, tmp_path, {"dasd": [ranks(1, 5)], "zero": [ranks(2, 5, ITEMS - 1)]})
    with pytest.raises(DataError, match=r"dasd-s0 and zero-s0 were asked different queries \(es\)"):
        sample(found)


def test_runs_that_were_measured_on_other_content_are_not_compared(configs: Path, tmp_path: Path) -> None:
    found = outcomes(configs, tmp_path, {"dasd": [ranks(1, 5)], "zero": [ranks(2, 5)]})
    sample(found)
    for name, rule in (("dasd", 1), ("zero", 0)):
        [outcome] = found[name]
        found[name] = [replace(outcome, result=outcome.result.model_copy(update={"rules": {"pictures": rule}}))]
    with pytest.raises(DataError, match=r"zero-s0 were not measured on the same toy/test: pictures were read by rule"):
        sample(found)


def test_ranks_that_are_missing_or_of_another_measurement_are_refused(configs: Path, tmp_path: Path) -> None:
    run = study(configs, tmp_path).runs[1]
    result_of(run, *ranks(1, 5))
    kept = run.result.with_name("test.ranks.npz").read_bytes()
    result_of(run, *ranks(2, 5))
    run.result.with_name("test.ranks.npz").write_bytes(kept)
    with pytest.raises(DataError, match="its ranks do not give the SumR"):
        load_outcome(run.result, "x")
    run.result.with_name("test.ranks.npz").unlink()
    with pytest.raises(DataError, match=r"no ranks beside test\.json"):
        load_outcome(run.result, "x")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "one array"])
def test_a_damaged_file_of_ranks_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "test.ranks.npz"
    np.savez_compressed(file, a=np.arange(1000))
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    file.write_bytes({"empty": b"", "text": b"[]", "cut": whole[:middle], "flipped": flipped}.get(damage, b""))
    if damage == "one array":
        with file.open("wb") as opened:
            np.save(opened, np.arange(3))
    said = r"test\.ranks\.npz: damaged \(.*--again` measures again"
    with pytest.raises(DataError, match=said), opened_ranks(file) as kept:
        kept["a"]
