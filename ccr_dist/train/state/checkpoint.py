"""Checkpoints: one layout by parameter name, committed atomically, used only after their digests were checked.

    RUN/checkpoints/step-00000130/
        weights.safetensors      every parameter the method owns or trains, fp32, by name (`net.…`, `backbone.…`)
        optimizer.safetensors    `<parameter>/<state>` of the stage's optimiser; a stage starts with an empty one
        auxiliary.safetensors    `<network>/weights/<name>`, `<network>/optimizer/<name>/<state>`, and `ema/<parameter>`
        state.json               step, stage, counters, loss scale, digest of the run's identity, sha256 of the files
                                 above, and a digest of itself (`data/storage/checked.py`); written last, inside the
                                 temporary folder

Under `runtime.checkpoint: sharded` the first three are folders with one file per rank (`sharded_tensors.py`); `load`
reads both layouts.

No iterator and no random state is saved: both are functions of the step. On resume, strategy, world size, workers,
logging and the number of steps still to do may change; seed, data, lanes, global batch, backbone and method may not
(start a new run with `init_from` for that).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.data.storage.checked import with_digest
from ccr_dist.data.storage.store import disk_errors, sha256_file, staged, sync_folder
from ccr_dist.errors import CheckpointError
from ccr_dist.models import tensorfile
from ccr_dist.train.processes import Ranks
from ccr_dist.train.state.checkpoint_state import FORMAT, PARTS, folder_of, state_of


@dataclass
class State:
    """Everything a checkpoint holds.

    Attributes:
        values: JSON: step, progress (stage, counters, best metric), what wrote it, digest of the run's identity.
        weights: Tensors by parameter name.
        optimizer: Tensors by `<parameter>/<state>`.
        auxiliary: State of auxiliary networks and moving averages.
    """

    values: dict[str, Any]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)


def steps(root: Path) -> list[int]:
    """Steps with a committed checkpoint folder, in ascending order. Whether it is damaged is not checked."""
    found = (re.fullmatch(r"step-(\d{8,})", path.name, re.ASCII) for path in root.glob("step-*"))
    return sorted(int(name[1]) for name in found if name and folder_of(root, int(name[1])).name == name[0])


def save(root: Path, state: State, ranks: Ranks | None = None, may_commit: Callable[[], None] = lambda: None) -> Path:
    """Write and commit one checkpoint. Earlier checkpoints stay as they are, whatever happens.

    Args:
        root: RUN/checkpoints.
        state: What to write; with `ranks`, the parts of tensors that this rank holds.
        ranks: Ranks that write together: all of them call this, and all raise alike. None if this process has
            everything.
        may_commit: Called on the committing rank before the commit; raises if the commit must not happen, for example
            because another process now trains the same run.

    Returns:
        The checkpoint's folder. A healthy checkpoint of this step and run that already exists is kept.

    Raises:
        StorageError: The disk is full or fails.
    """
    alone, ranks = ranks is None, ranks or Ranks()
    final = folder_of(root, state.values["step"])
    if ranks.agree(
        ranks.main
        and final.exists()
        and not problem(final)
        and state_of(final)[0].get("run") == state.values.get("run")
    ):
        return final
    tmp = ranks.agree(root / f".{final.name}.{secrets.token_hex(4)}.tmp")  # random, since two hosts may share a pid
    mine: dict[str, str] = {}

    def write() -> None:
        for name in PARTS:
            if alone:
                tensorfile.write(tmp / f"{name}.safetensors", getattr(state, name))
            else:
                from ccr_dist.train.state import sharded_tensors  # slow to import, and rarely needed

                sharded_tensors.write(tmp / name, getattr(state, name), ranks)
        files = sorted(path for path in tmp.rglob("*") if path.is_file())
        mine.update({str(path.relative_to(tmp)): sha256_file(path) for path in files[ranks.rank :: ranks.world]})

    with disk_errors(final):
        try:
            ranks.together(lambda: _begin(tmp) if ranks.main else None)
            ranks.together(write)
            digests = {name: digest for part in ranks.all(mine) for name, digest in part.items()}

            def commit() -> None:
                may_commit()
                _commit(tmp, final, state.values, digests)

            ranks.together(commit if ranks.main else lambda: None)
        finally:
            if ranks.main:
                shutil.rmtree(tmp, ignore_errors=True)
    return final


def _begin(tmp: Path) -> None:
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)


def _commit(tmp: Path, final: Path, values: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    whole = with_digest({**values, "format": FORMAT, "sha256": dict(sorted(digests.items()))})
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    with (tmp / "state.json").open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for folder in (*(path for path in tmp.iterdir() if path.is_dir()), tmp):
        sync_folder(folder)
    shutil.rmtree(final, ignore_errors=True)  # only ever a damaged one of the same step
    tmp.rename(final)
    sync_folder(final.parent)


def problem(folder: Path, ranks: Ranks | None = None) -> str | None:
    """Check the digests of a checkpoint. Not collective.

    Args:
        folder: The checkpoint.
        ranks: Ranks that check together: of the files in shards, each checks only some. None: this process checks all.

    Returns:
        Why the checkpoint cannot be used, or None.

    Raises:
        OSError: Storage fails, which says nothing about the checkpoint. A missing file is no such failure.
    """
    try:
        digests = state_of(folder)[0]["sha256"]
    except CheckpointError as error:
        return str(error).removeprefix(f"{folder}/")
    for number, (name, digest) in enumerate(digests.items()):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if ranks and "/" in name and number % ranks.world != ranks.rank:
            continue
        if sha256_file(folder / name) != digest:
            return f"{name} is not what state.json recorded (sha256 differs)"
    for part in PARTS:
        if f"{part}.safetensors" not in digests and not (folder / part).is_dir():
            return f"{part}.safetensors is not in the sha256 of state.json"
    return None


def load(folder: Path, ranks: Ranks | None = None) -> State:
    """Read a checkpoint of either layout. Sharded tensors are read on access.

    Args:
        folder: The checkpoint.
        ranks: As for `problem`.

    Raises:
        CheckpointError: The checkpoint cannot be used; names the folder and the reason.
    """
    wrong = problem(folder, ranks)
    if wrong:
        raise CheckpointError(f"{folder}: {wrong}")
    return State(state_of(folder)[0], **{name: _read(folder / name) for name in PARTS})


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_dir():
        return tensorfile.read(path.with_name(f"{path.name}.safetensors"))[0]
    from ccr_dist.train.state import sharded_tensors

    return sharded_tensors.Shards(path)


def newest(root: Path, run: str | None = None) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that can be used.

    Args:
        root: RUN/checkpoints.
        run: Digest of the run's identity; checkpoints of other runs are skipped. None accepts all.

    Returns:
        Its folder, or None; and a message for each newer checkpoint that was skipped.
    """
    passed: list[str] = []
    for folder in (folder_of(root, step) for step in reversed(steps(root))):
        wrong = problem(folder)
        if wrong is None and run is not None and state_of(folder)[0].get("run", run) != run:
            wrong = "it is a checkpoint of another run"
        if wrong is None:
            return folder, passed
        passed.append(f"{folder}: passed over: {wrong}")
    return None, passed


