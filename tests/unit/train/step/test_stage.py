"""What of a config reaches a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.losses.context import Context
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
from ccr_dist.train.step import stage
from tests import toy


def test_how_losses_are_computed_and_over_what_is_the_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def context(**options: Any) -> Context:
        made.append(options)
        return Context(**options)

    monkeypatch.setattr(stage, "Context", context)
    config = toy.dasd(tmp_path, cla=1, cma=1)
    assert (
        commands.train(
            [load_config(config, ["runtime.contrastive=ring", "stages.cma.negatives=local"])], test=False, world=None
        )
        == 0
    )
    assert [(options["loss"], options["scope"]) for options in made] == [("ring", "global"), ("ring", "local")]
    known = json.loads((load_config(config).folder / "identity.json").read_text())
    assert known["processes"] == 1, "they decide the result of a local loss"
    with pytest.raises(ConfigError, match=r"runtime\.micro_batch needs stages\.cma\.negatives: global"):
        commands.train(
            [load_config(config, ["name=cut", "runtime.micro_batch=4", "stages.cma.negatives=local"])],
            test=False,
            world=None,
        )
