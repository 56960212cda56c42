"""Studies: plans with places on errors; runs that fail, stop, are skipped and go on; comparisons against loops and
simulations.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ccr_dist.config import as_dict, load_config
from ccr_dist.errors import CRASH, DONE, STOPPED, ConfigError, DataError
from ccr_dist.evaluate.protocols import hits, language_result, metrics, recalls
from ccr_dist.evaluate.schema import RunResult
from ccr_dist.study import runner
from ccr_dist.study.compare import ALL, Estimate, Judged, _seed_weights, judge, load_outcome, sample
from ccr_dist.study.plan import Comparison, Plan, Run, load_plan, state
from ccr_dist.study.report import summarise, table_markdown, write
from ccr_dist.study.runner import run_study
from ccr_dist.train.validation import keep_ranks
from ccr_dist.yamlfile import load
from tests import toy

ITEMS = 60


# A study on the toy corpus's configs, whose runs are acted by small scripts.


def make_study(folder: Path, **changes: Any) -> Path:
    """FOLDER/study.yaml: zero-shot, and DASD with and without its generator, two seeds, on a prepared English run."""
    stage = {"steps": 3, "batch": 10, "lr": 1e-2}
    zero = toy.config(folder, {"name": "clip"}, {}, backbone={"kind": "dual"})
    dasd = toy.config(folder, {"name": "dasd"}, {"cla": stage, "cma": stage}, backbone={"kind": "dual"})
    values = {
        "name": "toy",
        "title": "A toy <study>",
        "out": str(folder / "out"),
        "seeds": [0, 1],
        "overrides": ["data.group=null"],
        "first": [{"name": "english", "config": zero.name}],
        "rows": [
            {"name": "zero", "label": "zero-shot", "config": zero.name, "group": "baselines"},
            {"name": "dasd", "label": "DASD", "config": dasd.name},
            {"name": "bare", "label": "DASD <bare>", "config": dasd.name, "overrides": ["method.use=none"]},
        ],
        "comparisons": [
            {"a": "dasd", "b": "zero", "claim": "DASD > zero-shot", "group": "adapters"},
            {"a": "dasd", "b": "bare", "claim": "a generator | helps", "group": "parts"},
        ],
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_study(folder)
    return folder


def study(configs: Path, out: Path, **changes: Any) -> Plan:
    return load_plan(make_study(configs, out=str(out), **changes))


def result_of(run: Run, t2v: np.ndarray, v2t: np.ndarray, languages: tuple[str, ...] = ("es",)) -> RunResult:
    """Writes a run's results as `evaluate` does: one caption an item, the same ranks in each language."""
    item = np.arange(len(v2t))
    found = {
        lang: language_result(f"caption.{lang}", t2v, v2t, v2t, item, replicates=20, counts={"groups": len(v2t)})
        for lang in languages
    }
    result = RunResult(
        name=run.name, label="as measured", method=run.config.method.name, seed=run.config.seed, dataset="toy",
        split="test",
        dataset_digest="d", items=len(v2t), groups=len(v2t), languages=found, config=as_dict(run.config), test_reads=1,
        meta={"parameters": {"trainable": 5000 if run.config.stages else 0, "table": 1000, "total": 9000}},
    )  # fmt: skip
    run.result.parent.mkdir(parents=True, exist_ok=True)
    run.result.write_text(result.model_dump_json())
    arrays = {"t2v": t2v, "v2t": v2t, "item": item, "rows": np.arange(len(v2t)) + 3}
    keep_ranks(run.result.with_name("test.ranks.npz"), dict.fromkeys(languages, arrays))
    return result


def ranks(seed: int, scale: float, items: int = ITEMS) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    t2v, v2t = (1 + np.minimum(items - 1, random.exponential(scale, items)).astype(int) for _ in range(2))
    return t2v, v2t


# Plans.


