"""Datasets without pictures (`data.texts`): who reads them, under which names, and what of the test is in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.config import QueryEncoderConfig
from ccr_dist.data.storage.checked import read_checked, with_digest
from ccr_dist.data.storage.store import pretty_json
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.jobs.featurise import Featurise
from ccr_dist.generate.runner import run
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.query_encoder import build_query_encoder
from ccr_dist.plan.step.fit import Captions, trace_fit
from ccr_dist.train.assemble import training_texts
from ccr_dist.train.inputs import check_columns, train_sets, wanted
from ccr_dist.train.loop import train_run
from ccr_dist.train.prepared import prepare_run
from ccr_dist.train.strategies.strategy import Strategy
from tests import query_side, tiny, toy
from tests.short_runs import train

SAID = {
    "caption.en": ["a red spot", "the sun", "A green spot on the top."],
    "caption.es.toy": ["una mancha roja", "el sol", "una mancha verde arriba"],
    "caption.es": ["mancha roja", "sol", None],
}


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus, and texts without pictures beside it, with features of both."""
    folder = tmp_path_factory.mktemp("texts")
    query_side.config(folder)
    dataset = create_dataset(folder / "data" / "words", name="words", split="train", keys=[["r0", "r1"], ["r2"]])
    for name, said in SAID.items():
        column = create_column(dataset, name, kind="texts", extension="json", plan={"by": "test"}, provenance={})
        for shard, part in enumerate((said[:2], said[2:])):
            column.commit(shard, [None if text is None else column.encode([text]) for text in part])
    query, backbone = query_side.encoder(folder), tiny.tiny_dual_config(folder / "dual", toy.ALL_TEXTS)
    for source, made in {"caption.en": "en", "caption.es.toy": "es", "caption.es": "own"}.items():
        job = Featurise(lambda: build_query_encoder(QueryEncoderConfig(text=query)), source)
        run(dataset, job, f"feature.q.{made}", progress=False)
    run(dataset, Featurise(lambda: build_backbone(backbone), "caption.en"), "feature.en", progress=False)
    return folder