class Writer:
    """Writes checkpoints in a background thread, one at a time. The next `write` or `wait` raises its errors.

    Args:
        root: RUN/checkpoints.
        ranks: Ranks that write together, over a process group of their own; None if this process writes alone.
        may_commit: As for `save`.
    """

    def __init__(self, root: Path, ranks: Ranks | None = None, may_commit: Callable[[], None] = lambda: None) -> None:
        self.root, self.ranks, self._may_commit = root, ranks, may_commit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def write(self, state: State, committed: Callable[[], None]) -> None:
        """Start to write a checkpoint, after the one before is on disk.

        Args:
            state: What to write; it must not be changed until the next `wait`.
            committed: Called in the thread once the checkpoint is on disk.
        """
        self.wait()

        def work() -> None:
            save(self.root, state, self.ranks, self._may_commit)
            committed()

        self._writing = self._pool.submit(work)

    def wait(self) -> None:
        """Wait until everything is on disk. Raises the error that prevented it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait without raising errors; for cleanup after another error."""
        self._pool.shutdown(wait=True)


def publish(weights: Mapping[str, Tensor], target: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file of weights atomically.

    Args:
        weights: Tensors by parameter name.
        target: The file.
        facts: JSON that goes into its header; the header's digest covers tensors and facts.
    """
    with staged(target) as tmp:
        tensorfile.write(tmp, weights, facts or {})
        tmp.replace(target)
        sync_folder(target.parent)


def clear(root: Path) -> None:
    """Delete what killed processes left half done. Only for the process that holds the run folder."""
    for path in root.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(root: Path, *, keep: int, best: int | None) -> None:
    """Delete old checkpoints. A folder is renamed first, so that a half-deleted one is never taken for a checkpoint.

    Args:
        root: RUN/checkpoints.
        keep: How many of the newest to keep.
        best: Step of the selected checkpoint, which is kept as well.
    """
    for step in steps(root)[:-keep]:
        if step != best:
            gone = root / f".{folder_of(root, step).name}.gone"
            shutil.rmtree(gone, ignore_errors=True)
            folder_of(root, step).rename(gone)
            shutil.rmtree(gone)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def restore_weights(parameters: Mapping[str, nn.Parameter | Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into parameters.

    Args:
        parameters: Parameters by name.
        weights: Tensors by the same names, of the same shapes.
        where: Where the weights come from, for messages.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    missing, unknown = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
    if missing or unknown:
        raise CheckpointError(f"{where}: weights do not fit the model; missing {missing[:3]}, unknown {unknown[:3]}")
    with torch.no_grad():
        for name, value in weights.items():
            if parameters[name].shape != value.shape:
                raise CheckpointError(
                    f"{where}: {name} is {tuple(value.shape)}, the model has {tuple(parameters[name].shape)}"
                )
            parameters[name].copy_(value)
