"""What of a model everybody may see: the files of an export or a model folder, without the places of this machine.

Computing is left as it is. Of records and of settings, texts lose folders, users and machines
(`redact.without_places`); their digests are made anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.checked import read_checked
from ccr_dist.data.storage.store import pretty_json, sha256_file, with_digest
from ccr_dist.errors import DataError
from ccr_dist.evaluate.schema import read_result, written
from ccr_dist.redact import without_places
from ccr_dist.retriever.model_folder import RECORD as MODEL
from ccr_dist.retriever.model_folder import RESULTS

_EXPORT = "ccr_export.json"
_PLACES = re.compile(r"(name_or_path|_(file|path|dir|folder))$")  # keys of settings of transformers and others
_MADE_BY = re.compile(r"^- (?:trained|exported) by: `(.*)`$", re.MULTILINE)
_LARGEST = 1_000_000  # bytes of a file of settings; larger ones are vocabularies


def make_public(folder: Path) -> None:
    """Changes the files of a folder that is to be given away.

    Args:
        folder: an export, or a copy of a model folder.

    Raises:
        CheckpointError: a record is damaged.
    """
    records = [*folder.rglob(MODEL)]
    for file in sorted(folder.rglob("*.json")):
        if file.name == _EXPORT:
            _replace(file, with_digest(without_places(_unsealed(file))))
        elif file.parent.name == RESULTS and (file.parent.parent / MODEL) in records:
            _result(file)
        elif file not in records and file.stat().st_size <= _LARGEST:
            _settings(file)
    for record in records:
        _model(record)
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        public = _MADE_BY.sub(
            lambda found: found[0].replace(found[1], without_places({"command": found[1]})["command"]), text
        )
        if public != text:
            card.write_text(public, encoding="utf-8")


def _model(file: Path) -> None:
    values = _unsealed(file)
    values["config"] = _config(values["config"])
    values["facts"] = without_places(values["facts"])
    values["files"] = {name: sha256_file(file.parent / name) for name in values["files"]}
    _replace(file, with_digest(values))


def _result(file: Path) -> None:
    """Another kind of file is not given away."""
    try:
        found = read_result(file)
    except DataError:
        file.unlink()
        return
    public = {"meta": without_places(found.meta), "selection": without_places(found.selection)}
    file.write_bytes(written(found.model_copy(update={**public, "config": _config(found.config)})))


def _config(values: dict[str, Any]) -> dict[str, Any]:
    public: dict[str, Any] = without_places(values)
    if "runtime" in public:
        public["runtime"]["wandb"] = None  # whose account it was
    return public


def _settings(file: Path) -> None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return
    public = _named(values)
    if public != values:
        _replace(file, public)


def _named(values: Any) -> Any:
    if isinstance(values, list):
        return [_named(value) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        key: without_places(value) if isinstance(value, str) and _PLACES.search(key) else _named(value)
        for key, value in values.items()
    }


def _unsealed(file: Path) -> dict[str, Any]:
    values, _ = read_checked(file)
    return dict(values)


def _replace(file: Path, values: Any) -> None:
    file.write_bytes(pretty_json(values))