@pytest.fixture
def folder(pattern: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(pattern, tmp_path, dirs_exist_ok=True)
    yield tmp_path


def texts(folder: Path, **own: Any) -> str:
    return f"data.texts={json.dumps([{'path': str(folder / 'data' / 'words'), **own}])}"


OWN = {"targets": {"es": "caption.es"}, "query_features": {"es": "feature.q.own"}}


def read(folder: Path) -> dict[str, int]:
    """How many captions of each language a run has summed up."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    found: dict[str, int] = next(line for line in lines if line.get("event") == "solutions")["captions"]
    return found


def test_a_closed_form_reads_them_and_the_result_counts_test_concepts_in_them(folder: Path) -> None:
    path = query_side.config(folder)
    alone = train(path, "name=alone", test=True)
    both = train(path, texts(folder), test=True)
    assert read(alone.folder) == {"en": 30, "es": 30} and read(both.folder) == {"en": 33, "es": 33}
    results = [json.loads((each.folder / "results/test.json").read_text())["meta"] for each in (alone, both)]
    # "a green spot on the top" is a test concept
    assert "texts" not in results[0]
    assert results[1]["texts"] == {"rows": 3, "concepts": 30, "whole": 1, "within": 1}
    own = train(path, texts(folder, **OWN), "name=own")
    assert read(own.folder) == {"en": 33, "es": 32}  # a row without a caption there


def test_a_kernel_towards_pictures_reads_them_too(folder: Path) -> None:
    path = query_side.config(folder, "kernel", landmarks=80, penalties=[0.1], pictures=[0.5])
    found = [train(path, *more, f"name=k{n}") for n, more in enumerate(((), (texts(folder),)))]
    assert read(found[1].folder) == {"en": 33, "es": 33}
    landmarks = [
        int((tensorfile.read(each.folder / "model.safetensors")[0]["net.kernel.landmarks"].norm(dim=1) > 0.5).sum())
        for each in found
    ]
    assert landmarks == [60, 66]


def test_a_planner_counts_them_apart_where_they_have_no_pictures(folder: Path) -> None:
    for name, apart in (("kernel", True), ("map", False)):
        found = trace_fit(load_config(query_side.config(folder, name), [texts(folder, **OWN)]), "fit").captions
        assert found == Captions(total=65, block=5, blocks=16, apart=apart, texts=5 if apart else 0)


def test_pictures_are_not_asked_of_them_and_their_own_columns_are(folder: Path) -> None:
    config = load_config(query_side.config(folder, "kernel"), [texts(folder, **OWN)])
    words = str(folder / "data" / "words")
    columns = {column for place, column in wanted(config) if place == words}
    assert columns == {"caption.en", "feature.en", "caption.es", "feature.q.en", "feature.q.own"}
    check_columns(config)
    other = {"targets": {"es": "caption.fr"}, "query_features": {"es": "feature.q.fr"}}
    lacking = load_config(query_side.config(folder), [texts(folder, **other)])
    with pytest.raises(DataError, match=r"words: no column 'caption\.fr'"):
        check_columns(lacking)


def test_stages_that_need_no_picture_read_them_and_others_do_not(folder: Path) -> None:
    steps = {"steps": 1, "batch": 10, "lr": 1e-3}
    path = query_side.config(folder, "distill", {"text": steps, "pictures": steps}, blocks=1)
    both = "method.stages=[text,pictures]"
    config = load_config(path, [texts(folder), both])
    assert [len(train_sets(config, stage)) for stage in ("text", "pictures")] == [2, 1]
    assert "una mancha roja" in set(training_texts(config))
    own = load_config(path, [texts(folder, **OWN), both])
    assert "mancha roja" in set(training_texts(own))
    trained = train(path, texts(folder), both)
    read_of = json.loads((trained.folder / "identity.json").read_text())["datasets"]
    assert any(name.startswith("words/") for name in read_of)


@pytest.mark.parametrize(
    ("method", "own", "said"),
    [
        ({"space": "shared", "pictures": [0.5]}, {}, "every stage of method 'map' with these options reads pictures"),
        ({}, {"targets": {"fr": "caption.fr"}}, r"words: targets names fr, and data\.targets does not"),
        ({}, {"targets": {"es": "caption.es"}}, "a column of its own for es; name the features of these captions"),
        ({}, {"weight": 2.0}, "different weights"),
    ],
)
def test_what_would_be_left_out_or_mixed_up_is_refused(
    folder: Path, method: dict[str, Any], own: dict[str, Any], said: str
) -> None:
    config = load_config(query_side.config(folder, **method), [texts(folder, **own)])
    with pytest.raises(ConfigError, match=said):
        check_columns(config)


def test_a_dataset_is_read_once(folder: Path) -> None:
    words, again = (str(folder / "data" / name) for name in ("words", "again"))
    path = query_side.config(folder)
    with pytest.raises(ConfigError, match="words is named twice"):
        check_columns(load_config(path, [f"data.texts={json.dumps([{'path': words}, {'path': words}])}"]))
    shutil.copytree(words, again)
    config = load_config(path, [f"data.texts={json.dumps([{'path': words}, {'path': again}])}"])
    with pytest.raises(ConfigError, match="has the rows of another dataset of this run"):
        prepare_run(config, Strategy(config.runtime))


def test_features_of_other_captions_are_refused_there_as_well(folder: Path) -> None:
    mixed = texts(folder, targets={"es": "caption.es"}, query_features={"es": "feature.q.es"})
    config = load_config(query_side.config(folder), [mixed])
    said = r"words/feature\.q\.es was made of caption\.es\.toy, and .* names caption\.es"
    with pytest.raises(ConfigError, match=said):
        train_run(config, Strategy(config.runtime))


def test_a_run_from_before_there_were_texts_goes_on(folder: Path) -> None:
    config = train(query_side.config(folder))
    record = config.folder / "identity.json"
    known, _ = read_checked(record)
    assert known["data"].pop("texts") == []
    record.write_bytes(pretty_json(with_digest(known)))
    train(query_side.config(folder), test=True)
    asked = load_config(query_side.config(folder), [texts(folder)])
    with pytest.raises(ConfigError, match=r"data\.texts"):
        train_run(asked, Strategy(asked.runtime))
