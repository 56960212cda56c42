"""The model folder: a trained or untrained method with all that it needs, which loads wherever it is copied.

    MODEL/
        model.json           what the model is (`Record`), with its own digest and the sha256 of every other file
        model.safetensors    weights by parameter name: net.*, and of the backbone what no public model holds
        base/<key>/<name>    base models that are not public: a user's folder or checkpoint, by the key that names it
        results/<split>.json optional: measured afterwards, each with its own digest

Base models that are public (a package, an open_clip tag, a hub id) are named in the config and not copied. The digest
of their weights is recorded, so that another version of them is noticed. RUN/model is such a folder; it appears at once
or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ccr_dist.data.storage.checked import read_checked
from ccr_dist.data.storage.store import (
    disk_errors,
    pretty_json,
    replace_atomic,
    sha256_file,
    sync_folder,
    with_digest,
    write_synced,
)
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.models import tensorfile

FORMAT = 1
RECORD, WEIGHTS, BASE, RESULTS = "model.json", "model.safetensors", "base", "results"
IN_RUN = "model"  # the model folder of a run folder


@dataclass(frozen=True)
class Record:
    """What model.json says.

    Attributes:
        name: of the run, such as `dasd-s0`.
        config: the resolved run config. Its `backbone.weights` is null, since the weights lie here, and copies are
            named by their place in the folder; `kept_config.py` gives it with whole paths.
        state: `Method.state`.
        languages: of queries, English first where the method reads it.
        fusion: weights of the score's parts, `minmax`, and the `ranges` that min-max uses, as validation had them.
        base: digest of the backbone's weights that are not in model.safetensors.
        copied: keys of the config that name copies in base/, and where these lie in the folder.
        files: sha256 of every other file, by its name relative to the folder.
        facts: for people and model cards: data with licences, the selected step, versions.
    """

    name: str
    config: dict[str, Any]
    state: dict[str, Any]
    languages: list[str]
    fusion: dict[str, Any]
    base: str
    copied: dict[str, str]
    files: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)


def is_model(path: Path) -> bool:
    """Whether a folder is a model folder."""
    return (path / RECORD).is_file()


def write(path: Path, record: Record, tensors: Mapping[str, Tensor], base: Mapping[str, Path | bytes]) -> Record:
    """Makes a model folder, or replaces one.

    Args:
        path: of the folder. What else lies there is removed if it is a model folder.
        record: without `files`.
        tensors: for model.safetensors.
        base: place in the folder -> the file or folder that is copied there, or what is written there afterwards.

    Returns:
        The record with `files`.

    Raises:
        ConfigError: `path` is something else.
        StorageError: the disk is full.
    """
    if path.exists() and not is_model(path):
        raise ConfigError(f"{path}: already exists and is no model folder; give another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _assembled(path) as folder:
        tensorfile.write(folder / WEIGHTS, tensors, {})
        for place, source in base.items():
            _copy(source, folder / place)
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        whole = Record(**{**asdict(record), "files": {name: sha256_file(folder / name) for name in names}})
        write_synced(folder / RECORD, pretty_json(with_digest({"format": FORMAT, **asdict(whole)})))
    return whole


def keep_result(folder: Path, file: Path) -> None:
    """Copies a results file into a model folder, so that it goes where the model goes."""
    target = folder / RESULTS / file.name
    target.parent.mkdir(exist_ok=True)
    replace_atomic(target, file.read_bytes())


def clear(path: Path) -> None:
    """Removes what a killed process left of writing the model folder `path`."""
    for left in _beside(path):
        shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


@contextmanager
def _assembled(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which replaces it when the block ends."""
    clear(path)
    new, old = _beside(path)
    try:
        with disk_errors(path):
            new.mkdir()
            yield new
            for folder in (*filter(Path.is_dir, new.rglob("*")), new):
                sync_folder(folder)
            if path.exists():
                path.rename(old)
            new.rename(path)
            sync_folder(path.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _copy(source: Path | bytes, target: Path) -> None:
    """A file, its content, or a folder without what starts with a dot; links are followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, bytes):
        write_synced(target, source)
        return
    if source.is_file():
        shutil.copyfile(source, target)
        _sync(target)
        return
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"), copy_function=shutil.copyfile)
    for file in filter(Path.is_file, target.rglob("*")):
        _sync(file)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def read(path: Path) -> Record:
    """The record of a model folder, whose other files are there and are those that were written.

    Raises:
        CheckpointError: a file is missing or damaged, or a later version wrote the folder.
        ConfigError: `path` is no model folder.
    """
    if not is_model(path):
        raise ConfigError(f"{path}: not a model folder (no {RECORD})")
    values, sealed = read_checked(path / RECORD)
    written = values.pop("format", None)
    if written != FORMAT or not sealed:
        raise CheckpointError(
            f"{path / RECORD}: format {written!r}; this version reads format {FORMAT}: a later version wrote it, or it"
            " is damaged"
        )
    if values.keys() != {each.name for each in fields(Record)}:
        raise CheckpointError(f"{path / RECORD}: damaged, its keys are not those of a model folder")
    record = Record(**values)
    for name, sha256 in record.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; copy the whole model folder again")
        if sha256_file(file) != sha256:
            raise CheckpointError(f"{file}: damaged, its sha256 is not the recorded one; copy the model folder again")
    return record
