"""state.json of a checkpoint: what it holds, and the checks that everything read from it passes.

Nothing here looks at tensors; works without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.checked import checked
from ccr_dist.errors import CheckpointError

PARTS = ("weights", "optimizer", "auxiliary")
FORMAT = 2
FORMATS = (1, FORMAT)  # that are read; format 1 has no digest of state.json itself
PROGRESS: dict[str, tuple[type, ...]] = {  # fields of `progress.RunProgress` and their types
    "step": (int,), "stage": (str,), "stage_step": (int,), "substituted": (int,), "skipped": (int,), "best": (dict,
    type(None)),
    "unvalidated": (bool,),
}  # fmt: skip
BEST: dict[str, tuple[type, ...]] = {"step": (int,), "stage": (str,), "metric": (str,), "value": (int, float)}
_FILE = rf"({'|'.join(PARTS)})(\.safetensors|/[^/.][^/]*)"


def folder_of(root: Path, step: int) -> Path:
    """The folder of a step's checkpoint in RUN/checkpoints."""
    return root / f"step-{step:08d}"


def state_of(folder: Path) -> tuple[dict[str, Any], bool]:
    """Read and check a checkpoint's state.json, not its tensors.

    Args:
        folder: The checkpoint.

    Returns:
        `State.values` with "format" and "sha256" (by file), and whether they carry a digest of themselves.

    Raises:
        CheckpointError: state.json is missing or damaged, or belongs to another folder. Begins with its path.
    """
    where = folder / "state.json"
    try:
        values, sealed = checked(where.read_bytes(), where)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{where}: it is missing") from None
    if values.get("format") not in FORMATS or isinstance(values.get("format"), bool):
        raise CheckpointError(
            f"{where}: format {values.get('format')!r}, this version reads {', '.join(map(str, FORMATS))}"
        )
    if values["format"] == FORMAT and not sealed:
        raise CheckpointError(f"{where}: damaged, it has lost its digest")
    if wrong := _mistake(values, folder):
        raise CheckpointError(f"{where}: damaged, {wrong}")
    return values, sealed


def _mistake(values: Mapping[str, Any], folder: Path) -> str | None:
    """What is impossible in a state, or None."""
    progress, digests, step = values.get("progress"), values.get("sha256"), values.get("step")
    if (
        not isinstance(progress, dict)
        or not isinstance(digests, dict)
        or not isinstance(step, int)
        or isinstance(step, bool)
    ):
        return "it needs a step, progress and sha256"
    wrong = mistaken(progress, PROGRESS, whole=False) or (
        mistaken(progress["best"], BEST) if progress.get("best") else None
    )
    if wrong:
        return f"in its progress {wrong}"
    if progress.get("step", step) != step or not 0 <= progress.get("stage_step", 0) <= step:
        return (
            f"it is of step {step}, its progress of {progress.get('step', step)} and {progress.get('stage_step')} in"
            " the stage"
        )
    if re.fullmatch(r"step-\d+", folder.name, re.ASCII) and folder.name != folder_of(folder.parent, step).name:
        return f"it is of step {step}, and lies in {folder.name}"
    for name, digest in digests.items():
        if not isinstance(digest, str) or not re.fullmatch(_FILE, name):
            return f"it names a file {name!r}, which is none of a checkpoint"
    return None


def mistaken(values: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], *, whole: bool = True) -> str | None:
    """Compare a JSON object with expected keys and types.

    Args:
        values: The object.
        types: Allowed types by key.
        whole: Whether every key is required.

    Returns:
        The first difference, in words, or None.
    """
    for key, value in values.items():
        if key in types and (not isinstance(value, types[key]) or (isinstance(value, bool) and bool not in types[key])):
            return f"{key} is {value!r}"
    odd = sorted(values.keys() - types.keys()) or (sorted(types.keys() - values.keys()) if whole else [])
    return f"{odd[0]!r} is too much or missing; expected {', '.join(types)}" if odd else None
