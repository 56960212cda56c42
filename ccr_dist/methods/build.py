"""From a run config to its method, on its backbone: for training, evaluation and everything that loads a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ccr_dist.config import ENGLISH, RunConfig
from ccr_dist.methods import registry
from ccr_dist.methods.base import Method
from ccr_dist.methods.seeding import seed_all
from ccr_dist.models.backbones.build import build_backbone


def learnt_languages(config: RunConfig) -> tuple[str, ...]:
    """The target languages that some stage of the method trains on, in the order of the config."""
    learnt: dict[str, None] = {}
    for stage in config.method.learner().training_stages().values():
        if stage.closed_form:
            learnt |= dict.fromkeys(config.data.query_features)
        elif "target_text" in stage.needs:
            learnt |= dict.fromkeys(config.data.targets)
    return tuple(lang for lang in learnt if lang != ENGLISH)


def build_method(
    config: RunConfig, *, texts: Iterable[str] | None = None, state: Mapping[str, Any] | None = None
) -> Method:
    """Backbone and method of a run, with the start that its seed fixes.

    Args:
        config: the run config.
        texts: target-language training texts, for methods sized by their vocabulary; not needed with `state`.
        state: `method.state()` of an earlier start of the same run.

    Raises:
        ConfigError: a model, package or file cannot be loaded, or options, backbone and languages do not fit together.
    """
    seed_all(config.seed, "build")
    backbone = build_backbone(config.backbone)
    kind = registry.method(config.method.name)
    return kind(
        config.method, backbone, learnt_languages(config), texts=texts, state=dict(state) if state is not None else None
    )
