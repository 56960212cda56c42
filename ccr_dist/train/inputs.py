"""Which datasets and columns a run reads, and whether they are there. From metadata alone, and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ccr_dist.config import ENGLISH, RunConfig, Stage, TextSet, TrainSet
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.storage.store import differences
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError

# columns of which evaluation needs at least one value
ASKED = ("data.visual", "data.queries.", "data.translated_queries.")
# what a column has to be for evaluation, by the key that names it; of `data.visual` the gallery says it
KINDS = {
    "group": ("label",),
    "description": ("views", "texts"),
    "queries": ("texts", "views"),
    "translated_queries": ("texts", "views"),
}


def train_sets(config: RunConfig, stage: str) -> tuple[TrainSet, ...]:
    """The datasets that a stage reads: its own ones, or those of all stages and the texts that are of use to it."""
    settings = config.stages.get(stage)  # none where the method was trained by another run
    if settings and settings.train:
        return settings.train
    known = config.method.learner().training_stages()
    texts = config.data.texts if stage in known and known[stage].reads_texts else ()
    return (*config.data.train, *texts)


def fields_of(fields: Fields, entry: TrainSet) -> Fields:
    """The columns that a stage reads of one dataset: a dataset of texts has no pictures, and may have its own names."""
    if not isinstance(entry, TextSet):
        return fields

    def own(columns: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
        return {lang: named.get(lang, column) for lang, column in columns.items()}

    return replace(
        fields,
        visual=None,
        many=False,
        group=None,
        texts={},
        targets=own(fields.targets, entry.targets),
        query_features=own(fields.query_features, entry.query_features),
    )


def fields_for(config: RunConfig, stage: Stage) -> Fields:
    """The columns that a stage reads; what it does not need is not read."""
    data = config.data
    if "target_text" in stage.needs and not data.targets:
        raise ConfigError(
            f"{config.name}: data.targets is empty, but method {config.method.name!r} learns from translated captions:"
            " name a column for each language that `ccr-dist translate --to LANG` makes"
        )
    if "description" in stage.needs and data.description is None:
        raise ConfigError(
            f"{config.name}: data.description is not set, but method {config.method.name!r} reads descriptions: name a"
            " column that `ccr-dist describe` makes with a multimodal LLM, or `ccr-dist replay` from a file"
        )
    backs: dict[str, str] = {}
    back_features: dict[str, str] = {}
    if {"back_text", "back_feature"} & stage.needs:
        cached_backs = "back_text" not in stage.needs and bool(data.back_features)
        chosen = data.back_features if cached_backs else data.back_translations
        missing = sorted(data.targets.keys() - chosen.keys())
        if missing:
            key = "back_features" if cached_backs else "back_translations"
            made = "`ccr-dist featurise --from caption.en.back-...`" if cached_backs else "`ccr-dist translate --back`"
            raise ConfigError(
                f"{config.name}: data.{key} names no column for {', '.join(missing)}, but method {config.method.name!r}"
                f" reads back-translations: {made} makes such columns"
            )
        columns = {lang: chosen[lang] for lang in data.targets}
        backs, back_features = ({}, columns) if cached_backs else (columns, {})
    queried = _query_features(config, stage) if "query_feature" in stage.needs else {}
    cached = "source_feature" in stage.needs and data.source_feature is not None
    media = {"visual", "tokens"} & stage.needs
    captions = stage.needs - {"visual", "tokens", "description"}
    return Fields(
        visual=data.visual if media else None,
        many="tokens" in stage.needs,
        source=data.source if captions else None,
        targets=_targets(config, stage),
        source_feature=data.source_feature if cached else None,
        backs=backs,
        back_features=back_features,
        query_features=queried,
        description=data.description if "description" in stage.needs else None,
        group=data.group if media else None,
    )


def _targets(config: RunConfig, stage: Stage) -> dict[str, str]:
    """Language -> captions that a stage reads; in closed form only to know which of them are blank."""
    data = config.data
    if stage.closed_form:
        return {lang: data.targets[lang] for lang in data.query_features if lang != ENGLISH}
    return dict(data.targets) if "target_text" in stage.needs else {}


def _query_features(config: RunConfig, stage: Stage) -> dict[str, str]:
    """Language -> cached features by the query encoder that a stage reads; empty: they are computed."""
    data = config.data
    if stage.closed_form:
        if data.source_feature is None or not data.query_features:
            raise ConfigError(
                f"{config.name}: a stage in closed form of method {config.method.name!r} sums up cached features, so"
                " data.source_feature and data.query_features (at least en) have to name columns: `ccr-dist featurise"
                " --from caption.en` makes the one, with `--encoder query` the other"
            )
        if unknown := sorted(data.query_features.keys() - data.targets.keys() - {ENGLISH}):
            raise ConfigError(
                f"{config.name}: data.query_features names {', '.join(unknown)}, but data.targets does not: name there"
                " the column of captions that the features were made of"
            )
        return dict(data.query_features)
    if not data.query_features:
        return {}
    languages = list(data.targets) if "target_text" in stage.needs else [ENGLISH]
    if missing := [lang for lang in languages if lang not in data.query_features]:
        raise ConfigError(
            f"{config.name}: data.query_features names no column for {', '.join(missing)}: `ccr-dist featurise"
            " --encoder query` makes one; or name none at all, and they are computed in every step"
        )
    return {lang: data.query_features[lang] for lang in languages}


def wanted(config: RunConfig) -> dict[tuple[str, str], str]:
    """(dataset, column) -> the key that names it, of everything that a run reads to train, to validate and to be
    tested.
    """
    data = config.data
    found: dict[tuple[str, str], str] = {}

    def want(path: str, columns: Mapping[str, str | None]) -> None:
        for key, column in columns.items():
            if column is not None:
                found.setdefault((path, column), f"data.{key}")

    for name, stage in config.method.training_stages().items():
        read = fields_for(config, stage)
        for entry in train_sets(config, name):
            fields = fields_of(read, entry)
            single = {
                key: getattr(fields, key) for key in ("visual", "source", "source_feature", "description", "group")
            }
            each = {"targets": fields.targets, "back_translations": fields.backs, "back_features": fields.back_features}
            each["query_features"] = fields.query_features
            want(entry.path, single)
            want(
                entry.path,
                {f"{key}.{lang}": column for key, columns in each.items() for lang, column in columns.items()},
            )
    for path in filter(None, (data.val, data.test)):
        for key, column in asked(config):
            want(path, {key: column})
    return found


def asked(config: RunConfig) -> list[tuple[str, str]]:
    """(key below `data`, column) of everything that evaluation reads of a split."""
    data, method = config.data, config.method
    described = "description" in method.gallery()
    single = {"visual": data.visual, "group": data.group, "description": data.description if described else None}
    found = [(key, column) for key, column in single.items() if column is not None]
    for lang, column in [*method.query_columns(data).items(), *method.companions(data).items()]:
        found.append((f"{'queries' if column == data.queries.get(lang) else 'translated_queries'}.{lang}", column))
    return found


def measured_on(config: RunConfig, dataset: Dataset) -> tuple[dict[str, str], dict[str, int]]:
    """What a result of `dataset` is measured on: the digest of every column that is read and of those these were made
    of, by name; and the rules that decided what was seen of the gallery ("pictures", "texts": `VERSION` of
    `data.pictures` and `data.text` then).
    """
    columns: dict[str, str] = {}
    rules: dict[str, int] = {}
    for key, name in asked(config):
        column = dataset.column(name)
        columns = {**column.inputs, **columns, name: column.digest}
        if key == "visual" and column.kind == "image":
            rules["pictures"] = VERSION
        elif key == "visual" and column.plan.get("processor") == "featurise":
            side = "text" if "engine" in column.plan else column.plan.get("backbone", {}).get("side")
            rule = {"image": "pictures", "text": "texts"}.get(side)
            rules |= {rule: column.plan.get(rule, 0)} if rule else {}
    return columns, rules


def validation_columns(config: RunConfig) -> dict[str, str]:
    """Column -> digest of what a run is selected on (`measured_on`); empty where it is gone, or nothing is named."""
    if config.data.val is None:
        return {}
    try:
        return measured_on(config, Dataset.open(config.data.val))[0]
    except (ConfigError, DataError):
        return {}


def check_columns(config: RunConfig, split: str | None = None) -> None:
    """Says early, with the key that names it and the command that makes it, which datasets and columns are missing, all
    in one message. Reads metadata only.

    Args:
        config: of the run.
        split: "val" or "test", where that alone is read; None: all that the run reads.

    Raises:
        ConfigError, DataError: a dataset or column is missing, or is none that can be used so.
    """
    if split is None:
        _require_even(config)
        _require_texts_read(config)
    evaluated = [config.data.val, config.data.test] if split is None else [getattr(config.data, split)]
    places = {path: key for key, path in (("data.test", config.data.test), ("data.val", config.data.val)) if path}
    places |= {
        entry.path: f"stages.{name}.train" for name, stage in config.stages.items() for entry in stage.train or ()
    }
    places |= {entry.path: "data.texts" for entry in config.data.texts}
    places |= {entry.path: "data.train" for entry in config.data.train}
    made: dict[str, tuple[str, dict[str, Any]]] = {}
    wrong: dict[str, DataError | ConfigError] = {}
    for (path, column), key in wanted(config).items():
        if split is not None and path not in evaluated:
            continue
        place = places[path]
        try:
            dataset = Dataset.open(path)
            place = key
            dataset.column(column).require_complete()
            _require_alike(made, dataset, column)
            if key.startswith(ASKED):
                _require_value(dataset, column)
        except (ConfigError, DataError) as error:
            wrong.setdefault(f"{config.name}: {place}: {error}", error)  # a dataset that is not there is said once
    for path in () if wrong else filter(None, evaluated):
        for key, column in asked(config):  # a column may have several keys
            try:
                _require_kind(Dataset.open(path), column, key.split(".")[0])
            except ConfigError as error:
                wrong.setdefault(f"{config.name}: data.{key}: {error}", error)
    if wrong:
        asked_wrongly = any(isinstance(error, ConfigError) for error in wrong.values())
        raise (ConfigError if asked_wrongly else DataError)("\n".join(wrong))


def _require_even(config: RunConfig) -> None:
    """ConfigError where datasets of a stage in closed form have weights: it reads every caption once."""
    for name, stage in config.method.training_stages().items():
        weights = {entry.weight for entry in train_sets(config, name)}
        if stage.closed_form and len(weights) > 1:
            own = config.stages.get(name)
            raise ConfigError(
                f"{config.name}: {f'stages.{name}' if own and own.train else 'data'}.train gives datasets different"
                f" weights, and stage {name} in closed form counts every caption once: leave the weights out, or name"
                f" the datasets of this stage under stages.{name}.train without them"
            )


def _require_texts_read(config: RunConfig) -> None:
    """ConfigError where `data.texts` would be left out in silence, or not be what they are taken for."""
    data = config.data
    if not data.texts:
        return
    stages = config.method.learner().training_stages()
    if config.stages and not any(isinstance(entry, TextSet) for name in stages for entry in train_sets(config, name)):
        raise ConfigError(
            f"{config.name}: data.texts: every stage of method {config.method.name!r} with these options reads pictures"
            " (or has datasets of its own), so the texts would be read by none; leave them out"
        )
    paths = [entry.path for entry in (*data.train, *data.texts)]
    for entry in data.texts:
        if paths.count(entry.path) > 1:
            raise ConfigError(f"{config.name}: data.texts: {entry.path} is named twice; name each dataset once")
        for key, named in (("targets", data.targets), ("query_features", data.query_features)):
            if unknown := sorted(getattr(entry, key).keys() - named.keys()):
                raise ConfigError(
                    f"{config.name}: data.texts: {entry.path}: {key} names {', '.join(unknown)}, and data.{key} does"
                    " not; a language of the texts has to be one of the run"
                )
        if data.query_features and (
            alone := sorted(entry.targets.keys() & data.query_features.keys() - entry.query_features.keys())
        ):
            raise ConfigError(
                f"{config.name}: data.texts: {entry.path}: targets names a column of its own for {', '.join(alone)};"
                " name the features of these captions, too, under query_features"
            )


def _require_kind(dataset: Dataset, column: str, role: str) -> None:
    """ConfigError where a column is none that evaluation can use as `role`, such as pictures as captions."""
    kind, kinds = dataset.column(column).kind, KINDS.get(role)
    if kinds and kind not in kinds:
        raise ConfigError(f"{dataset.place}: column {column} is of kind {kind}; expected {' or '.join(kinds)}")


def _require_value(dataset: Dataset, column: str) -> None:
    """DataError where no row has a value, so that nothing could be asked or found."""
    if dataset.rows and dataset.column(column).nulls().sum() == dataset.rows:
        raise DataError(
            f"{dataset.place}: no row of column {column} has a value (all are null or blank); name another column, or"
            " leave it out"
        )


def _require_alike(made: dict[str, tuple[str, dict[str, Any]]], dataset: Dataset, column: str) -> None:
    """DataError where features of one name were made in different ways in two datasets: they would be compared with
    each other.
    """
    plan = dataset.column(column).plan
    if plan.get("processor") == "featurise":
        how = {key: plan.get(key) for key in ("backbone", "engine", "pictures", "tokens", "frames", "pool")}
        other, theirs = made.setdefault(column, (dataset.place, how))
        if lines := differences(theirs, how):
            shown = (
                "\n  ".join(lines[:10]).replace(": there ", f": {other} ").replace(", asked ", f", {dataset.place} ")
            )
            where = f"{column} was made in another way in {dataset.place} than in {other}"
            raise DataError(f"{where}:\n  {shown}\nmake both by the same command, as a column of another name")
