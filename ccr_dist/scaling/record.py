"""Records of a study: what it is (OUT/study.json), and how each training of a point ended
(OUT/points/POINT.rN.json). Both carry their digests.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist.config import as_dict
from ccr_dist.data.storage.checked import read_checked
from ccr_dist.data.storage.store import differences, pretty_json, replace_atomic, with_digest
from ccr_dist.errors import CRASH, DONE, ConfigError, DataError, OutOfMemoryError
from ccr_dist.methods.run_config import from_dict
from ccr_dist.redact import without_secrets
from ccr_dist.scaling.measured import measured
from ccr_dist.scaling.plan import FORMAT, UNDECISIVE, ScalingPlan, ScalingStudy, Trial

TAIL = 3  # lines of the log of a training that failed
NAME = "study.json"
KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Record:
    """How a training of a point ended.

    Attributes:
        point: Name of the point.
        repeat: Its number.
        identity: What the point is (`Point.identity`).
        command: The whole command line.
        exit: Its exit code.
        error: The end of its log, if it failed.
        seconds: From its start to its end; None where that is not known.
        found: What it measured (`measured`); empty if it failed.
    """

    point: str
    repeat: int
    identity: Mapping[str, Any]
    command: tuple[str, ...]
    exit: int
    error: str
    seconds: float | None
    found: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        return self.exit != DONE

    @property
    def said(self) -> str:
        """How it ended, in a few words."""
        if self.exit == OutOfMemoryError.exit_code:
            return "out of memory"
        if self.exit == KILLED:
            return "killed (SIGKILL), as a system does where memory runs out"
        return f"exit code {self.exit}" if self.failed else "measured"


def write(
    trial: Trial, *, command: tuple[str, ...], exit: int, seconds: float | None, said: str | None = None
) -> Record:
    """Read what a training left, and keep it. A training without measurements has failed, whatever it ended with.

    Args:
        trial: The training.
        command: Its command line.
        exit: Its exit code.
        seconds: From its start to its end.
        said: Why it failed; default: the end of its log.
    """
    found: dict[str, Any] = {}
    error = ""
    if exit == DONE:
        try:
            found = measured(trial.folder, warmup=trial.point.study.warmup)
        except DataError as problem:
            exit, error = CRASH, str(problem)
    else:
        error = tail(trial.log) if said is None else said
    values = {
        "format": FORMAT, "point": trial.point.name, "repeat": trial.repeat, "identity": trial.point.identity,
        "command": list(command), "exit": exit, "error": error, "seconds": seconds, "found": found,
    }  # fmt: skip
    trial.record.parent.mkdir(parents=True, exist_ok=True)
    replace_atomic(trial.record, pretty_json(with_digest(values)))
    return read(trial.record)


def read(path: Path) -> Record:
    """Raises DataError for a damaged record, and one of a later version."""
    try:
        values, sealed = read_checked(path, error=DataError)
    except DataError as error:
        raise DataError(f"{error}; delete it, and `ccr-dist scale run` measures the point again") from None
    if not sealed or values.get("format") != FORMAT:
        raise DataError(
            f"{path}: no record that this version reads (format {values.get('format')!r}); delete it, and measure the"
            " point again"
        )
    keys = ("point", "repeat", "identity", "exit", "error", "seconds", "found")
    return Record(command=tuple(values["command"]), **{key: values[key] for key in keys})


def kept(trial: Trial) -> Record | None:
    """The record of a training, if it has ended.

    Raises:
        ConfigError: It is of another point of that name; shows the differences.
    """
    if not trial.record.exists():
        return None
    record = read(trial.record)
    if changed := differences(_of_today(record, trial.record), trial.point.identity):
        raise ConfigError(
            f"{trial.record}: measured as another point:\n  " + "\n  ".join(changed[:12])
            + "\ndelete that file to measure it again, or give the study another `out`"
        )  # fmt: skip
    return record


def _of_today(record: Record, path: Path) -> dict[str, Any]:
    """Its identity, with defaults for options that are newer. Raises ConfigError for options that are gone."""
    config = as_dict(from_dict({**record.identity["config"], "name": record.point}, name=str(path)))
    return {**record.identity, "config": {key: config[key] for key in config if key not in UNDECISIVE}}


def keep_study(plan: ScalingPlan) -> None:
    """Write what the study is, for its report.

    Raises:
        ConfigError: Its folder is that of another study.
        DataError: What the folder says of its study is damaged.
    """
    out = Path(plan.study.out)
    if (out / NAME).exists() and (name := study_of(out).study.name) != plan.study.name:
        raise ConfigError(
            f"{plan.file}: out: {out} holds the study {name}, and this one is {plan.study.name}: their reports would"
            " be mixed; give this one another `out`"
        )
    values = {
        "format": FORMAT, "file": str(plan.file), "study": plan.study.model_dump(mode="json"),
        "points": [point.name for point in plan.points],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    replace_atomic(out / NAME, pretty_json(with_digest(values)))


@dataclass(frozen=True)
class Kept:
    """What `keep_study` wrote: the study, its file as it was named then, and the names of its points."""

    study: ScalingStudy
    file: Path
    points: list[str]


def study_of(folder: Path) -> Kept:
    """The study of a folder.

    Args:
        folder: Its `out`.

    Raises:
        ConfigError: There is none.
        DataError: What says so is damaged, or of another version.
    """
    path = folder / NAME
    if not path.exists():
        raise ConfigError(f"{folder}: no scaling study (no {NAME}): name the folder `out` of a study that was run")
    values, _ = read_checked(path, error=DataError)
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}")
        return Kept(ScalingStudy.model_validate(values["study"]), Path(values["file"]), list(values["points"]))
    except (KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: no study that this version reads ({why}); `ccr-dist scale run` on the study's file writes it anew"
            " where it is deleted"
        ) from None


def tail(log: Path) -> str:
    """The last error that a log tells of, otherwise its last lines, without secrets."""
    if not log.exists():
        return ""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("launcher: ")]  # which names no cause
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return without_secrets(said[-1] if said else "\n".join(lines[-TAIL:]))
