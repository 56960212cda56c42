"""The results of a study by point and stage: medians over repeats, efficiency, the planner's numbers, the serial
fraction.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ccr_dist.errors import DataError
from ccr_dist.scaling.fit import Fit, fit
from ccr_dist.scaling.measured import PHASES
from ccr_dist.scaling.plan import ScalingStudy, Settings
from ccr_dist.scaling.planned import Curve, Planner, curve, planned
from ccr_dist.scaling.record import Record, read, study_of


@dataclass(frozen=True)
class Row:
    """A stage of a point.

    Attributes:
        point: Name of the point.
        series: Points that differ in nothing but the number of processes (kind batch: in the batch).
        stage: Name of the stage.
        settings: Of the point.
        batch: Rows of the global batch.
        nodes: Number of nodes.
        repeats: Number of trainings that were measured.
        first_step: First step that was read.
        last_step: Last one.
        steps: Number of steps that were read in each training.
        seconds: Of a step, on the rank that took longest: median over steps, then over repeats.
        repeated: The medians of the single repeats, sorted.
        samples_per_s: Rows of the global batch a second.
        efficiency: Samples a second of a process, by those of a process where they are fewest; kind batch: None.
        phases: Seconds of a step by `PHASES`, mean over ranks, median over steps and repeats.
        memory_bytes: Of each rank, the most over repeats.
        traffic: Bytes that a rank sends in a step, by what they are.
        tokens_per_s: Of all ranks; None where nothing was tokenised.
        mfu: None where the device's peak is not known.
        quality: Mean over repeats of the best validation, and of the test split where it was measured.
        planned: The planner's "seconds", "peak_bytes" and "sent_bytes"; empty where there are none.
        crowded: Processes of a machine had more threads than it has cores, and took turns.
    """

    point: str
    series: str
    stage: str
    settings: Settings
    batch: int
    nodes: int
    repeats: int
    first_step: int
    last_step: int
    steps: int
    seconds: float
    repeated: tuple[float, ...]
    samples_per_s: float
    efficiency: float | None
    phases: dict[str, float]
    memory_bytes: tuple[int, ...]
    traffic: dict[str, float]
    tokens_per_s: float | None
    mfu: float | None
    quality: dict[str, Any]
    planned: dict[str, Any] = field(default_factory=dict)
    crowded: bool = False

    @property
    def residuals(self) -> dict[str, float]:
        """Measured minus planned, as a part of planned, of "seconds" and "peak_bytes"."""
        if not self.planned:
            return {}
        return {
            "seconds": self.seconds / self.planned["seconds"] - 1,
            "peak_bytes": max(self.memory_bytes) / self.planned["peak_bytes"] - 1,
        }

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {"settings": self.settings.model_dump(mode="json")}
        return values | {"residuals": self.residuals}


@dataclass(frozen=True)
class Summary:
    """Everything that a report shows.

    Attributes:
        study: The study.
        rows: Measured points by stage.
        fits: Serial fractions, by (series, stage), of points whose processes have cores of their own.
        failed: Trainings that failed.
        missing: Points without a training that has ended.
        curve: What the planner says of the points.
        records: All that was read.
    """

    study: ScalingStudy
    rows: tuple[Row, ...]
    fits: dict[tuple[str, str], Fit]
    failed: tuple[Record, ...]
    missing: tuple[str, ...]
    curve: Curve
    records: tuple[Record, ...]

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(row.stage for row in self.rows))

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(row.series for row in self.rows))

    def of(self, stage: str, series: str | None = None) -> list[Row]:
        return [row for row in self.rows if row.stage == stage and series in (None, row.series)]

    def environments(self) -> dict[str, list[str]]:
        """Commits, hardware, versions and hosts, with the points that were measured there."""
        found: dict[str, list[str]] = {}
        for record in self.records:
            if about := record.found.get("environment"):
                versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
                hosts = f"{len(about['hosts'])} host(s)"
                said = f"{about.get('hardware', '?')}; {about.get('device', '?')}; {hosts}; commit"
                said += f" {about.get('commit') or 'of an installed package'}; {versions}"
                found.setdefault(said, []).append(f"{record.point}.r{record.repeat}")
        return found


def summarise(folder: Path, *, plan: Planner = planned) -> Summary:
    """Summarise a study.

    Args:
        folder: Its `out`.
        plan: Gives the planner's numbers, as `planned`.

    Raises:
        ConfigError: The folder holds no study.
        DataError: A record is damaged, or nothing was measured.
    """
    kept = study_of(folder)
    study, names = kept.study, kept.points
    records = [read(path) for path in sorted((folder / "points").glob("*.json"))]
    by_point: dict[str, list[Record]] = {name: [] for name in names}
    for record in records:
        if record.point in by_point:  # others are of a version of the study that had more points
            by_point[record.point].append(record)
    records = [record for of_point in by_point.values() for record in of_point]
    failed = tuple(record for record in records if record.failed)
    well = {name: [record for record in of_point if not record.failed] for name, of_point in by_point.items()}
    rows = [row for of_point in well.values() if of_point for row in _rows(study, of_point)]
    if not rows:
        ended = f"; {len(failed)} training(s) failed: {failed[0].error}" if failed else ""
        raise DataError(f"{folder}: no point is measured yet; `ccr-dist scale run` measures them{ended}")
    firsts = {name: of_point[0] for name, of_point in well.items() if of_point}
    told: dict[str, dict[str, tuple[float, int]]] = {}
    for row in rows:
        told.setdefault(row.point, {})[row.stage] = row.seconds, max(row.memory_bytes)
    beside = curve(study, folder, firsts, told, plan)
    rows = [replace(row, planned=beside.numbers.get(row.point, {}).get(row.stage, {})) for row in rows]
    rows = _with_efficiency(study, rows)
    missing = tuple(name for name, of_point in by_point.items() if not of_point)
    return Summary(study, tuple(rows), _fits(study, rows), failed, missing, beside, tuple(records))


def _rows(study: ScalingStudy, records: Sequence[Record]) -> list[Row]:
    """The stages of a point; `records` are its repeats."""
    identity = records[0].identity
    settings, rows = Settings.model_validate(identity["settings"]), []
    quality = _quality([record.found["quality"] for record in records])
    for stage in records[0].found["stages"]:
        found = [record.found["stages"][stage] for record in records]
        middles = sorted(statistics.median(each["seconds"]) for each in found)
        seconds = statistics.median(middles)
        ranks = zip(*(each["memory_bytes"] for each in found), strict=True)
        rows.append(Row(
            records[0].point, _series(study, settings), stage, settings, identity["batch"], identity["nodes"],
            repeats=len(found),
            first_step=found[0]["first_step"], last_step=found[0]["last_step"], steps=len(found[0]["seconds"]),
            seconds=seconds,
            repeated=tuple(middles),
            samples_per_s=identity["batch"] / seconds,
            efficiency=None,
            phases={phase: statistics.median(each["phases"][phase] for each in found) for phase in PHASES},
            memory_bytes=tuple(max(rank) for rank in ranks),
            traffic={key: statistics.median(each["traffic"][key] for each in found) for key in found[0]["traffic"]},
            tokens_per_s=_middle(found, "tokens_per_s") or None,
            mfu=_middle(found, "mfu"),
            quality=quality,
            crowded=any(_crowded(record) for record in records),
        ))  # fmt: skip
    return rows


def _crowded(record: Record) -> bool:
    """Whether processes shared cores of a CPU. Of a machine whose cores no record has, nobody knows."""
    about = record.found.get("environment") or {}
    cores = about.get("cores")
    if cores is None:  # of records before there was such a key; the name of the hardware ends with it
        named = re.search(r", (\d+) cores$", about.get("hardware", ""))
        cores = int(named[1]) if named else None
    if cores is None or about.get("device") != "cpu":
        return False
    return bool(record.identity["per_node"] * max(1, about.get("threads", 1)) > cores)


def _middle(found: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return statistics.median(each[key] for each in found) if all(key in each for each in found) else None


def _quality(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not all("metric" in each for each in found):
        return {}
    values: dict[str, Any] = {"metric": found[0]["metric"], "value": statistics.fmean(e["value"] for e in found)}
    if all("test" in each for each in found):
        values["test"] = {lang: statistics.fmean(e["test"][lang] for e in found) for lang in found[0]["test"]}
    return values


def _series(study: ScalingStudy, settings: Settings) -> str:
    """What the points of a line have in common, in words."""
    parts: list[str] = [settings.strategy, settings.precision]
    if study.kind == "batch":
        parts.append(f"{settings.world} process{'es' if settings.world > 1 else ''}")
    else:
        parts.append(f"batch {settings.batch}{' a process' if study.kind == 'weak' else ''}")
    parts += [f"micro-batch {settings.micro_batch}"] if settings.micro_batch else []
    parts += ["checkpointing"] if settings.gradient_checkpointing else []
    parts += [f"{settings.contrastive} loss"] if settings.contrastive != "auto" else []
    return ", ".join(parts)


def _with_efficiency(study: ScalingStudy, rows: Sequence[Row]) -> list[Row]:
    if study.kind == "batch":
        return sorted(rows, key=lambda row: (row.stage, row.series, row.batch))
    found = []
    for row in rows:
        line = [each for each in rows if (each.stage, each.series) == (row.stage, row.series)]
        least = min(line, key=lambda each: each.settings.world)
        share = row.samples_per_s / row.settings.world / (least.samples_per_s / least.settings.world)
        found.append(Row(**{**vars(row), "efficiency": share}))
    return sorted(found, key=lambda row: (row.stage, row.series, row.settings.world))


def _fits(study: ScalingStudy, rows: Sequence[Row]) -> dict[tuple[str, str], Fit]:
    if study.kind == "batch":
        return {}
    found = {}
    for key in dict.fromkeys((row.series, row.stage) for row in rows):
        line = [row for row in rows if (row.series, row.stage) == key and not row.crowded]  # others wait for a core
        each = [(row.settings.world, row.batch / seconds) for row in line for seconds in row.repeated]
        fitted = fit(study.kind, [world for world, _ in each], [rate for _, rate in each])
        if fitted is not None:
            found[key] = fitted
    return found
