"""Plans of studies: every run with its overrides, places on errors, results of other configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.study.plan import state
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
