"""Options that are newer than a run folder, where their defaults of today are not what the run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.config import RunConfig
from ccr_dist.data.storage.checked import with_digest
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config
from ccr_dist.train.state import run_folder
from tests import toy


def begun_before(path: Path, option: str, *overrides: str, weights: tuple[str, ...] = ()) -> RunConfig:
    """A run folder whose identity knows nothing of a method's `option`."""
    config = load_config(path, overrides)
    known: dict[str, Any] = json.loads(json.dumps(run_folder.identity(config, {}, {}, world=1)))
    known["method"].pop(option, None)
    for key in weights:
        del known["weights"][key]
    config.folder.mkdir(parents=True)
    (config.folder / "identity.json").write_text(json.dumps(with_digest(known)))
    return config


def same(config: RunConfig) -> None:
    """What going on and measuring ask for."""
    folder = run_folder.RunFolder(config.folder)
    folder.require_same(config)
    assert folder.claim(config, run_folder.identity(config, {}, {}, world=1))


@pytest.mark.parametrize(
    ("method", "option", "before"),
    [
        ({"name": "leccr", "visual": "image"}, "caption_marks", "ascii"),
        ({"name": "nrccr", "pooling": "all"}, "padding_reads", "tokens"),
    ],
)
def test_a_run_of_before_goes_on_and_is_measured_only_as_it_was(
    tmp_path: Path, method: dict[str, Any], option: str, before: str
) -> None:
    path = toy.config(tmp_path, method, {"train": {"steps": 2, "batch": 4, "lr": 1e-3}})
    today = begun_before(path, option)
    folder = run_folder.RunFolder(today.folder)
    difference = rf"(?s)method\.{option}: there '{before}', asked"
    with pytest.raises(ConfigError, match=difference):
        folder.require_same(today)
    with pytest.raises(ConfigError, match=difference):
        folder.claim(today, run_folder.identity(today, {}, {}, world=1))
    same(load_config(path, [f"method.{option}={before}"]))


def test_modes_that_did_the_same_before_go_on(tmp_path: Path) -> None:
    stages = {"train": {"steps": 2, "batch": 4, "lr": 1e-3}}
    same(begun_before(toy.config(tmp_path / "a", {"name": "leccr", "mode": "intended"}, stages), "caption_marks"))
    same(begun_before(toy.config(tmp_path / "b", {"name": "nrccr"}, stages), "padding_reads"))


def test_an_encoder_that_was_pooled_by_the_mean_is_not_pooled_otherwise(tmp_path: Path) -> None:
    stages = {"train": {"steps": 2, "batch": 4, "lr": 1e-3}}
    encoder = tmp_path / "encoder"
    (encoder / "1_Pooling").mkdir(parents=True)
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    path = toy.config(tmp_path / "run", {"name": "nrccr"}, stages, backbone={"kind": "dual", "text": str(encoder)})
    config = begun_before(path, "padding_reads", weights=("pooling",))
    same(config)  # no modules.json: the mean, as before
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": at} for kind, at in kinds]
    (encoder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=r"weights\.pooling: there '{}', asked .*cls"):
        run_folder.RunFolder(config.folder).require_same(config)


@pytest.mark.parametrize(
    ("method", "newer", "said"),
    [
        ({"name": "leccr", "visual": "image"}, "caption_marks", "slots that score the same"),
        ({"name": "nrccr"}, "padding_reads", "hardest negatives that tie"),
    ],
)
def test_what_no_option_brings_back_is_told(tmp_path: Path, method: dict[str, Any], newer: str, said: str) -> None:
    path = toy.config(tmp_path, method, {"train": {"steps": 2, "batch": 4, "lr": 1e-3}})
    (line,) = run_folder.otherwise(run_folder.RunFolder(begun_before(path, newer).folder).identity())
    assert line.startswith("this run began with an earlier version: of " + said)
    assert (
        run_folder.otherwise(run_folder.identity(load_config(path), {}, {}, world=1))
        == run_folder.otherwise(None)
        == []
    )


def test_without_slots_nothing_ties(tmp_path: Path) -> None:
    known = {"method": {"name": "leccr", "descriptions": False}}
    assert run_folder.otherwise(known) == run_folder.otherwise({"method": {"name": "gone"}}) == []