def test_a_plan_has_every_run_with_the_studys_overrides(configs: Path, tmp_path: Path) -> None:
    plan = study(configs, tmp_path)
    assert [run.name for run in plan.first] == ["english-s0"]
    # nothing random in zero-shot
    assert [run.name for run in plan.runs] == ["zero-s0", "dasd-s0", "dasd-s1", "bare-s0", "bare-s1"]
    bare = plan.runs[-1]
    assert (
        bare.config.data.group is None
        and bare.config.method.use == "none"
        and bare.config.folder == tmp_path / "bare-s1"
    )  # type: ignore[attr-defined]
    assert bare.arguments[0] == "train" and bare.arguments[-1] == "--test" and plan.runs[0].arguments[0] == "evaluate"
    assert bare.config.row == "DASD <bare>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seedz": [1]}, r"study\.yaml:\d+: unknown key 'seedz'; did you mean 'seeds'"),
        ({"seeds": []}, r"study\.yaml:\d+: seeds"),
        ({"overrides": ["data.grupo=null"]}, r"study\.yaml:\d+: row 'english': override .*unknown key 'data.grupo'"),
        (
            {"comparisons": [{"a": "dasd", "b": "zer", "claim": "x"}]},
            r"study\.yaml:\d+: no row is called 'zer'; did you mean 'zero'",
        ),
        (
            {"rows": [{"name": "zero", "config": "nowhere.yaml"}]},
            r"study\.yaml:\d+: row 'zero': .*nowhere\.yaml: no such file",
        ),
        ({"rows": [{"name": "english", "config": "clip.yaml"}]}, "two rows have the name 'english'"),
        (
            {"rows": [{"name": "a", "label": "b", "config": "clip.yaml"}, {"name": "b", "config": "clip.yaml"}]},
            "two rows have the label 'b'",
        ),
        ({"overrides": ["data.test=null"]}, "data.test names no dataset"),
    ],
)
def test_what_is_wrong_in_a_study_is_named_with_its_place(
    configs: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        study(configs, tmp_path, **{"comparisons": [], **changes})


def test_a_part_of_a_study(configs: Path, tmp_path: Path) -> None:
    plan = study(configs, tmp_path)
    assert [run.name for run in plan.select(["dasd", "zero"], [1]).runs] == ["zero-s0", "dasd-s1"]
    with pytest.raises(ConfigError, match=r"--only dasl: .*did you mean 'dasd'"):
        plan.select(["dasl"], None)
    with pytest.raises(ConfigError, match="--seeds 7"):
        plan.select(["dasd"], [7])


def test_a_result_of_another_config_is_refused(configs: Path, tmp_path: Path) -> None:
    run = study(configs, tmp_path).runs[1]
    assert state(run) == "new"
    (run.config.folder / "checkpoints").mkdir(parents=True)
    assert state(run) == "interrupted"
    result_of(run, *ranks(0, 5))
    assert state(run) == "complete"
    changed = [{"name": "dasd", "config": "dasd.yaml", "overrides": ["runtime.workers=1", "stages.cla.steps=9"]}]
    other = study(configs, tmp_path, rows=changed, comparisons=[]).runs[0]
    with pytest.raises(
        ConfigError, match=r"(?s)measured under another config.*stages.*steps.*delete that run's folder"
    ) as caught:
        state(other)
    assert "workers" not in str(caught.value)  # how a run is carried out does not decide its numbers


def test_options_that_are_newer_than_a_result_have_their_defaults(configs: Path, tmp_path: Path) -> None:
    run = study(configs, tmp_path).runs[1]
    result_of(run, *ranks(0, 5))
    values = json.loads(run.result.read_text())
    del values["config"]["method"]["consistency"], values["config"]["select"]
    run.result.write_text(json.dumps(values))
    assert state(run) == "complete"


# Running.

ACTOR = """
import json, os, pathlib, signal, sys, time
name, result, behaviour, trace = sys.argv[1:]
note = lambda what: open(trace, "a").write(json.dumps([what, name, time.time()]) + "\\n")
note("begin")
if behaviour == "fail":
    print("line one\\nthe reason of " + name, flush=True)
    sys.exit(7)
if behaviour == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (note("stopped"), os._exit(75)))
    open(trace + "." + name, "w").close()
    time.sleep(60)
time.sleep(0.3)
if behaviour == "work":
    path = pathlib.Path(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    (path.parent.parent / "checkpoints").mkdir()
note("end")
"""


class Actor(subprocess.Popen):
    exitcode = property(subprocess.Popen.poll)


class Actors:
    """In place of `Warm`: processes of the script."""

    def __init__(self, script: Path) -> None:
        self.script = script

    def start(self, arguments: list[str], log: Path) -> Actor:
        with log.open("ab") as file:
            return Actor([sys.executable, str(self.script), *arguments], stdout=file, stderr=file)


class Acted:
    """Runs are acted; `trace()` says what began and ended, in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.file, self.behaviour = folder, folder / "trace", dict[str, str]()
        script = folder / "actor.py"
        script.write_text(ACTOR)
        monkeypatch.setattr(
            runner,
            "command_of",
            lambda run, threads: [run.name, str(run.result), self.behaviour.get(run.name, "work"), str(self.file)],
        )
        monkeypatch.setattr(runner, "Warm", lambda threads: Actors(script))
        self.said: list[str] = []

    def run(self, plan: Plan, jobs: int = 2, **options: Any) -> int:
        self.said.clear()
        return run_study(plan, jobs=jobs, say=self.said.append, **options)

    def trace(self, what: str) -> list[str]:
        lines = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        return [name for kind, name, _ in lines if kind == what]

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def acted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Acted:
    return Acted(tmp_path, monkeypatch)


def complete(plan: Plan) -> None:
    for run in (*plan.first, *plan.runs):
        result_of(run, *ranks(0, 5))


def test_runs_are_carried_out_together_and_in_order(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out")
    assert acted.run(plan, jobs=2) == DONE
    assert acted.trace("begin")[0] == "english-s0" and sorted(acted.trace("end")) == sorted(
        run.name for run in (*plan.first, *plan.runs)
    )
    lines = [json.loads(line) for line in acted.file.read_text().splitlines()]
    kinds = [kind for kind, _, _ in lines]
    assert kinds[:2] == ["begin", "end"]  # nothing stands beside what the others stand on
    most = max(kinds[:n].count("begin") - kinds[:n].count("end") for n in range(len(kinds) + 1))
    assert most == 2
    assert "6 runs, 0 complete, 6 to do; 2 at a time" in acted.said[0]
    assert (
        acted.said[1].startswith("[1/6] english-s0: done")
        and "ETA" in acted.said[1]
        and acted.said[6].startswith("[6/6]")
    )
    assert (tmp_path / "out/logs/dasd-s1.log").read_text().startswith("$ ")


def test_complete_runs_are_skipped(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out")
    complete(plan)
    plan.runs[2].result.unlink()
    (plan.runs[2].config.folder / "checkpoints").mkdir()
    assert acted.run(plan, dry_run=True) == DONE and acted.trace("begin") == []
    assert sum(line.startswith("complete ") for line in acted.said) == 5 and "interrupted  dasd-s1" in acted.text
    (plan.runs[2].config.folder / "checkpoints").rmdir()
    assert acted.run(plan) == DONE and acted.trace("begin") == ["dasd-s1"]


def test_a_failure_stops_nobody_and_is_told_at_the_end(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out")
    acted.behaviour = {"dasd-s0": "fail"}
    assert acted.run(plan) == 7
    assert sorted(acted.trace("begin")) == sorted(run.name for run in (*plan.first, *plan.runs))
    assert "dasd-s0: FAILED with exit code 7" in acted.text
    end = acted.text[acted.text.index("1 run failed") :]
    assert "dasd-s0: exit code 7" in end and "    | the reason of dasd-s0" in end and "dasd-s0.log" in end
    acted.behaviour = {"bare-s1": "nothing"}  # ends well, without a result
    assert acted.run(study(configs, tmp_path / "other").select(["bare"], None)) == CRASH


def test_rows_do_not_start_on_a_failed_prerequisite(configs: Path, tmp_path: Path, acted: Acted) -> None:
    acted.behaviour = {"english-s0": "fail"}
    assert acted.run(study(configs, tmp_path / "out")) == 7
    assert acted.trace("begin") == ["english-s0"] and "5 runs were not started" in acted.text


def test_a_stop_request_reaches_the_runs(configs: Path, tmp_path: Path, acted: Acted) -> None:
    acted.behaviour = dict.fromkeys(["zero-s0", "dasd-s0"], "wait")

    def stop() -> None:
        while not all((tmp_path / f"trace.{name}").exists() for name in acted.behaviour):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=stop)
    asking.start()
    assert acted.run(study(configs, tmp_path / "out")) == STOPPED
    asking.join()
    assert (
        sorted(acted.trace("stopped")) == ["dasd-s0", "zero-s0"] and "the same command goes on from here" in acted.text
    )
    assert "failed" not in acted.text and len(acted.trace("begin")) == 3


def test_checkpoints_of_measured_rows_can_be_dropped(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out", checkpoints="drop")
    assert acted.run(plan) == DONE
    assert not (plan.runs[1].config.folder / "checkpoints").exists() and plan.runs[1].result.exists()
    assert (plan.first[0].config.folder / "checkpoints").exists()  # others stand on it


def test_a_missing_column_is_said_before_anything_runs(configs: Path, tmp_path: Path, acted: Acted) -> None:
    plan = study(configs, tmp_path / "out", overrides=["data.targets={es: caption.es.none}"])
    with pytest.raises(DataError, match=r"dasd: .*caption\.es\.none"):
        acted.run(plan)
    assert acted.trace("begin") == []


# Comparing.


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


# The report.


def reported(configs: Path, out: Path) -> tuple[Plan, Path]:
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
