"""`ccr-dist scale compare`: what the same training does a second on 1, 2, 4 ... nodes, from what its runs have logged.
Strong scaling: the batches are the same everywhere, so that each step has the same work, shared by more ranks.

Trains nothing: that is what configs/pipelines/scale.yaml and slurm/scale.sbatch do.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.checked import read_checked
from ccr_dist.data.storage.json_lines import read_lines
from ccr_dist.data.storage.store import check_object, differences
from ccr_dist.errors import ConfigError, DataError

TOGETHER = ("agree", "losses", "backward", "update")  # parts of a step in which ranks send, or wait for each other


@dataclass(frozen=True)
class Row:
    """One stage of one run: medians over its measured steps.

    samples_per_s: of the global batch; spread: half of the distance between its quartiles. efficiency: samples a second
    of a rank, by those of a rank where they are fewest. data: share of a step that ranks wait for the loader.
    communication: share of a step by which the parts `TOGETHER` take longer than their work, shared by so many ranks,
    would; by what it takes the fewest ranks, for which it is None.
    """

    stage: str
    nodes: int
    ranks: int
    steps: int
    samples_per_s: float
    spread: float
    efficiency: float
    data: float
    communication: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    """Seconds are those of a step."""

    run: Path
    nodes: int
    ranks: int
    rates: tuple[float, ...]
    data_s: float
    shared_s: float
    step_s: float


def rows(runs: Sequence[Path], warmup: int) -> list[Row]:
    """By stage, then by ranks. warmup: steps at the beginning of each stage that are left out.

    Raises ConfigError where runs are missing, interrupted by a change of their ranks, of other batches, or too short.
    """
    stages: dict[str, list[_Measured]] = {}
    first = _identity(runs[0])
    for run in runs:
        if changed := differences(first, _identity(run)):
            raise ConfigError(
                f"{run} is another training than {runs[0]}, so that their rates say nothing of nodes:"
                f" {'; '.join(changed[:4])}"
            )
        for stage, measured in _measured(run, warmup):
            stages.setdefault(stage, []).append(measured)
    return [
        row for stage, measured in stages.items() for row in _rows(stage, sorted(measured, key=lambda each: each.ranks))
    ]


def _identity(run: Path) -> Any:
    if not (run / "identity.json").exists():
        raise ConfigError(f"{run}: no run of a training (no identity.json); train it first")
    return read_checked(run / "identity.json")[0]


def _measured(run: Path, warmup: int) -> Iterator[tuple[str, _Measured]]:
    def lines_of(name: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
        remedy = "measure another run, or take the line out if you know what it said"
        lines = [line for line in read_lines(run / name).require(run / name, remedy) if "event" not in line]
        for number, line in enumerate(lines, 1):
            check_object({key: line[key] for key in fields if key in line}, fields, f"{run / name}, entry {number}")
        return lines

    starts = lines_of("starts.jsonl", {"processes": list, "world": int})
    if not starts:
        raise DataError(f"{run / 'starts.jsonl'}: holds no start of the run; measure another run")
    shapes = {(len({process["host"] for process in start["processes"]}), start["world"]) for start in starts}
    if len(shapes) != 1:
        raise ConfigError(
            f"{run}: trained on several numbers of ranks ({sorted(world for _, world in shapes)}); measure it in one"
            " place"
        )
    [(nodes, ranks)] = shapes
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in lines_of("log.jsonl", {"step": int, "stage": str}):
        stages.setdefault(line["stage"], []).append(line)
    for stage, lines in stages.items():
        kept = [line for line in lines if line["step"] >= lines[0]["step"] + warmup and "speed" in line]
        if len(kept) < 2:
            raise ConfigError(
                f"{run}: {len(kept)} measured step(s) of stage {stage} after the first {warmup}, of {len(lines)} that"
                " are in its log. Only logged steps are measured: set runtime.log_every=1 for such a run, train more"
                " steps, or leave out fewer of them by --warmup"
            )
        yield (
            stage,
            _Measured(
                run, nodes, ranks,
                rates=tuple(line["samples_per_s"] for line in kept),
                data_s=statistics.median(line["speed"]["data_s"] for line in kept),
                shared_s=statistics.median(sum(line["speed"][f"{part}_s"] for part in TOGETHER) for line in kept),
                step_s=statistics.median(line["data_s"] + line["step_s"] for line in kept),
            ),
        )  # fmt: skip


def _rows(stage: str, measured: Sequence[_Measured]) -> Iterator[Row]:
    least = measured[0]
    for each in measured:
        rate, share = statistics.median(each.rates), least.ranks / each.ranks
        low, _, high = statistics.quantiles(each.rates, n=4)
        added = max(0.0, each.shared_s - least.shared_s * share)
        yield Row(
            stage, each.nodes, each.ranks, len(each.rates), rate, (high - low) / 2,
            efficiency=rate / statistics.median(least.rates) * share,
            data=each.data_s / each.step_s,
            communication=None if each.ranks == least.ranks else added / each.step_s,
        )  # fmt: skip


def table(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| stage | nodes | ranks | samples/s | efficiency | data wait | communication | steps |",
        "|" + " --- |" * 8,
    ]
    for row in found:
        communication = "" if row.communication is None else f"{row.communication:.0%}"
        rate = f"{row.samples_per_s:.4g} ±{row.spread:.2g}"
        cells = (
            row.stage,
            row.nodes,
            row.ranks,
            rate,
            f"{row.efficiency:.2f}",
            f"{row.data:.0%}",
            communication,
            row.steps,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
