"""Digests of the weights that a config names and that no checkpoint holds: they may become other ones under the same
name.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from ccr_dist.config import RunConfig, base_files
from ccr_dist.data.storage.store import digest_json, sha256_file
from ccr_dist.models.backbones.sentence_files import recipe_of

# Files that lie beside weights for people; no library reads them.
FOR_PEOPLE = (".md", ".txt.license", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg")


def weights_of(config: RunConfig) -> str | None:
    """sha256 of the file that `backbone.weights` names; None: no such file is named, or there."""
    named = getattr(config.backbone, "weights", None)
    if named is None:
        return None
    file = Path(named) / "model.safetensors" if Path(named).is_dir() else Path(named)
    return sha256_file(file) if file.is_file() else None


def files_of(config: RunConfig) -> dict[str, str]:
    """Key of the config (`backbone.text`, `method.frontend.embeddings`) -> digest of what lies there, of all local
    files and folders of base weights but `backbone.weights` (`weights_of`). Those that are gone are left out.
    """
    found = {key: path for key, path in base_files(config).items() if key != "backbone.weights"}
    return {key: content_of(path) for key, path in found.items() if path.exists()}


def content_of(path: Path) -> str:
    """Digest of a file, or of all files of a folder under their names there, as a model folder copies them: without
    names that start with a dot, and without what is for people alone.
    """
    if path.is_file():
        return digest_json({"": _digest_of(path)})
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return digest_json({name: _digest_of(file) for name, file in sorted(files.items()) if _counts(name)})


def _counts(name: str) -> bool:
    hidden = any(part.startswith(".") for part in Path(name).parts)
    return not hidden and not name.lower().endswith(FOR_PEOPLE)


def _digest_of(file: Path) -> str:
    at = file.stat()
    return _known(str(file), at.st_size, at.st_mtime_ns, at.st_ino)


@lru_cache(maxsize=4096)
def _known(file: str, size: int, changed: int, inode: int) -> str:
    """A study asks for the same files for each of its runs."""
    return sha256_file(file)


def pooling_of(text: str) -> str:
    """How a folder of sentence-transformers makes one feature of a text, as JSON; "{}": by the mean over tokens, as
    runs did before its files were read.
    """
    found = {} if text == "minilm" else recipe_of(text, what=f"backbone: text encoder '{text}'").description()
    return json.dumps(found, sort_keys=True)
