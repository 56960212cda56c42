"""The selected checkpoint of a run, or the weights of a model folder, which another run starts from; and a digest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ccr_dist.config import MethodOptions
from ccr_dist.data.storage.store import digest_json
from ccr_dist.errors import CheckpointError
from ccr_dist.models import tensorfile
from ccr_dist.retriever import model_folder
from ccr_dist.retriever.kept_config import config_of_folder
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.step.ema import selected


def selected_digest(folder: RunFolder) -> str:
    """Digest of the files of the selected checkpoint, as its state.json records them.

    Raises:
        CheckpointError: the run has no selected checkpoint.
    """
    path = checkpoint.folder_of(folder.checkpoints, _best(folder)["step"])
    return digest_json(checkpoint.state_of(path)[0]["sha256"])


def best_weights(folder: RunFolder, best: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], str]:
    """Weights of the selected checkpoint by parameter name, and its path.

    Args:
        folder: of the run.
        best: the selection; None: that of best.json.

    Raises:
        CheckpointError: the run has no selected checkpoint, or it is damaged.
    """
    path = checkpoint.folder_of(folder.checkpoints, (best or _best(folder))["step"])
    return selected(checkpoint.load(path)), str(path)


class Source:
    """What `init_from` names: a run folder, of which the selected checkpoint counts, or a model folder, also that of a
    run whose checkpoints are deleted.

    Args:
        path: the folder.

    Raises:
        CheckpointError: it is a run that has no selected checkpoint, or it is damaged.
        ConfigError: it is a model folder of another version.
    """

    def __init__(self, path: Path) -> None:
        self._run = RunFolder(path)
        if model_folder.is_model(path / model_folder.IN_RUN) and not _has_checkpoint(self._run):
            path = path / model_folder.IN_RUN
        self.path = path
        self._record = model_folder.read(path) if model_folder.is_model(path) else None

    @property
    def digest(self) -> str:
        """Of the files that hold the weights."""
        if self._record is not None:
            return self._record.files[model_folder.WEIGHTS]
        return selected_digest(RunFolder(self.path))

    @property
    def digests(self) -> dict[str, str]:
        """All digests that tell the same weights: of the "checkpoint" and of the "model" folder, of those that are
        there. Checkpoints may be deleted, and the model that is left is the same.
        """
        found: dict[str, str] = {}
        if _has_checkpoint(self._run):
            found["checkpoint"] = selected_digest(self._run)
        folder = next(
            (each for each in (self._run.path, self._run.path / model_folder.IN_RUN) if model_folder.is_model(each)),
            None,
        )
        if folder is not None:
            found["model"] = model_folder.read(folder).files[model_folder.WEIGHTS]
        return found

    def is_other_than(self, started_from: Mapping[str, Any]) -> bool:
        """Whether other weights are here than those that a run has started from (`RunFolder.started_from`). What cannot
        be compared is no difference.
        """
        kept, now = started_from.get("init_from_is"), self.digests
        if isinstance(kept, dict):
            kind = next((kind for kind in ("checkpoint", "model") if kind in kept and kind in now), None)
            return kind is not None and kept[kind] != now[kind]
        kept = started_from.get("init_from")  # an earlier version: of a checkpoint, or of a model folder without any
        deleted = "checkpoint" not in now and self.path != self._run.path
        return kept is not None and not deleted and kept not in now.values()

    def weights(self, kept: Collection[str]) -> tuple[dict[str, Tensor], str]:
        """Weights by parameter name, and where they come from.

        Args:
            kept: names of the parameters that the new run keeps in its checkpoints. A model folder also holds the
                frozen ones of the backbone.
        """
        if self._record is None:
            return best_weights(RunFolder(self.path))
        tensors, _ = tensorfile.read(self.path / model_folder.WEIGHTS)
        return {name: tensor for name, tensor in tensors.items() if name in kept}, str(self.path)

    def method_options(self) -> MethodOptions:
        """Of the method that was trained. Raises ConfigError, CheckpointError: its record cannot be read."""
        return config_of_folder(self.path, ()).method

    def method_state(self) -> dict[str, Any]:
        return self._record.state if self._record is not None else RunFolder(self.path).method_state() or {}


def _has_checkpoint(folder: RunFolder) -> bool:
    """Whether the selected checkpoint is there."""
    best = folder.best() if folder.checkpoints.exists() else None
    return best is not None and checkpoint.folder_of(folder.checkpoints, best["step"]).is_dir()


def _best(folder: RunFolder) -> dict[str, Any]:
    best = folder.best()
    if best is None:
        raise CheckpointError(f"{folder.path} has no selected checkpoint (best.json); train that run first")
    return best
