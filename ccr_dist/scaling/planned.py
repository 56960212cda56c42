"""What the planner says of the points of a study, to be held against what was measured.

Where the machine's speeds were measured, one point of one process gives the one factor by which whole steps are slower
than their operators, and on a CPU what a process holds beside the tensors. All other points are predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ccr_dist.config import RunConfig
from ccr_dist.devices import named
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import from_dict
from ccr_dist.plan.cost import calibration as calibrations
from ccr_dist.plan.cost.calibration import Calibration, fitted
from ccr_dist.plan.predict import Traces, predict
from ccr_dist.scaling.plan import ScalingStudy, Settings
from ccr_dist.scaling.record import Record

Numbers = dict[str, dict[str, Any]]  # by stage
Planner = Callable[..., tuple[Numbers, str | None]]
FOLDER = "calibrations"  # below the study's folder: PROCESSES.json, of a study that measures its machine


@dataclass(frozen=True)
class Given:
    """What a measured point of one process gave to the planner's numbers of all points.

    Attributes:
        point: Its name.
        factor: Its measured by its planned steps: the geometric mean over its stages.
        process_bytes: On a CPU its resident memory without what was planned, the most over its stages.
    """

    point: str
    factor: float
    process_bytes: int


@dataclass(frozen=True)
class Curve:
    """What the planner says of all points of a study.

    Attributes:
        numbers: By point, as `planned`.
        unplanned: Reason -> the points of which it says nothing.
        speeds: The measured speeds that it used.
        given: What it used of a training; None: nothing.
    """

    numbers: dict[str, Numbers]
    unplanned: dict[str, list[str]]
    speeds: tuple[Calibration, ...]
    given: Given | None


def planned(
    study: ScalingStudy,
    settings: Settings,
    config: RunConfig,
    per_node: int,
    *,
    folder: Path = Path(),
    environment: Mapping[str, Any] | None = None,
    given: Given | None = None,
) -> tuple[Numbers, str | None]:
    """The planner's numbers for a point.

    Args:
        study: Names the device, or a file of measured speeds, or has measured its machine.
        settings: Of the point.
        config: Of its runs.
        per_node: Its processes on a node.
        folder: The study's `out`, with what it has measured.
        environment: What the point was measured on.
        given: What another point gave.

    Returns:
        By stage: "seconds" of a step, "peak_bytes" of a rank as they are measured, "sent_bytes"; and why there is
        nothing, or None.
    """
    if study.device is None and not calibrated(study):
        return {}, "the study names no `device`, no `calibration` and no `measure`, so that nothing is planned"
    strategy = "single" if settings.world == 1 and settings.strategy == "ddp" else settings.strategy
    try:
        known = _speeds(study, folder, per_node)
        if known is not None:
            _require_same_machine(known, config, environment or {}, per_node)
            if given is not None:
                known = replace(known, factor=known.factor * given.factor)
        device = None if study.device is None else named(study.device)
        found = predict(
            config, gpus=settings.world, per_node=per_node, device=device, strategy=strategy, calibration=known,
            network=study.network, traces=Traces(config, tokens=study.tokens, opinion=False),
        )  # fmt: skip
    except ConfigError as error:
        return {}, str(error)
    except Exception as error:  # a fault of the planner must not keep what was measured from being reported
        return {}, f"the planner failed: {type(error).__name__}: {error}"
    process = 0 if given is None else given.process_bytes
    return {
        each.stage: {
            "seconds": each.seconds["step"],
            "peak_bytes": each.peak_bytes - each.memory["process"] + process,  # a GPU's context is not measured
            "sent_bytes": sum(each.sent.values()),
        }
        for each in found
    }, None


def curve(
    study: ScalingStudy,
    folder: Path,
    records: Mapping[str, Record],
    measured: Mapping[str, Mapping[str, tuple[float, int]]],
    plan: Planner = planned,
) -> Curve:
    """The planner's numbers for all points that were measured.

    Args:
        study: The study.
        folder: Its `out`.
        records: One of each point, by its name.
        measured: By point and stage: seconds of a step, and the most bytes that a rank held.
        plan: Gives the numbers of a point.
    """
    given: Given | None = None
    found: dict[str, Numbers] = {}
    unplanned: dict[str, list[str]] = {}

    def numbers(name: str) -> None:
        identity, about = records[name].identity, records[name].found.get("environment")
        config = from_dict({**identity["config"], "name": name}, name=f"the config of {name}")
        settings = Settings.model_validate(identity["settings"])
        made, why = plan(study, settings, config, identity["per_node"], folder=folder, environment=about, given=given)
        if why is None:
            found[name] = made
        else:
            unplanned.setdefault(why, []).append(name)

    alone = next((name for name, record in records.items() if record.identity["settings"]["world"] == 1), "")
    if calibrated(study) and alone:
        numbers(alone)
    if alone in found:
        made, stages = found[alone], measured[alone]
        beside = max(held - made[stage]["peak_bytes"] for stage, (_, held) in stages.items())
        on_cpu = records[alone].found["environment"]["device"] == "cpu"
        factor = fitted([(made[stage]["seconds"], seconds) for stage, (seconds, _) in stages.items()])
        given = Given(alone, factor, max(0, beside) if on_cpu else 0)
        for each in made.values():  # one process sends nothing, so that all of its step is computations
            each["seconds"] *= factor
            each["peak_bytes"] += given.process_bytes
    for name in records:
        if name not in found and not any(name in points for points in unplanned.values()):
            numbers(name)
    return Curve(found, unplanned, tuple(speeds_of(study, folder)) if found else (), given)


def calibrated(study: ScalingStudy) -> bool:
    """Whether measured speeds stand in for a device's table."""
    return study.calibration is not None or study.measure is not None


