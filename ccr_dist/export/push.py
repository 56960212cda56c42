"""A run's model to a hub: its model folder with a model card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ccr_dist import hub
from ccr_dist.api import load
from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import ConfigError
from ccr_dist.export.card import model_card


def push_model(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Pushes the model of a run or model folder, with a card.

    Args:
        folder: of a run or a model.
        repo: `org/name`.
        private: of a repository that is made now.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: no model, no such place, or the token does not allow it.
        StorageError: the hub cannot be reached.
    """
    retriever = load(folder, device="cpu")
    if retriever.folder is None:
        raise ConfigError(f"{folder}: there is no model folder")
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "model"
        with disk_errors(copy):
            shutil.copytree(retriever.folder, copy)
            (copy / "README.md").write_text(
                model_card(retriever).replace("ORG/NAME", repo.removeprefix(hub.SCHEME)), encoding="utf-8"
            )
        return hub.push_folder(copy, repo, private=private, message=message)
