"""The run folder: what a run was asked to do, what it really did, and whether a new start may continue it.

RUNS/NAME-sSEED/
    config.yaml        the resolved config of the first start, with the sha256 of its lines in the last one
    identity.json      what may not change on resume (see `identity`), with the digests of data, order and weights
                       that it starts from
    method.json        what the method needs besides weights to be rebuilt; no proof that there are weights
    starts.jsonl       one line a start: step it began at, processes, strategy, versions, command
    log.jsonl, tensorboard/, wandb/
    skipped.jsonl, substituted.jsonl
                       steps that were not made, broken samples that others stood in for
    nonfinite/step-N.json
                       what it takes to make such a step again (`guards.py`)
    hang/rank-N.txt    where a rank stood that gave no sign of life, and those that waited for it (`watchdog.py`)
    profile/           trace.json and table.txt of the steps of `runtime.profile`
    trace/             of `runtime.trace`
    checkpoints/, best.json
    model.safetensors  the selected weights, once the run is complete, with the step that it is complete at
                       (`published`)
    model/             the model folder (`retriever/model_folder.py`): all of it that it takes to use the run elsewhere
    results/<split>.json
    stop               create this file to make the run save and stop
    lock               of the process that trains the run, and which one that is; there is a new one at every start

JSON files here carry a digest of themselves (`data/storage/checked.py`), and model.safetensors one of its tensors:
CheckpointError where one is wrong. Those of earlier versions have none, and open. `audit` looks at all of them.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ccr_dist.config import RunConfig, as_dict
from ccr_dist.data.storage.checked import read_checked, with_digest
from ccr_dist.data.storage.json_lines import append_line
from ccr_dist.data.storage.store import (
    TEMPORARY,
    differences,
    digest_json,
    disk_errors,
    pretty_json,
    replace_atomic,
    staged,
)
from ccr_dist.environment import environment
from ccr_dist.errors import CheckpointError, ConfigError, HeldError, SupersededError
from ccr_dist.methods import registry
from ccr_dist.models import tensorfile
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.base_weights import files_of, pooling_of, weights_of
from ccr_dist.train.state.checkpoint_state import BEST, mistaken

STARTED_FROM = ("init_from", "init_from_is")  # keys below `weights` of an identity
SHA256 = "# sha256 of the lines above: "
REMEDIES = {
    "identity.json": "bring it back from a copy: without it nobody can tell which run this folder holds",
    "method.json": "delete it: training with the same command makes it again from the texts",
    "best.json": "delete it: training with the same command writes it again from the newest checkpoint",
}


def identity(
    config: RunConfig, datasets: Mapping[str, str], orders: Mapping[str, str], *, world: int
) -> dict[str, Any]:
    """Everything that decides the numbers of a run. Steps may grow, and how the run is carried out may change; so may
    the number of processes, unless a stage compares rows of a process alone (`negatives: local`).
    """
    whole = as_dict(config)
    stages = {
        name: {k: v for k, v in stage.items() if k not in ("steps", "validate_every")}
        for name, stage in whole["stages"].items()
    }
    kept = {key: whole[key] for key in ("seed", "backbone", "method", "data", "init_from", "select")}
    if any(stage.negatives == "local" for stage in config.stages.values()):
        kept["processes"] = world
    kept["weights"] = {"backbone": weights_of(config), "files": files_of(config)}
    text = config.backbone.pooled_text()
    if text is not None:
        kept["weights"]["pooling"] = pooling_of(text)
    return {
        **kept,
        "stages": stages,
        "precision": config.runtime.precision,
        "datasets": dict(datasets),
        "orders": dict(orders),
    }


def _of_today(known: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with what newer options meant when the run began: their defaults of today may be something else."""
    method, backbone, whole = known.get("method"), known.get("backbone"), dict(known)
    if isinstance(method, dict) and method.get("name") in registry.names():
        whole["method"] = {**registry.options(method["name"]).earlier(method), **method}
    if isinstance(backbone, dict) and backbone.get("kind") in ("dual", "sentence"):
        whole["weights"] = {"pooling": "{}", **known.get("weights", {})}
    return whole