def speeds_of(study: ScalingStudy, folder: Path) -> list[Calibration]:
    """The measured speeds that a study has, by the processes that they were measured over.

    Args:
        study: The study.
        folder: Its `out`.

    Raises:
        ConfigError: A file is missing, damaged, or no calibration.
    """
    if study.calibration is not None:
        return [calibrations.read(Path(study.calibration), "calibration")]
    if study.measure is None:
        return []
    found = [calibrations.read(path, "measured speeds") for path in (folder / FOLDER).glob("*.json")]
    return sorted(found, key=lambda each: each.processes)


def _speeds(study: ScalingStudy, folder: Path, per_node: int) -> Calibration | None:
    if not calibrated(study):
        return None
    every = speeds_of(study, folder)
    if not every:
        raise ConfigError(f"{folder / FOLDER}: the machine is not measured yet; `ccr-dist scale run` measures it")
    # those of as many processes as a node has, or of the most below: more than it has places for take turns
    return max((each for each in every if each.processes <= per_node), key=lambda c: c.processes, default=every[0])


def _require_same_machine(known: Calibration, config: RunConfig, environment: Mapping[str, Any], per_node: int) -> None:
    gpu = known.machine.get("device") == "cuda"
    measured = environment.get("device" if gpu else "hardware")
    there = environment.get("device")
    if there is not None and (there != "cpu") != gpu:
        raise ConfigError(
            f"the calibration is of {known.name}, a {'GPU' if gpu else 'CPU'}, and the points were measured on a"
            f" {'CPU' if gpu else 'GPU'}; measure speeds where the points are trained"
        )
    if measured is not None and measured != known.machine["name"]:
        raise ConfigError(
            f"the calibration is of {known.machine['name']}, and the points were measured on {measured}; measure speeds"
            " where the points are trained"
        )
    threads = config.runtime.threads or max(1, known.cores // per_node)  # as ranks choose it
    if not gpu and threads != known.threads:
        raise ConfigError(
            f"the calibration is of processes with {known.threads} thread(s), and the point's processes had {threads};"
            " measure with the same runtime.threads"
        )
