"""Reading a run config: the schema, the options of its method and the section of its backbone, and what only all
together can tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ccr_dist import yamlfile
from ccr_dist.config import BackboneConfig, RunConfig
from ccr_dist.errors import ConfigError
from ccr_dist.methods import registry
from ccr_dist.models.backbones import registry as backbones


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read and check a run config. Raises ConfigError naming file, line, key and the nearest valid key."""
    return check(yamlfile.load(path, overrides))


def check(document: yamlfile.Document) -> RunConfig:
    """A checked RunConfig: the options of its method, the section of its backbone, the schema, then what only all of
    them can tell.
    """
    raw = document.data.get("method")
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ConfigError(
            f"{document.place(('method',))}: 'method' needs a name; known methods: {', '.join(registry.names())}"
        )
    kind = registry.options(raw["name"], place=document.place(("method", "name")))
    options = yamlfile.validate(kind, document, at=("method",))
    whole = document.replaced({**document.data, "method": options, "backbone": backbone_section(document)})
    config = yamlfile.validate(RunConfig, whole)
    order = list(options.training_stages())
    if set(config.stages) != set(order):
        unknown = [name for name in config.stages if name not in order]
        detail = (
            f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(set(order) - set(config.stages))}"
        )
        place = document.place(("stages", *unknown[:1]))
        raise ConfigError(f"{place}: method {options.name!r} has the stages {', '.join(order) or '(none)'}; {detail}")
    return config.model_copy(update={"stages": {name: config.stages[name] for name in order}})


def backbone_section(document: yamlfile.Document) -> BackboneConfig:
    """The section `backbone` of a document, checked by its kind. Raises ConfigError naming the place."""
    section = document.data.get("backbone")
    if not isinstance(section, dict) or not isinstance(section.get("kind"), str):
        known = ", ".join(backbones.kinds())
        raise ConfigError(f"{document.place(('backbone',))}: 'backbone' needs a kind; known kinds: {known}")
    place = f"{document.place(('backbone', 'kind'))}: backbone.kind"
    return yamlfile.validate(backbones.config(section["kind"], place=place), document, at=("backbone",))


def from_dict(values: dict[str, Any], *, name: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Rebuild a config that a run or model folder keeps. Raises ConfigError as `load_config`.

    Args:
        values: of the config.
        name: of the place that keeps it, for messages.
        overrides: `key.sub=value`, any number.
    """
    return check(yamlfile.overridden(yamlfile.Document(name=name, data=values), overrides))