def otherwise(known: Mapping[str, Any] | None) -> list[str]:
    """Lines for people about what a run that began with an earlier version (`known`: its identity) does otherwise from
    here on.
    """
    method = (known or {}).get("method")
    if not isinstance(method, dict) or method.get("name") not in registry.names():
        return []
    changed = registry.options(method["name"]).otherwise(method)
    return [
        f"this run began with an earlier version: {each}. Where there are such, its numbers are of both"
        for each in changed
    ]


def _without_gone(known: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without local files of base weights that are not there now: whoever reads them says so."""
    kept = dict(known.get("weights", {}))
    if "files" in kept:
        kept["files"] = {key: value for key, value in kept["files"].items() if key in asked["weights"]["files"]}
    return {**known, "weights": kept} if "weights" in known else dict(known)


def _comparable(known: Mapping[str, Any], asked: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`asked` without options that are newer than `known` and have their defaults (are not in `given`)."""
    kept: dict[str, Any] = {}
    for key, value in asked.items():
        there, said = known.get(key), given.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            kept[key] = _comparable(there, value, said if isinstance(said, dict) else {})
        elif key in known or key in given:
            kept[key] = value
    return kept


class RunFolder:
    """Paths and records of one run. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.results = path / "results"

    def lock(self) -> None:
        """Hold the folder until this process ends, or until a later attempt of the same SLURM job takes it
        (`require_held`): SLURM starts one when it has lost a node, on which processes may live on. HeldError while
        another process trains this run.
        """
        path, attempt = self.path / "lock", os.environ.get("CCR_ATTEMPT", "")
        self.path.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as before:
            try:
                fcntl.flock(before, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = os.path.samestat(os.fstat(before.fileno()), path.stat())
            except BlockingIOError:
                free = False
            holder = path.read_text(encoding="utf-8").strip()
            if not free and not _later(attempt, holder.partition(" ")[0]):
                raise HeldError(
                    f"{self.path}: another process is training this run ({holder}); wait for it, stop it"
                    f" ({self.path}/stop), or use another name"
                )
            # Always a new file: where locks do not reach other hosts, it still tells who came last.
            with staged(path) as tmp:
                self._lock = tmp.open("w", encoding="utf-8")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock.write(f"{attempt or '-'} pid {os.getpid()} on {platform.node()}\n")
                self._lock.flush()
                tmp.replace(path)

    def clear(self) -> None:
        """Delete what processes that were killed left half written. For the one that holds the folder."""
        for folder in (self.path, self.results):
            for path in folder.glob(f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)
        checkpoint.clear(self.checkpoints)

    def require_held(self) -> None:
        """SupersededError when another process has taken the run since `lock`: to be asked before anything is
        committed.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock.fileno()), (self.path / "lock").stat()):
                return
        raise SupersededError(
            f"{self.path}: a later attempt trains this run; nothing of this one is committed any more"
        )

    def claim(self, config: RunConfig, identity: Mapping[str, Any]) -> bool:
        """Make the folder this run's, or check that it is. True when there is something to continue.

        Raises ConfigError, with the differences, when the folder holds another run; nothing is touched then.
        """
        known, asked = self.identity(), json.loads(json.dumps(identity))
        if known is not None:
            known = _without_gone(_of_today(known), asked)
            changed = differences(
                known, _comparable(known, asked, config.model_dump(mode="json", exclude_defaults=True))
            )
            if changed:
                raise ConfigError(
                    f"{self.path} holds a run made under another plan:\n  "
                    + "\n  ".join(changed[:12])
                    + "\nUse another `name` or `seed`, or delete that folder; to start from its weights set `init_from`"
                )
            return True
        with disk_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
            replace_atomic(
                self.path / "config.yaml", f"{text}{SHA256}{hashlib.sha256(text.encode()).hexdigest()}\n".encode()
            )
            replace_atomic(self.path / "identity.json", pretty_json(with_digest(asked)))
        return False

    def require_same(self, config: RunConfig) -> None:
        """ConfigError unless the weights here were trained under this config's method, backbone and seed."""
        known = self.identity()
        if known is None:
            return
        known = _of_today(known)
        # of what a run began with, which no config names: `started_from` is looked at where the run is trained
        known["weights"] = {key: value for key, value in known.get("weights", {}).items() if key not in STARTED_FROM}
        asked = json.loads(json.dumps(identity(config, {}, {}, world=1)))
        known = _without_gone(known, asked)
        decisive = {key: asked[key] for key in ("seed", "backbone", "method", "weights")}
        if changed := differences(
            {key: known[key] for key in decisive if key in known},
            _comparable(known, decisive, config.model_dump(mode="json", exclude_defaults=True)),
        ):
            raise ConfigError(f"{self.path} was trained under another config:\n  " + "\n  ".join(changed[:12]))

    def identity(self) -> dict[str, Any] | None:
        """What the run was begun as (`identity`); None: it was not."""
        return self._read("identity.json")

    def started_from(self) -> dict[str, Any]:
        """The digests of what `init_from` named when the run began (`selected.Source`); {}: it began without, or has
        not begun.
        """
        kept = (self.identity() or {}).get("weights", {})
        return {key: kept[key] for key in STARTED_FROM if key in kept}

    @property
    def digest(self) -> str:
        """Of the identity: what the run's checkpoints name it by."""
        return digest_json(self.identity())

    def method_state(self) -> dict[str, Any] | None:
        """`Method.state` of an earlier start. Whether there are weights is another question."""
        return self._read("method.json")

    def keep_method_state(self, state: Mapping[str, Any]) -> None:
        if not (self.path / "method.json").exists():
            replace_atomic(self.path / "method.json", json.dumps(with_digest(state)).encode())

    def config(self) -> tuple[dict[str, Any] | None, bool]:
        """The values of config.yaml as they were written, None where there is none, and whether it carries a digest."""
        path = self.path / "config.yaml"
        if not path.exists():
            return None, False
        data = path.read_bytes()
        text, sealed, digest = data.rpartition(SHA256.encode())
        values: Any = None
        if not sealed or hashlib.sha256(text).hexdigest().encode() == digest.strip():
            with contextlib.suppress(ValueError, RecursionError, yaml.YAMLError):
                values = yaml.safe_load(data)
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: damaged or edited; it is a record that no start reads, and may be deleted")
        return values, bool(sealed)

    def published(self) -> dict[str, Any] | None:
        """What model.safetensors says of itself ({"step", "stage", "best", "skipped", "substituted", "weights"}) where
        it is sound; {} for one without a digest; None where there is none.
        """
        path = self.path / "model.safetensors"
        return (tensorfile.read(path)[1] or {}) if path.exists() else None

    def audit(self) -> Iterator[tuple[str, str | None, bool]]:
        """(file, what is wrong with it or None, it carries a digest) of what is read back of a run besides its
        checkpoints and results.
        """
        for name in (*REMEDIES, "config.yaml", "model.safetensors"):
            path = self.path / name
            if not path.exists():
                continue
            try:
                if name == "config.yaml":
                    _, sealed = self.config()
                elif name == "model.safetensors":
                    sealed = bool(self.published())
                else:
                    if name == "best.json":
                        self.best()
                    else:
                        self._read(name)
                    sealed = read_checked(path)[1]
                yield name, None, sealed
            except CheckpointError as error:
                yield name, str(error).removeprefix(f"{path}: "), True

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            return read_checked(path)[0] if path.exists() else None
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {REMEDIES[name]}") from None

    def started(self, facts: Mapping[str, Any]) -> None:
        self.append(
            "starts.jsonl",
            {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **facts, **environment()},
        )

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        append_line(self.path / name, line)

    def best(self) -> dict[str, Any] | None:
        """{"step", "stage", "metric", "value"} of the selected checkpoint."""
        best = self._read("best.json")
        if best is not None and (wrong := mistaken(best, BEST)):
            raise CheckpointError(f"{self.path / 'best.json'}: damaged, {wrong}")
        return best

    def keep_best(self, best: Mapping[str, Any]) -> None:
        replace_atomic(self.path / "best.json", pretty_json(with_digest({key: best[key] for key in BEST})))

    def settle_best(self, best: Mapping[str, Any] | None) -> None:
        """best.json says what the state that a run resumes from says; it may be of a save whose process died, or of a
        damaged one.
        """
        try:
            same = self.best() == best
        except CheckpointError:
            same = False
        if not same and best is not None:
            self.keep_best(best)
        elif not same:
            (self.path / "best.json").unlink(missing_ok=True)


def _later(attempt: str, other: str) -> bool:
    """JOB.RESTART and JOB.RESTART: of the same job, and after the other one."""
    (job, _, restart), (other_job, _, before) = attempt.partition("."), other.partition(".")
    return bool(job) and job == other_job and int(restart) > int(before)
