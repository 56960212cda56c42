"""Published settings: every config is valid, no base is left over, and what they train on and differ in."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist import yamlfile
from tests.published_configs import CONFIGS, DASD, EVERY, FOLDERS, resolved

pytestmark = pytest.mark.long


def bases(path: Path) -> list[Path]:
    return [each for each in yamlfile.files(path) if each != path.resolve()]


@pytest.mark.parametrize("path", EVERY, ids=[str(path.relative_to(CONFIGS)) for path in EVERY])
def test_valid_short_and_consistent(path: Path) -> None:
    config = resolved(path)
    assert len(path.read_text().splitlines()) <= 20, "one YAML an experiment, short: what is shared goes to a base"
    assert {path.stem for path in EVERY if resolved(path).folder == config.folder} == {path.stem}, (
        "two configs share a run folder"
    )
    learnt = set(config.data.targets)
    if config.stages and config.method.name != "english":
        assert learnt and learnt <= set(config.data.queries), (
            "every learnt language is selected and measured by human captions"
        )
    for lang, column in config.data.targets.items():
        assert column.startswith(f"caption.{lang}.") and config.data.queries[lang] == f"caption.{lang}", (
            "trained on MT, asked by people"
        )


def test_no_base_is_left_over() -> None:
    wanted = [path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("_")]
    used: set[Path] = set()
    while wanted:
        new = {base for base in bases(wanted.pop()) if base not in used}
        used |= new
        wanted += new
    left = [
        path for folder in (".", *FOLDERS) for path in (CONFIGS / folder).glob("_*.yaml") if path.resolve() not in used
    ]
    assert not left


def test_intended_differs_in_the_switches_alone() -> None:
    released, intended = (resolved(f"multi30k/{name}.yaml").model_dump() for name in ("dasd", "dasd_intended"))
    changed = {key: value for key, value in intended["method"].items() if released["method"][key] != value}
    assert changed == {
        "positives": "group",
        "positions": "tokens",
        "discriminator": "isolated",
        "pairing": "derangement",
    }
    for stage in ("cla", "cma"):
        assert {**released["stages"][stage], "decay_tables": False} == intended["stages"][stage]
    assert released["data"] == intended["data"] and released["backbone"] == intended["backbone"]


def test_zero_shot_setting_never_trains_on_what_it_is_measured_on() -> None:
    for path in DASD[:3]:
        data = resolved(path).data
        assert [entry.path for entry in data.train] == ["data/cc300k/train"]
        assert not data.val.startswith("data/cc300k") and set(data.targets.values()) == {
            f"caption.{lang}.uc2" for lang in data.targets
        }


@pytest.mark.parametrize("folder", ["multi30k", "mscoco"])
def test_finetune_setting_stands_on_its_english_run(folder: str) -> None:
    english = resolved(f"{folder}/english.yaml")
    for path in (path for path in DASD[3:] if path.startswith(folder)):
        config = resolved(path)
        assert config.backbone.weights == str(english.folder)
        # the name that `ccr-dist featurise` gives the features of this backbone
        assert config.data.visual == f"feature.vit-b-16-quickgelu-{english.folder.name}.image"
        assert config.data.source_feature == f"feature.vit-b-16-quickgelu-{english.folder.name}.caption.en"
    assert english.method.model_dump() == {"name": "english", "train": "all", "scale": 100, "positives": "diagonal"}
