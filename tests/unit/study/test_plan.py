"""Plans of studies: every run with its overrides, places on errors, results of other configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config
from ccr_dist.study.plan import load_plan, state
from tests import toy
from tests.studies import ranks, result_of, study


def test_a_plan_has_every_run_with_the_studys_overrides(configs: Path, tmp_path: Path) -> None:
    plan = study(configs, tmp_path)
    assert [run.name for run in plan.first] == ["english-s0"]
    # nothing random in zero-shot
    assert [run.name for run in plan.runs] == ["zero-s0", "dasd-s0", "dasd-s1", "bare-s0", "bare-s1"]
    bare = plan.runs[-1]
    assert (
        bare.config.data.group is None
        and bare.config.method.use == "none"  # type: ignore[attr-defined]
        and bare.config.folder == tmp_path / "bare-s1"
    )
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


def test_a_row_starts_from_the_runs_of_an_earlier_one(configs: Path, tmp_path: Path) -> None:
    toy.config(configs, {"name": "fusion", "weights": [0.5]}, {}, backbone={"kind": "dual"})
    rows: list[dict[str, Any]] = [
        {"name": "dasd", "config": "dasd.yaml", "overrides": ["method.rank=8", "method.discriminator_lr=1e-5"]},
        {"name": "fused", "config": "fusion.yaml", "start_from": "dasd"},
        {"name": "again", "config": "dasd.yaml", "start_from": "dasd"},
        {"name": "from-english", "config": "dasd.yaml", "start_from": "english", "seeds": [4]},
    ]
    plan = study(configs, tmp_path, rows=rows, comparisons=[])
    runs = {run.name: run for run in plan.runs}
    assert list(runs) == ["dasd-s0", "dasd-s1", "fused-s0", "fused-s1", "again-s0", "again-s1", "from-english-s4"]
    fused = runs["fused-s1"]
    assert fused.config.init_from == str(tmp_path / "dasd-s1") and fused.after == "dasd-s1"
    assert fused.config.method.learner() == runs["dasd-s1"].config.method
    assert fused.config.method.weights == (0.5,)  # type: ignore[attr-defined]
    what, path, *overrides = fused.arguments
    assert what == "evaluate" and load_config(path, overrides) == fused.config
    assert runs["again-s0"].arguments[0] == "train" and runs["again-s0"].config.init_from == str(tmp_path / "dasd-s0")
    assert runs["from-english-s4"].config.init_from == str(tmp_path / "english-s0")
    assert [run.name for run in plan.select(["fused"], [1]).runs] == ["fused-s1"]
    for changed, message in (
        ({"start_from": "dsad"}, "no earlier row is called 'dsad'; did you mean 'dasd'"),
        ({"start_from": "fused"}, "no earlier row is called 'fused'"),
        ({"start_from": "dasd", "seeds": [7]}, "row 'dasd' has no seed 7"),
    ):
        with pytest.raises(ConfigError, match=rf"study\.yaml:\d+: row 'fused': start_from: {message}"):
            study(configs, tmp_path, rows=[rows[0], {**rows[1], **changed}], comparisons=[])


def test_an_override_may_name_the_seed(configs: Path, tmp_path: Path) -> None:
    """Each seed stands on the English run of its own, in rows without training, too."""
    toy.config(configs, {"name": "fusion"}, {}, backbone={"kind": "dual"})
    rows: list[dict[str, Any]] = [
        {"name": "zero", "config": "clip.yaml"},
        {"name": "dasd", "config": "dasd.yaml"},
        {"name": "fused", "config": "fusion.yaml", "start_from": "dasd"},
    ]
    weights = f"backbone.weights={tmp_path}/english-s{{seed}}"
    plan = study(configs, tmp_path, rows=rows, comparisons=[], overrides=[weights])
    assert [run.name for run in plan.runs] == ["zero-s0", "zero-s1", "dasd-s0", "dasd-s1", "fused-s0", "fused-s1"]
    for run in plan.runs:
        assert run.config.backbone.weights == f"{tmp_path}/english-s{run.config.seed}"
        _, path, *overrides = run.arguments
        assert load_config(path, [each for each in overrides if each != "--test"]) == run.config
    assert plan.runs[-1].config.init_from == str(tmp_path / "dasd-s1")
    assert [run.name for run in plan.select(["zero"], [1]).runs] == ["zero-s1"]


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


@pytest.mark.parametrize("x", [".inf", ".nan", "0"])
def test_a_point_of_a_curve_is_at_a_finite_number(tmp_path: Path, x: str) -> None:
    path = tmp_path / "s.yaml"
    row = f"{{name: x, config: c.yaml, curve: c, x: {x}}}"
    path.write_text(f"name: a\ntitle: t\nout: {tmp_path}/o\nseeds: [0]\ngrowth: {{x: c}}\nrows: [{row}]\n")
    with pytest.raises(ConfigError, match=r"s\.yaml:6: rows\.0\.x: expected [^\n]*$"):
        load_plan(path)
