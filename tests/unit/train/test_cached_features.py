"""Cached features that stand in by themselves: which columns do, which do not, and what a run says and keeps of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist.config import RunConfig
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.jobs.featurise import Featurise
from ccr_dist.generate.runner import run
from ccr_dist.methods.run_config import load_config
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.train import cached_features, commands
from ccr_dist.train.inputs import check_columns
from ccr_dist.train.state.run_folder import RunFolder
from tests import toy

IMAGE, ENGLISH = "feature.made.image", "feature.made.caption.en"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.dasd(tmp_path, cla=2, cma=2)


class Before(Featurise):
    """As it was before pictures were turned by EXIF: no rule in the plan."""

    def plan(self) -> dict[str, Any]:
        return {key: value for key, value in super().plan().items() if key != "pictures"}


def featurise(
    path: Path,
    source: str,
    name: str,
    *,
    dataset: Path | None = None,
    share: tuple[int, int] = (0, 1),
    kind: Any = Featurise,
    **options: Any,
) -> None:
    processor = kind(lambda: build_backbone(load_config(path).backbone), source, device="cpu", **options)
    run(Dataset.open(dataset or path.parent / "data" / "train"), processor, name, share=share, progress=False)


def read(path: Path, *overrides: str) -> tuple[dict[str, Any], list[str]]:
    config = load_config(path, overrides)
    stages = config.method.training_stages()
    return cached_features.all_fields(config, stages, RunFolder(config.folder))


def train(path: Path, *overrides: str) -> RunConfig:
    config = load_config(path, overrides)
    assert commands.train([config], test=False, world=None) == 0
    return config


def losses(config: RunConfig) -> list[float]:
    log = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in log if "loss" in line and "event" not in line]


def test_columns_of_the_same_encoder_and_content_stand_in_and_the_run_says_so(path, capsys):
    assert read(path) == read(path, "runtime.cached_features=false")
    computed = train(path, "name=computed")
    assert "cached features" not in capsys.readouterr().err
    assert json.loads((computed.folder / "identity.json").read_text())["pictures"] == VERSION
    for source, name in (("image", IMAGE), ("caption.en", ENGLISH)):
        featurise(path, source, name)
    fields, lines = read(path)
    assert (fields["cla"].visual, fields["cla"].source_feature) == (None, ENGLISH)
    assert (fields["cma"].visual, fields["cma"].source_feature) == (IMAGE, ENGLISH)
    assert len(lines) == 2
    read_ones = train(path, "name=cached")
    assert capsys.readouterr().err.count("reads cached features") == 2
    assert losses(read_ones) == pytest.approx(losses(computed), rel=1e-3)
    assert losses(read_ones) != losses(computed)  # float16
    assert set(json.loads((read_ones.folder / "identity.json").read_text())["datasets"]) >= {
        f"toy/train/{n}" for n in (IMAGE, ENGLISH)
    }
    off = train(path, "name=again", "runtime.cached_features=false")
    assert losses(off) == losses(computed)


def test_a_run_goes_on_with_the_columns_it_began_with(path, capsys):
    first = train(path, "name=begun", "stages.cma.steps=1")
    for source, name in (("image", IMAGE), ("caption.en", ENGLISH)):
        featurise(path, source, name)
    train(path, "name=begun")
    assert "cached features" not in capsys.readouterr().err
    assert len(losses(first)) == 4
    with pytest.raises(ConfigError, match=f"(?s)another plan.*{IMAGE}"):
        train(path, "name=with")
        train(path, "name=with", "runtime.cached_features=false", "stages.cma.steps=3")


def test_what_does_not_stand_in(path, tmp_path):
    """Tokens and half precision; then the right column, unless anything of the encoder, the content or the stage is
    another.
    """
    featurise(path, "image", "feature.tokens", tokens=True)
    featurise(path, "image", "feature.bf16", precision="bf16")
    assert read(path)[0]["cma"].visual == "image"
    assert read(path, "runtime.precision=bf16")[0]["cma"].visual == "feature.bf16"
    featurise(path, "image", IMAGE)
    assert read(path)[0]["cma"].visual == IMAGE
    assert read(path, "data.visual=feature.toy")[0]["cma"].visual == "feature.toy"
    assert read(path, "backbone.image_size=64")[0]["cma"].visual == "image"  # other preprocessing and weights

    others = toy.build(tmp_path / "more", "train")
    more = f"data.train=[{{path: {path.parent / 'data' / 'train'}}}, {{path: {others.root}}}]"
    assert read(path, more)[0]["cma"].visual == "image"  # one of two datasets has none
    featurise(path, "image", IMAGE, dataset=others.root, share=(0, 2))
    assert read(path, more)[0]["cma"].visual == "image"  # half a column
    featurise(path, "image", IMAGE, dataset=others.root)
    assert read(path, more)[0]["cma"].visual == IMAGE


def test_pictures_that_were_read_by_another_rule_do_not_stand_in_for_those_of_today(path):
    data = path.parent / "data"
    featurise(path, "image", IMAGE, kind=Before)
    assert "pictures" not in Dataset.open(data / "train").column(IMAGE).plan
    fields, lines = read(path)
    assert fields["cma"].visual == "image"
    assert any(f"does not read {IMAGE} in place of image" in line and "featurise" in line for line in lines)
    with pytest.raises(DataError, match=r"(?s)by rule 0, they are now read by rule 1.*--column NAME"):
        featurise(path, "image", IMAGE)
    assert len(Dataset.open(data / "train").column(IMAGE).value(0, 0)) == 1  # what is there can be read as before
    folder = RunFolder(load_config(path).folder)
    folder.path.mkdir(parents=True)
    (folder.path / "identity.json").write_text(json.dumps({"datasets": {f"toy/train/{IMAGE}": "0"}}))
    assert read(path)[0]["cma"].visual == IMAGE  # a run goes on with what it began with


def test_a_run_on_features_has_read_no_pictures(path):
    train = Dataset.open(path.parent / "data" / "train")
    place = f"{train.name}/{train.split}"
    assert cached_features.read_pictures({"datasets": {f"{place}/image": "0"}}, [train], "image")
    assert not cached_features.read_pictures({"datasets": {f"{place}/{IMAGE}": "0"}}, [train], "image")
    assert not cached_features.read_pictures(None, [train], "image")


def test_a_run_that_began_under_another_rule_for_pictures_goes_on_and_says_so():
    (said,) = cached_features.of_another_rule({"seed": 0}, {"seed": 0, "pictures": VERSION})
    assert "began when pictures were read by rule 0, and from here on they are read by rule 1" in said
    assert (
        cached_features.of_another_rule(None, {"pictures": VERSION})
        == cached_features.of_another_rule({"pictures": VERSION}, {"pictures": VERSION})
        == []
    )
    assert cached_features.of_another_rule({"seed": 0}, {"seed": 0}) == []  # reads no pictures


def test_features_of_one_name_that_were_made_in_two_ways_are_not_compared_with_each_other(path):
    data = path.parent / "data"
    config = load_config(path, [f"data.visual={IMAGE}"])
    featurise(path, "image", IMAGE, kind=Before)
    others = {str(place) for place in (config.data.val, config.data.test) if place}
    for place in others:
        featurise(path, "image", IMAGE, dataset=Path(place))
    with pytest.raises(DataError, match=rf"(?s){IMAGE} was made in another way.*pictures: .*train None, .*val 1"):
        check_columns(config)
    assert data.exists() and others


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "full", "train": "text"}, IMAGE),
        ({"name": "full", "train": "all"}, "image"),
        ({"name": "hybrid", "rank": 4, "heads": 2, "width": 16}, "feature.tokens"),
        ({"name": "described", "rank": 4, "heads": 2}, IMAGE),
    ],
)
def test_methods_say_what_they_read_frozen(path, method, expected):
    featurise(path, "image", IMAGE)
    featurise(path, "image", "feature.tokens", tokens=True)
    values = yaml.safe_load(path.read_text())
    values["method"] = {"frontend": values["method"]["frontend"]} | method
    values["data"]["description"] = "caption.en"
    path.write_text(yaml.safe_dump(values))
    assert read(path)[0]["cma"].visual == expected


def test_an_english_stage_that_keeps_the_picture_side_reads_its_cached_features(path):
    featurise(path, "image", IMAGE)
    featurise(path, "caption.en", ENGLISH)
    values = yaml.safe_load(path.read_text())
    values["stages"] = {"english": values["stages"]["cla"]}
    for train_, expected in (("heads", (IMAGE, ENGLISH)), ("text", (IMAGE, None)), ("all", ("image", None))):
        values["method"] = {"name": "english", "train": train_}
        path.write_text(yaml.safe_dump(values))
        fields = read(path)[0]["english"]
        assert (fields.visual, fields.source_feature) == expected
