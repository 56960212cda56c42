"""Every registered method can be planned, in each of its stages; one that nobody thought of here, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist.config import FitConfig
from ccr_dist.errors import ConfigError
from ccr_dist.methods import registry
from ccr_dist.methods.run_config import from_dict
from ccr_dist.plan.cost.fit import fit_memory
from ccr_dist.plan.cost.memory import memory
from ccr_dist.plan.predict import stages_of
from ccr_dist.plan.step.fit import trace_fit
from ccr_dist.plan.step.trace import trace
from tests import every_method


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", registry.names())
def test_a_method_is_traced_on_two_ranks(folder: Path, name: str) -> None:
    config = from_dict(every_method.config(folder, name), name=name)
    if not config.stages:
        with pytest.raises(ConfigError, match=f"method '{name}' has nothing to train"):
            stages_of(config)
    for stage, settings in config.stages.items():
        if isinstance(settings, FitConfig):
            fitted = trace_fit(config, stage, captions=8)
            flops = [kind.flops for kinds in fitted.operators.values() for kind in kinds]
            parts, _ = fit_memory(fitted, world=2, saves=True, host=True)
            weights = fitted.frozen_bytes + fitted.trained_bytes
            assert sum(fitted.sums) > 0 and fitted.found > 0
        else:
            made = trace(config, stage, world=2, tokens=8)
            flops = list(made.flops.values())
            parts = memory(made, strategy="ddp")
            weights = made.frozen_bytes + made.trained_bytes
            assert made.trained > 0
        assert sum(flops) > 0 and sum(parts.values()) > weights > 0
