"""`ccr-dist methods`: all methods with what they read and what makes that; run configs are counted; nothing heavy
without.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.config import INPUTS, DataConfig, RunConfig
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.methods import catalogue, registry
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method
from ccr_dist.methods.params import count
from ccr_dist.methods.run_config import load_config
from ccr_dist.train.assemble import check_columns, training_texts
from tests import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    toy.dasd(folder)
    return folder


def built(config: RunConfig) -> Method:
    return build_method(config, texts=training_texts(config))


def test_every_method_is_listed_with_its_stages() -> None:
    listed = {method["name"]: method for method in catalogue.catalogue()}
    assert list(listed) == registry.names()
    for name, method in listed.items():
        assert 10 < len(method["summary"]) < 250 and "\n" not in method["summary"], name
        kind = registry.method(name)
        assert [stage["name"] for stage in method["stages"]] == list(kind.Options(name=name).training_stages())
    assert listed["dasd"]["summary"].startswith("DASD: dynamic adapters")
    assert listed["dasd"]["test"]["keys"] == ["data.queries", "data.visual"]
    assert listed["leccr"]["test"]["keys"] == ["data.description", "data.queries", "data.visual"]
    assert listed["nrccr"]["test"]["keys"] == ["data.queries", "data.translated_queries", "data.visual"]
    assert listed["translate_test"]["test"]["keys"] == ["data.translated_queries", "data.visual"]
    assert listed["dasd"]["stages"][0]["keys"] == ["data.source", "data.source_feature", "data.targets"]


def test_every_batch_field_has_config_keys_and_commands_that_exist() -> None:
    assert catalogue.COLUMNS.keys() == INPUTS | {"queries", "translated_queries"}
    commands: Any = typer.main.get_command(app)
    for field, column in catalogue.COLUMNS.items():
        assert all(key.removeprefix("data.") in DataConfig.model_fields for key in column.keys), field
        for told in re.findall("`(.*?)`", column.made_by):
            name, *words = told.split()
            command = commands.commands[name]
            command = getattr(command, "commands", {}).get(words[0], command) if words else command
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, told


def test_the_list_needs_no_torch() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from ccr_dist.cli import app\n"
        "done = CliRunner().invoke(app, ['methods']); assert 'dasd' in done.stdout, done\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_json() -> None:
    done = CliRunner().invoke(app, ["methods", "--json"])
    assert [method["name"] for method in json.loads(done.stdout)] == registry.names()


def test_parameters_of_runs_that_are_not_trained_yet(folder: Path) -> None:
    path = toy.dasd(
        folder,
        name="later",
        backbone={**json.loads((folder / "clip.json").read_text()), "weights": str(folder / "not-yet")},
    )
    (row,) = catalogue.parameters([path], built)
    config = load_config(path, ["backbone.weights=null"])
    numbers = count(build_method(config, texts=training_texts(config)))
    assert {key: row[key] for key in ("front_end", "table", "total", "trainable", "auxiliary")} == {
        key: numbers[key] for key in ("front_end", "table", "total", "trainable", "auxiliary")
    }
    assert row["parts"] == {key: numbers[key] for key in ("adapter", "characteristics", "generator")}
    assert row["trainable"] == sum(row["parts"].values()) + row["front_end"] + row["table"]
    assert row["share"] == pytest.approx(row["trainable"] / row["total"])
    assert (row["name"], row["method"], row["languages"]) == ("later", "dasd", ["es"])


def test_zero_shot_trains_nothing(folder: Path) -> None:
    (row,) = catalogue.parameters([toy.config(folder, {"name": "clip"}, {})], built)
    assert row["trainable"] == row["share"] == 0 and not row["parts"] and row["total"] > 0


def test_no_digit_is_cut_off_on_a_narrow_terminal(folder: Path) -> None:
    path = toy.dasd(folder, name="a-run-with-a-rather-long-name")
    done = CliRunner().invoke(app, ["methods", str(path)], env={"COLUMNS": "40"})
    (row,) = catalogue.parameters([path], built)
    for number in (
        row["front_end"],
        row["table"],
        row["total"],
        row["trainable"],
        row["auxiliary"],
        *row["parts"].values(),
    ):
        assert f"{number:,}" in done.stdout


def test_what_is_missing_is_named(folder: Path) -> None:
    no_texts = toy.dasd(folder, name="no-texts", data={"train": [{"path": "nowhere"}]})
    with pytest.raises(DataError, match=r"no-texts\.yaml: the training texts.*nowhere: not a dataset"):
        catalogue.parameters([no_texts], built)
    no_model = toy.dasd(folder, name="no-model")
    no_model.write_text(re.sub("embeddings: .*", "embeddings: no/such-model", no_model.read_text()))
    with pytest.raises(ConfigError, match=r"no-model\.yaml: .*no/such-model"):
        catalogue.parameters([no_model], built)


# columns of the toy corpus in these roles
HAS = {"back_translations": {"es": "caption.en.toy"}, "description": "caption.en"}
TRANSLATE, FEATURISE = "translate TRAIN --engine ENGINE", "featurise TRAIN --config CONFIG.yaml"
ASK = TRANSLATE.replace("TRAIN", "VAL")
ABSENT = [
    ("dasd", "targets.es", "caption.es.opus", f"{TRANSLATE} --to es --column caption.es.opus"),
    (
        "dasd",
        "source_feature",
        "feature.vit.caption.en",
        f"{FEATURISE} --from caption.en --column feature.vit.caption.en",
    ),
    ("dasd", "visual", "feature.vit.image", f"{FEATURISE} --from image --column feature.vit.image"),
    ("leccr", "visual", "feature.vit.image.tokens-7", f"{FEATURISE} --from image --tokens --column"),
    (
        "leccr",
        "description",
        "description.qwen",
        "describe TRAIN --engine vllm --model MODEL --column description.qwen",
    ),
    ("nrccr", "back_translations.es", "caption.en.back-es-opus", f"{TRANSLATE} --to es --back"),
    (
        "nrccr",
        "translated_queries.es",
        "caption.en.opus",
        f"{ASK} --to en --from caption.LANG --column caption.en.opus",
    ),
    (
        "translate_test",
        "translated_queries.es",
        "caption.en.opus",
        f"{ASK} --to en --from caption.LANG --column caption.en.opus",
    ),
    ("clip", "queries.es", "caption.xx", "shards build"),
]


@pytest.mark.parametrize(("name", "key", "column", "job"), ABSENT)
def test_a_column_that_is_not_there_is_named_with_its_key_and_its_job(
    folder: Path, name: str, key: str, column: str, job: str
) -> None:
    section, _, lang = key.partition(".")
    config = run(folder, name, {**HAS, section: {lang: column} if lang else column})
    data = folder / "data"
    with pytest.raises(DataError) as error:
        check_columns(config)
    assert str(error.value).startswith(f"{name}: data.{key}: {data}")
    assert f"`ccr-dist {job.replace('TRAIN', str(data / 'train')).replace('VAL', str(data / 'val'))}" in str(
        error.value
    )


@pytest.mark.parametrize(("key", "place"), [("train", [{"path": "nowhere"}]), ("val", "nowhere"), ("test", "nowhere")])
def test_a_dataset_that_is_not_there_is_named_with_its_own_key(folder: Path, key: str, place: Any) -> None:
    with pytest.raises(DataError, match=rf"dasd: data\.{key}: nowhere: not a dataset"):
        check_columns(run(folder, "dasd", {key: place}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dasd", {"targets": {}}, r"data\.targets is empty.*`ccr-dist translate --to LANG`"),
        ("leccr", {"description": None}, r"data\.description is not set.*`ccr-dist describe`"),
        (
            "nrccr",
            {"back_translations": {}},
            r"data\.back_translations names no column for es.*`ccr-dist translate --back`",
        ),
    ],
)
def test_a_column_that_is_not_named_is_asked_for_with_its_job(
    folder: Path, name: str, change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_columns(run(folder, name, {**HAS, **change}))


@pytest.mark.parametrize(
    ("key", "column", "kind"),
    [("queries.en", "image", "image"), ("queries.es", "label.concept", "label"), ("group", "caption.en", "texts")],
)
def test_a_column_of_another_kind_is_no_query_and_no_group(folder: Path, key: str, column: str, kind: str) -> None:
    section, _, lang = key.partition(".")
    config = run(folder, "clip", {**HAS, section: {lang: column} if lang else column})
    with pytest.raises(ConfigError, match=rf"clip: data\.{key}: {folder}.*column {column} is of kind {kind}; expected"):
        check_columns(config)


def run(folder: Path, name: str, data: dict[str, Any]) -> RunConfig:
    """A run of any method on the toy corpus, never built."""
    kind = registry.method(name)
    stages = {stage: {"steps": 1, "batch": 2, "lr": 1e-3} for stage in kind.Options(name=name).training_stages()}
    path = toy.config(folder, {"name": name}, stages)
    values = yaml.safe_load(path.read_text())
    values["data"] |= data
    path.write_text(yaml.safe_dump(values))
    return load_config(path)
