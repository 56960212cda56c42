"""Reading a run config: the schema, the options of its method and the section of its backbone, and what only all
together can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ccr_dist import yamlfile
from ccr_dist.config import BackboneConfig, FitConfig, MethodOptions, RunConfig
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
    options = method_section(document)
    changed = {"method": options, "backbone": backbone_section(document), **_fits(document, options)}
    whole = document.replaced({**document.data, **changed})
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


def method_section(document: yamlfile.Document, at: tuple[str, ...] = ("method",)) -> MethodOptions:
    """The section of a method, checked by its options; of a method on top of another (`of`), that one's first.

    Args:
        document: the run config.
        at: path of the section.

    Raises:
        ConfigError: names the place.
    """
    raw: Any = document.data
    for key in at:
        raw = raw.get(key) if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        known = ", ".join(registry.names())
        raise ConfigError(f"{document.place(at)}: '{'.'.join(at)}' needs a name; known methods: {known}")
    kind = registry.options(raw["name"], place=document.place((*at, "name")))
    if "of" in kind.model_fields and "of" in raw:
        inner = method_section(document, (*at, "of"))
        document = document.replaced(_with(document.data, (*at, "of"), inner))
    return yamlfile.validate(kind, document, at=at)


def _with(values: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested mappings with another value at a path."""
    key, *below = path
    return {**values, key: _with(values[key], below, value) if below else value}


def _fits(document: yamlfile.Document, options: MethodOptions) -> dict[str, Any]:
    """The section `stages`, with those in closed form checked: their keys are not those of other stages."""
    stages = document.data.get("stages")
    if not isinstance(stages, dict):
        return {}
    fits = {name for name, stage in options.training_stages().items() if stage.closed_form and name in stages}
    checked = {name: yamlfile.validate(FitConfig, document, at=("stages", name)) for name in fits}
    return {"stages": {**stages, **checked}} if fits else {}


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
