"""How a study measures its machine for the planner's curve: `ccr-dist plan --measure`, once for each number of
processes that has places of its own, kept as OUT/calibrations/PROCESSES.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ccr_dist.plan.cost import calibration as calibrations
from ccr_dist.plan.measure import places_here
from ccr_dist.scaling.plan import Point, ScalingPlan
from ccr_dist.scaling.planned import FOLDER


@dataclass(frozen=True)
class Measurement:
    """One of them.

    Attributes:
        file: Where the speeds are kept.
        log: What the command printed.
        command: Arguments of `ccr-dist`.
    """

    file: Path
    log: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"speeds over {self.file.stem} process(es)"


def measurements(plan: ScalingPlan) -> list[Measurement]:
    """What is left to be measured of this machine for the points of a study.

    Raises:
        ConfigError: What is there is damaged, or no calibration.
    """
    study, out = plan.study, Path(plan.study.out)
    if study.measure is None:
        return []
    points: dict[int, list[Point]] = {}
    for point in plan.points:
        most = places_here(point.config.runtime.threads, gpu=study.gpus)
        points.setdefault(min(point.settings.world, most), []).append(point)
    found = []
    for processes, alike in sorted(points.items()):
        file = out / FOLDER / f"{processes}.json"
        if file.exists():
            calibrations.read(file, "measured speeds")
        else:
            clock = () if study.measure == "wall" else ("--clock", study.measure)
            words = (*_shapes(alike), "--measure", *clock, "--calibration", str(file))
            found.append(Measurement(file, out / "logs" / f"speeds-{processes}.log", ("plan", *words)))
    return found


def _shapes(points: list[Point]) -> tuple[str, ...]:
    """The run of the first point, on as many processes as points of its batch have: their operators are measured."""
    first = points[0]
    worlds = sorted({p.settings.world for p in points if p.global_batch == first.global_batch})
    precisions = [p.settings.precision for p in points if p.study.gpus or p.settings.precision != "fp16"]
    asked: tuple[str, ...] = ("--gpus", ",".join(map(str, worlds)), "--strategies", "ddp")
    asked += ("--tokens", str(first.study.tokens)) if first.study.tokens else ()
    return (str(first.file), *first.given, *asked, "--precision", ",".join(dict.fromkeys(precisions)) or "fp32")
