"""Run configs: method options and stages are checked with the rest, and every shipped config is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ccr_dist.config import as_dict
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import from_dict, load_config
from tests.shipped import ROOT, SHIPPED

RUN = """\
name: run
backbone: {kind: open_clip, model: ViT-B-32}
method: {name: static, hidden: 64}
data:
  train: [{path: d/train}]
  val: d/val
  targets: {es: caption.es.apertium}
  queries: {es: caption.es}
stages:
  cma: {steps: 3, batch: 4, lr: 1e-4}
  cla: {steps: 5, batch: 4, lr: 1e-3}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_stages_come_in_the_methods_order_and_options_are_its_own(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, RUN), ["method.hidden=128"])
    assert list(config.stages) == ["cla", "cma"]
    assert config.method.hidden == 128  # type: ignore[attr-defined]
    assert str(config.folder) == "runs/run-s0"


def test_a_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, RUN))
    assert from_dict(yaml.safe_load(yaml.safe_dump(as_dict(config))), name="kept") == config


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("hidden: 64", "hiden: 64"), "run.yaml:3: unknown key 'method.hiden'; did you mean 'hidden'?"),
        (("name: static", "name: statik"), "run.yaml:3: unknown method 'statik'; did you mean 'static'?"),
        (("lr: 1e-3", "learning_rate: 1e-3"), "run.yaml:11: unknown key 'stages.cla.learning_rate'"),
        (("  cma:", "  cmb:"), "run.yaml:10: method 'static' has the stages cla, cma; unknown: cmb"),
        (("steps: 5", "steps: 0"), "run.yaml:11: stages.cla.steps:"),
        (("kind: open_clip, model", "kind: openclip, model"), "run.yaml:2: backbone"),
        (("model: ViT-B-32", "modell: ViT-B-32"), "run.yaml:2: unknown key 'backbone.modell'; did you mean 'model'?"),
        (("  val: d/val\n", ""), "'data.val' is missing"),
        (("{name: static, hidden: 64}", "{hidden: 64}"), "'method' needs a name; known methods:"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    assert change[0] in RUN
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, RUN.replace(*change)))
    assert expected in str(error.value)


@pytest.mark.parametrize("path", SHIPPED, ids=[str(path.relative_to(ROOT)) for path in SHIPPED])
def test_shipped_configs_are_valid(path: Path) -> None:
    load_config(path)
