"""What jobs read and make, for pipelines: the declarations of `generate/cli.py`'s commands. Loads no models."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ccr_dist.config import BackboneConfig, MethodOptions, QueryEncoderConfig
from ccr_dist.config.base_files import reads
from ccr_dist.declare import File, Item, Place, Settings, Table, Uses, names_a_path
from ccr_dist.errors import ConfigError
from ccr_dist.methods import registry
from ccr_dist.methods.run_config import backbone_section, load_config
from ccr_dist.yamlfile import Given, of_options

Encoder = Literal["backbone", "query"]
SECTIONS = {"backbone": "backbone", "query": "method.query"}  # of a run config, for encoders


def describing(
    dataset: Path, overrides: list[str] | None, engine: str, model: str | None, prompt: str, source: str,
    captions: str | None, column: str | None, options: list[str] | None, share: str,
) -> Uses:  # fmt: skip
    """What `describe` reads and makes."""
    from ccr_dist.generate.engines.generator import generators
    from ccr_dist.generate.jobs import describe

    engines = {name: generators.get(name) for name in generators.names()}
    asked = _engine(engine, engines, both(overrides, options), model)
    items = [*asked.reads, *_prompt(prompt, describe.FIELDS)]
    texts = [] if captions is None else [captions]
    return _job(dataset, column, share, [source, *texts], items, asked.packages, asked.tools)


def translating(
    dataset: Path, overrides: list[str] | None, engine: str, model: str | None, prompt: str | None, source: str,
    column: str | None, back: bool, options: list[str] | None, share: str,
) -> Uses:  # fmt: skip
    """What `translate` reads and makes."""
    from ccr_dist.generate.engines.base import translators
    from ccr_dist.generate.engines.generator import generators
    from ccr_dist.generate.jobs import llm_translate

    if back:
        raise ConfigError("--back: in a pipeline the back translation is a separate step, after the column is complete")
    dedicated = {name: translators.get(name) for name in translators.names()}
    models = {f"{name}-llm" if name in dedicated else name: generators.get(name) for name in generators.names()}
    asked = _engine(engine, dedicated | models, both(overrides, options), model)
    if engine in dedicated and prompt is not None:
        raise ConfigError(f"--prompt is for language models ({', '.join(models)}); {engine!r} is a translation system")
    items = [*asked.reads, *([] if engine in dedicated else _prompt(prompt or "translate", llm_translate.FIELDS))]
    return _job(dataset, column, share, [source], items, asked.packages, asked.tools)


def featurising(
    dataset: Path, overrides: list[str] | None, config: Path | None, backbone: str | None, encoder: Encoder,
    engine: str | None, model: str | None, options: list[str] | None, source: str, column: str | None, device: str,
    share: str,
) -> Uses:  # fmt: skip
    """What `featurise` reads and makes."""
    given = both(overrides, options)
    if engine is not None:
        from ccr_dist.generate.engines.embedder import embedders

        require_engine_alone(config, backbone, {"--encoder": encoder != "backbone"})
        asked = _engine(engine, {name: embedders.get(name) for name in embedders.names()}, given, model)
        return _job(dataset, column, share, [source], asked.reads, asked.packages, asked.tools)
    settings = encoder_of(config, backbone, encoder, given)
    changes = tuple(f"{SECTIONS[encoder]}.{option}" for option in given)
    items: list[Item] = [] if config is None else [Settings(str(config), overrides=changes)]
    return _job(
        dataset,
        column,
        share,
        [source],
        [*items, *reads(settings)],
        ("torch",),
        (),
        device if "cuda" in device else None,
    )


def importing(dataset: Path, file: Path, column: str, share: str) -> Uses:
    """What `replay` reads and makes."""
    return _job(dataset, column, share, [None], [File(str(file))], (), ())


def require_engine_alone(config: Path | None, backbone: str | None, given: dict[str, bool]) -> None:
    """ConfigError where `featurise --engine` is given what belongs to a backbone. given: option -> it was set."""
    also = {"--config": config is not None, "--backbone": backbone is not None, **given}
    if wrong := [option for option, is_set in also.items() if is_set]:
        raise ConfigError(
            f"--engine and {', '.join(wrong)} do not go together: these are of backbones; an engine's options are"
            " KEY=VALUE"
        )


def encoder_of(
    config: Path | None, kind: str | None, encoder: Encoder, options: list[str] | None
) -> BackboneConfig | QueryEncoderConfig:
    """The settings of what `featurise` runs: a backbone, or the query encoder of a method. ConfigError."""
    if (config is None) == (kind is None):
        raise ConfigError(
            "featurise needs either --config RUN.yaml or --backbone KIND (with options as KEY=VALUE); or, for texts,"
            " --engine and --model"
        )
    if encoder == "query" and config is None:
        raise ConfigError("--encoder query is that of a run config's method: give --config RUN.yaml, not --backbone")
    if config is not None:
        changes = [f"{SECTIONS[encoder]}.{option}" for option in options or []]
        if encoder == "backbone":
            return load_config(config, changes).backbone
        _query_of(load_config(config).method, config)  # before the options of what it may not have
        return _query_of(load_config(config, changes).method, config)
    assert kind is not None
    given = {"backbone.kind": Given(kind), **{f"backbone.{key}": value for key, value in map(pair, options or [])}}
    return backbone_section(of_options(given))


def _query_of(method: MethodOptions, config: Path) -> QueryEncoderConfig:
    """ConfigError where the method has no query encoder: names those that have."""
    section = getattr(method, "query", None)
    if not isinstance(section, QueryEncoderConfig):
        having = [name for name in registry.names() if "query" in registry.options(name).model_fields]
        methods = ", ".join(having) or "none of those that are installed"
        raise ConfigError(
            f"{config}: --encoder query: method '{method.name}' has no query encoder (section method.query); methods"
            f" that have one: {methods}. `--encoder backbone` encodes texts with the backbone"
        )
    return section


def both(overrides: list[str] | None, options: list[str] | None) -> list[str]:
    """The KEY=VALUE words of a command: bare ones and those of `--set`."""
    return [*(overrides or []), *(options or [])]


def pair(option: str) -> tuple[str, Given]:
    """Key and value of an option. Raises ConfigError if it is not KEY=VALUE."""
    key, separator, value = option.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"option {option!r}: expected KEY=VALUE")
    return key.strip(), Given(value)


def options_of(pairs: list[str] | None, model: str | None) -> dict[str, object]:
    """The engine's options as typed, --model included. The engine interprets them (`check_options`)."""
    values: dict[str, object] = dict(pair(option) for option in pairs or [])
    return values if model is None else {**values, "model": Given(model)}


