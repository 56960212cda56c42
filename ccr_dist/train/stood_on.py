"""Whether a run that is complete stands on other weights than those that its config names now: another run may have
written them anew since.

Weights that are gone, and runs that do not say on which they stood, are no difference.
"""

from __future__ import annotations

from pathlib import Path

from ccr_dist.config import RunConfig
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.evaluate.schema import RunResult
from ccr_dist.train.borrowed import weights_without_stages
from ccr_dist.train.selected import Source
from ccr_dist.train.state.run_folder import RunFolder, weights_of


def other_weights(config: RunConfig, result: RunResult) -> list[str]:
    """Keys of the config that name other weights now than when the run was made, or measured if it trains nothing.

    Args:
        config: of the run.
        result: what was measured of it.
    """
    if not config.stages:
        key = "backbone.weights" if config.init_from is None else "init_from"
        return [key] if _changed(result.meta.get("weights"), _measured(config)) else []
    kept = (RunFolder(config.folder).identity() or {}).get("weights", {})
    now = {"backbone": ("backbone.weights", weights_of(config)), "init_from": ("init_from", _source(config.init_from))}
    return [key for name, (key, digest) in now.items() if _changed(kept.get(name), digest)]


def _changed(kept: str | None, now: str | None) -> bool:
    return kept is not None and now is not None and kept != now


def _measured(config: RunConfig) -> str | None:
    try:
        return weights_without_stages(config)
    except (CheckpointError, ConfigError):  # gone, or another model: whoever measures it says so
        return None


def _source(path: str | None) -> str | None:
    try:
        return None if path is None else Source(Path(path)).digest
    except (CheckpointError, ConfigError):
        return None
