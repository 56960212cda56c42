"""To a hub: a run's model, its model folder with a model card; and exports."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ccr_dist import hub
from ccr_dist.api import load
from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import ConfigError
from ccr_dist.export.card import model_card
from ccr_dist.export.folder import read_record
from ccr_dist.export.public import make_public


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
    card = model_card(retriever).replace("ORG/NAME", repo.removeprefix(hub.SCHEME))
    return _push(retriever.folder, repo, card, private=private, message=message)


def push_export(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Pushes an export, which has its card. Arguments, result and errors as for `push_model`."""
    read_record(folder)
    return _push(folder, repo, None, private=private, message=message)


def _push(folder: Path, repo: str, card: str | None, *, private: bool, message: str) -> str:
    """What goes there is a copy without the places of this machine."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "model"
        with disk_errors(copy):
            shutil.copytree(folder, copy)
            if card is not None:
                (copy / "README.md").write_text(card, encoding="utf-8")
            make_public(copy)
        return hub.push_folder(copy, repo, private=private, message=message)