class _Asked(NamedTuple):
    reads: tuple[Item, ...]
    packages: tuple[str, ...]
    tools: tuple[str, ...]


def _engine(name: str, known: dict[str, Any], options: list[str] | None, model: str | None) -> _Asked:
    """The files and packages of an engine. ConfigError for an unknown name or option."""
    from ccr_dist.generate.engines.base import check_options

    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
        raise ConfigError(f"unknown engine {name!r}{hint}")
    values: Any = check_options(name, known[name].Options, options_of(options, model))
    files: tuple[Item, ...] = ()
    if name == "replay":
        files = (File(values.path),)
    elif getattr(values, "model", None) is not None and names_a_path(values.model) and known[name].local:
        files = (Place(values.model),)
    return _Asked(files, known[name].packages, known[name].tools)


def _prompt(name: str, fields: tuple[str, ...]) -> list[Item]:
    """The file of a prompt. ConfigError if it is wrong or missing."""
    from ccr_dist.generate.jobs.prompts import load_prompt
    from ccr_dist.resources import is_path

    load_prompt(name, fields)
    return [Settings(name)] if is_path(name) else []


def _job(
    dataset: Path, column: str | None, share: str, sources: Sequence[str | None], items: Sequence[Item],
    packages: tuple[str, ...], tools: tuple[str, ...], device: str | None = None,
) -> Uses:  # fmt: skip
    if column is None:
        raise ConfigError("--column is missing: in a pipeline a job must name the column that it makes")
    if share != "0/1":
        raise ConfigError("--share: in a pipeline use `tasks` of the step: each task of the array gets its own share")
    made = Table(str(dataset), column)
    reads = (*(Table(str(dataset), source) for source in sources), *items)
    return Uses(reads=reads, makes=(made,), fills=made, packages=packages, tools=tools, device=device)
