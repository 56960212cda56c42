"""The selected checkpoint of a run: its weights, and a digest of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ccr_dist.data.storage.store import digest_json
from ccr_dist.errors import CheckpointError
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


def _best(folder: RunFolder) -> dict[str, Any]:
    best = folder.best()
    if best is None:
        raise CheckpointError(f"{folder.path} has no selected checkpoint (best.json); train that run first")
    return best
