"""Checkpoints: one layout by parameter name, committed atomically, trusted only after its digests were checked.

    RUN/checkpoints/step-00000130/
        weights.safetensors      every parameter the method owns or trains, fp32, by name (`net.…`, `backbone.…`)
        optimizer.safetensors    `<parameter>/<state>` of the stage's optimiser; a stage starts with an empty one
        auxiliary.safetensors    `<network>/weights/<name>` and `<network>/optimizer/<name>/<state>`
        state.json               step, stage, counters, loss scale, run identity, sha256 of the files above; written last, inside the
        temporary folder

There is no iterator and no random state to save: both are functions of the step. May change on resume: strategy, world size, workers,
logging,
the number of steps still to do. May not: seed, data, lanes, global batch, backbone, method (start a new run with `init_from` for that).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data.store import disk_errors, sha256_file, sync_folder
from ..errors import CheckpointError

FILES = ("weights.safetensors", "optimizer.safetensors", "auxiliary.safetensors")
FORMAT = 1


@dataclass
class State:
    """Everything a checkpoint holds. `values` is JSON: step, stage, counters, best metric, identity."""

    values: dict[str, Any]
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def steps(root: Path) -> list[int]:
    """Steps that have a committed checkpoint folder, oldest first; says nothing about their health."""
    return sorted(int(p.name[5:]) for p in root.glob("step-*") if p.name[5:].isdigit())


def save(root: Path, state: State) -> Path:
    """Write and commit one checkpoint. A full disk raises StorageError; earlier checkpoints stay as they are."""
    final = folder_of(root, state.values["step"])
    if final.exists() and not problem(final):
        return final
    tmp = root / f".{final.name}.{os.getpid()}.tmp"
    with disk_errors(final):
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        try:
            for name, tensors in zip(FILES, (state.weights, state.optimizer, state.auxiliary), strict=True):
                _write(tmp / name, {key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            digests = {name: sha256_file(tmp / name) for name in FILES}
            text = json.dumps({"format": FORMAT, **state.values, "sha256": digests}, indent=1, ensure_ascii=False)
            with (tmp / "state.json").open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(tmp)
            shutil.rmtree(final, ignore_errors=True)  # only ever a damaged one of the same step
            tmp.rename(final)
            sync_folder(root)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    return final


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def problem(folder: Path) -> str | None:
    """Why this checkpoint cannot be used, or None."""
    try:
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"state.json: {error}"
    if values.get("format") != FORMAT:
        return f"format {values.get('format')!r}, this version reads {FORMAT}"
    for name, digest in values["sha256"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_file(folder / name) != digest:
            return f"{name} is not what state.json recorded (sha256 differs)"
    return None


def load(folder: Path) -> State:
    """Read a checkpoint. Raises CheckpointError naming the folder and what is wrong with it."""
    wrong = problem(folder)
    if wrong:
        raise CheckpointError(f"{folder}: {wrong}")
    values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    weights, optimizer, auxiliary = (load_file(folder / name) for name in FILES)
    return State(values=values, weights=weights, optimizer=optimizer, auxiliary=auxiliary)


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest healthy checkpoint, and a message for each newer damaged one that was passed over."""
    passed: list[str] = []
    for step in reversed(steps(root)):
        wrong = problem(folder_of(root, step))
        if wrong is None:
            return folder_of(root, step), passed
        passed.append(f"{folder_of(root, step)}: passed over: {wrong}")
    return None, passed


def prune(root: Path, *, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` and the best. A folder is renamed first, so a half-deleted one is never taken for a checkpoint."""
    for step in steps(root)[:-keep]:
        if step != best:
            gone = root / f".{folder_of(root, step).name}.gone"
            shutil.rmtree(gone, ignore_errors=True)
            folder_of(root, step).rename(gone)
            shutil.rmtree(gone)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """`<parameter>/<state>` -> tensor, for every state of every named parameter."""
    tensors = {}
    for name, parameter in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Raises CheckpointError on states of parameters that are not there."""
    for key, value in tensors.items():
        name, _, state = key.rpartition("/")
        if name not in names:
            raise CheckpointError(f"the checkpoint has optimiser state of {name!r}, which this run does not train")
        parameter = names[name]
        # AdamW keeps its step count on the CPU unless fused; the fused one wants it beside the parameter
        on_host = state == "step" and not optimizer.defaults.get("fused")
        optimizer.state[parameter][state] = value.clone() if on_host else value.to(parameter.device, copy=True)


def restore_weights(parameters: Mapping[str, nn.Parameter | Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into the parameters of the same name and shape, or raise CheckpointError with the difference."""
    missing, unknown = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
    if missing or unknown:
        raise CheckpointError(f"{where}: weights do not fit the model; missing {missing[:3]}, unknown {unknown[:3]}")
    with torch.no_grad():
        for name, value in weights.items():
            if parameters[name].shape != value.shape:
                raise CheckpointError(f"{where}: {name} is {tuple(value.shape)}, the model has {tuple(parameters[name].shape)}")
            parameters[name].copy_(value)
