"""Whether a run that is complete stands on other weights or data than those that its config names now: they may have
been made again since.

What is gone, and what a run does not say of itself, is no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccr_dist.config import RunConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import CheckpointError, ConfigError, DataError
from ccr_dist.evaluate.schema import RunResult
from ccr_dist.train.borrowed import files_without_stages, weights_without_stages
from ccr_dist.train.inputs import asked, train_sets
from ccr_dist.train.selected import Source
from ccr_dist.train.state.base_weights import files_of, weights_of
from ccr_dist.train.state.run_folder import RunFolder


@dataclass
class Today:
    """What is there now. Looked at once, for all runs of a study."""

    _datasets: dict[str, Dataset | None] = field(default_factory=dict)
    _columns: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def dataset(self, path: str) -> Dataset | None:
        if path not in self._datasets:
            try:
                self._datasets[path] = Dataset.open(path)
            except (ConfigError, DataError):
                self._datasets[path] = None
        return self._datasets[path]

    def column(self, path: str, name: str) -> str | None:
        """Digest of a column; None: it is not there, or not complete."""
        if (path, name) not in self._columns:
            dataset = self.dataset(path)
            try:
                there = dataset is not None and name in dataset.columns()
                self._columns[path, name] = dataset.column(name).digest if dataset is not None and there else None
            except DataError:
                self._columns[path, name] = None
        return self._columns[path, name]


def changed_since(config: RunConfig, result: RunResult, today: Today) -> list[str]:
    """What is another now than when a run was made, and measured: keys of its config, and columns with their datasets.

    Args:
        config: of the run.
        result: what was measured of it.
        today: what is there now.
    """
    return list(dict.fromkeys((*_weights(config, result), *_columns(config, result, today))))


def _weights(config: RunConfig, result: RunResult) -> list[str]:
    """Keys of the config that name other weights now."""
    if not config.stages:
        key = "backbone.weights" if config.init_from is None else "init_from"
        found = [key] if _changed(result.meta.get("weights"), _measured(config)) else []
        return found + _others(result.meta.get("files", {}), files_without_stages(config))
    folder = RunFolder(config.folder)
    kept = (folder.identity() or {}).get("weights", {})
    found = ["backbone.weights"] if _changed(kept.get("backbone"), weights_of(config)) else []
    if _other_source(config.init_from, folder):
        found.append("init_from")
    return found + _others(kept.get("files", result.meta.get("files", {})), files_of(config))


def _columns(config: RunConfig, result: RunResult, today: Today) -> list[str]:
    """Columns with another content now: those that the run was trained on, selected on and measured on."""
    trained = (RunFolder(config.folder).identity() or {}).get("datasets", {}) if config.stages else {}
    paths: dict[str, list[str]] = {}  # "name/split" -> datasets, of which two may have the same name
    for path in dict.fromkeys(entry.path for name in config.stages for entry in train_sets(config, name)):
        if trained and (dataset := today.dataset(path)) is not None:
            paths.setdefault(f"{dataset.name}/{dataset.split}", []).append(path)
    found = []
    for key, digest in trained.items():
        place, _, column = key.rpartition("/")
        now = {path: today.column(path, column) for path in paths.get(place, ())}
        if all(_changed(digest, each) for each in now.values()):
            found += [f"column {column} of {path}" for path in now]
    data = config.data
    read = {column for _, column in asked(config)}
    for split, kept in ((data.val, result.meta.get("validation", {})), (data.test, result.columns)):
        own = {name: digest for name, digest in kept.items() if name in read}
        if split is not None:
            found += [f"column {name} of {split}" for name in _changed_columns(split, own, today)]
    return found


def _changed_columns(path: str, kept: Mapping[str, str], today: Today) -> list[str]:
    return [name for name, digest in kept.items() if _changed(digest, today.column(path, name))]


def _changed(kept: str | None, now: str | None) -> bool:
    return kept is not None and now is not None and kept != now


def _others(kept: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    return [key for key, digest in kept.items() if _changed(digest, now.get(key))]


def _measured(config: RunConfig) -> str | None:
    try:
        return weights_without_stages(config)
    except (CheckpointError, ConfigError):  # gone, or another model: whoever measures it says so
        return None


def _other_source(path: str | None, folder: RunFolder) -> bool:
    try:
        return path is not None and Source(Path(path)).is_other_than(folder.started_from())
    except (CheckpointError, ConfigError):
        return False
