"""Checkpoints: one layout by parameter name, committed atomically, trusted only after its digests were checked.

    RUN/checkpoints/step-00000130/
        weights.safetensors      every parameter the method owns or trains, fp32, by name (`net.…`, `backbone.…`)
        optimizer.safetensors    `<parameter>/<state>` of the stage's optimiser; a stage starts with an empty one
        auxiliary.safetensors    `<network>/weights/<name>`, `<network>/optimizer/<name>/<state>`, and `ema/<parameter>`
        state.json               step, stage, counters, loss scale, digest of the run's identity, sha256 of the files
        above, and a digest of itself (`data/storage/checked.py`); written last, inside the temporary folder

Under `runtime.checkpoint: sharded` the first three are folders with a file of every rank's parts (`shards.py`); `load`
reads either.

There is no iterator and no random state to save: both are functions of the step. May change on resume: strategy, world
size, workers, logging, the number of steps still to do. May not: seed, data, lanes, global batch, backbone, method
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

from ccr_dist.data.storage.checked import checked, with_digest
from ccr_dist.data.storage.store import disk_errors, sha256_file, staged, sync_folder
from ccr_dist.errors import CheckpointError
from ccr_dist.models import tensorfile
from ccr_dist.train.processes import Ranks
from ccr_dist.train.state import sharded_tensors

PARTS = ("weights", "optimizer", "auxiliary")
FORMAT = 2
FORMATS = (1, FORMAT)  # that are read; of the first, state.json has no digest of itself
PROGRESS: dict[str, tuple[type, ...]] = {  # what is known of a run's progress (`progress.RunProgress`), and its types
    "step": (int,), "stage": (str,), "stage_step": (int,), "substituted": (int,), "skipped": (int,), "best": (dict,
    type(None)),
    "unvalidated": (bool,),
}  # fmt: skip
BEST: dict[str, tuple[type, ...]] = {"step": (int,), "stage": (str,), "metric": (str,), "value": (int, float)}


@dataclass
class State:
    """Everything a checkpoint holds. `values` is JSON: step, progress (stage, counters, best metric), what made it, of
    which run.
    """

    values: dict[str, Any]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def steps(root: Path) -> list[int]:
    """Steps that have a committed checkpoint folder, oldest first; says nothing about their health."""
    found = (re.fullmatch(r"step-(\d{8,})", path.name, re.ASCII) for path in root.glob("step-*"))
    return sorted(int(name[1]) for name in found if name and folder_of(root, int(name[1])).name == name[0])


def save(root: Path, state: State, ranks: Ranks | None = None, may_commit: Callable[[], None] = lambda: None) -> Path:
    """Write and commit one checkpoint. A full disk raises StorageError; earlier checkpoints stay as they are.

    may_commit: raises what keeps the one that commits from doing so, such as another process that trains the same run
        by now.

    ranks: all of them call this together, each with the parts of tensors that it holds, and raise alike; None: this
        process has the whole.
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
    tmp = ranks.agree(root / f".{final.name}.{secrets.token_hex(4)}.tmp")  # a pid may be another one's on another host
    mine: dict[str, str] = {}

    def write() -> None:
        for name in PARTS:
            if alone:
                tensorfile.write(tmp / f"{name}.safetensors", getattr(state, name))
            else:
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
    """Why this checkpoint cannot be used, or None. `ranks`: of files that no rank reads alone, each looks at some only;
    not collective.

    OSErrors pass, but for files that are not there: storage that fails says nothing of a checkpoint.
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


def state_of(folder: Path) -> tuple[dict[str, Any], bool]:
    """`State.values` of a checkpoint with "format" and "sha256", and whether they carry a digest. Says nothing of the
    tensors.

    CheckpointError, beginning with the path of state.json, where that is missing, damaged, or of another folder.
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
    """What of a state cannot be, or None."""
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
    """What of an object is not as `types` has it, or None. whole: every key has to be there."""
    for key, value in values.items():
        if key in types and (not isinstance(value, types[key]) or (isinstance(value, bool) and bool not in types[key])):
            return f"{key} is {value!r}"
    odd = sorted(values.keys() - types.keys()) or (sorted(types.keys() - values.keys()) if whole else [])
    return f"{odd[0]!r} is too much or missing; expected {', '.join(types)}" if odd else None


_FILE = rf"({'|'.join(PARTS)})(\.safetensors|/[^/.][^/]*)"


def load(folder: Path, ranks: Ranks | None = None) -> State:
    """Read a checkpoint of either layout; sharded tensors are read when they are asked for.

    `ranks` as for `problem`. Raises CheckpointError naming the folder and what is wrong with it.
    """
    wrong = problem(folder, ranks)
    if wrong:
        raise CheckpointError(f"{folder}: {wrong}")
    return State(state_of(folder)[0], **{name: _read(folder / name) for name in PARTS})


def _read(path: Path) -> Mapping[str, Tensor]:
    return (
        sharded_tensors.Shards(path)
        if path.is_dir()
        else tensorfile.read(path.with_name(f"{path.name}.safetensors"))[0]
    )


def newest(root: Path, run: str | None = None) -> tuple[Path | None, list[str]]:
    """The newest healthy checkpoint, and a message for each newer one that was passed over: damaged, or of another run
    than `run`.
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
    """Writes checkpoints in a thread, one at a time. Its errors are raised by the next `wait`, and by `write`.

    ranks: that write together, over a group that nobody else uses; None: this process writes alone. may_commit: as for
        `save`.
    """

    def __init__(self, root: Path, ranks: Ranks | None = None, may_commit: Callable[[], None] = lambda: None) -> None:
        self.root, self.ranks, self._may_commit = root, ranks, may_commit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def write(self, state: State, committed: Callable[[], None]) -> None:
        """Begin to write `state`, which nobody may change any more; `committed` is called in the thread when it is on
        disk.
        """
        self.wait()

        def work() -> None:
            save(self.root, state, self.ranks, self._may_commit)
            committed()

        self._writing = self._pool.submit(work)

    def wait(self) -> None:
        """Until everything is on disk. Raises what kept it from getting there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, and raises nothing: for the way out of an error."""
        self._pool.shutdown(wait=True)


def publish(weights: Mapping[str, Tensor], target: Path, facts: Mapping[str, Any] | None = None) -> None:
    """A safetensors file of weights, with a digest of them and of `facts`, all at once or not at all."""
    with staged(target) as tmp:
        tensorfile.write(tmp, weights, facts or {})
        tmp.replace(target)
        sync_folder(target.parent)


def clear(root: Path) -> None:
    """Delete what processes that were killed left half written or half deleted. For the one process that holds the run
    folder.
    """
    for path in root.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(root: Path, *, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` and the best. A folder is renamed first, so a half-deleted one is never taken
    for a checkpoint.
    """
    for step in steps(root)[:-keep]:
        if step != best:
            gone = root / f".{folder_of(root, step).name}.gone"
            shutil.rmtree(gone, ignore_errors=True)
            folder_of(root, step).rename(gone)
            shutil.rmtree(gone)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def restore_weights(parameters: Mapping[str, nn.Parameter | Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into the parameters of the same name and shape, or raise CheckpointError with the difference."""
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
