"""The tables and sentences of a scaling report, as text: the same on the page and in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ccr_dist.scaling.fit import LEVEL, Fit
from ccr_dist.scaling.measured import PHASES
from ccr_dist.scaling.summary import Row, Summary
from ccr_dist.scaling.traffic import HOW

STEP_READ = (
    "Samples/s: rows of the global batch by the seconds of a step, on the rank that took longest, waiting for data"
    " included: median over the steps that were read, then over repeats; in brackets the lowest and highest repeat."
    " Every step is logged, which adds the gradient norms of the log to it."
)
EFFICIENCY = (
    "Efficiency: samples/s of a process, divided by that of a process at the point of the line with the fewest."
)
CROWDED = " *"
TURNS = (
    "* More threads of processes than cores of the machine: processes take turns, which says nothing of how the work"
    " scales"
)
MEMORY = (
    "Memory of a rank, lowest and highest over ranks, by the end of the stage's steps: on a GPU what torch has"
    " allocated, else the resident memory of the process, libraries included."
)


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        title: Its heading.
        note: How to read it.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(summary: Summary) -> list[Table]:
    """All tables that have something to show."""
    batch = summary.study.kind == "batch"
    found = [_rates(summary), _split(summary), _memory(summary)]
    if any(row.planned for row in summary.rows):
        found.append(_planned(summary))
    if batch and any(row.quality for row in summary.rows):
        found.append(_quality(summary))
    if summary.failed:
        found.append(_failed(summary))
    return found


def _rates(summary: Summary) -> Table:
    columns: dict[str, Callable[[Row], str]] = {
        "line": lambda row: row.series,
        "stage": lambda row: row.stage,
        "processes": lambda row: f"{row.settings.world}{CROWDED if row.crowded else ''}",
        "nodes": lambda row: str(row.nodes),
        "batch": lambda row: f"{row.batch:,}",
        "samples/s": lambda row: f"{rate(row.samples_per_s)}{_between(row)}",
        "step": lambda row: duration(row.seconds),
        "efficiency": lambda row: "–" if row.efficiency is None else f"{row.efficiency:.0%}",
        "tokens/s": lambda row: "–" if row.tokens_per_s is None else rate(row.tokens_per_s),
        "MFU": lambda row: "–" if row.mfu is None else f"{row.mfu:.1%}",
        "steps read": lambda row: f"{row.first_step} to {row.last_step}, {row.repeats} times",
    }
    if summary.study.kind == "batch":
        del columns["efficiency"]
    for name in ("tokens/s", "MFU"):
        if all(columns[name](row) == "–" for row in summary.rows):
            del columns[name]
    note = STEP_READ if summary.study.kind == "batch" else f"{STEP_READ} {EFFICIENCY}"
    if any(row.crowded for row in summary.rows):
        note += f" {TURNS}{'' if summary.study.kind == 'batch' else ', and no serial fraction is fitted to them'}."
    return _table("Speed", columns, summary, note)


def _between(row: Row) -> str:
    if row.repeats == 1:
        return ""
    return f" ({rate(row.batch / row.repeated[-1])} to {rate(row.batch / row.repeated[0])})"


def _split(summary: Summary) -> Table:
    columns: dict[str, Callable[[Row], str]] = {"line": lambda row: row.series, "stage": lambda row: row.stage}
    columns["processes"] = lambda row: str(row.settings.world)
    columns["batch"] = lambda row: f"{row.batch:,}"
    for phase in PHASES:
        columns[phase] = lambda row, phase=phase: f"{row.phases[phase] / sum(row.phases.values()):.0%}"  # type: ignore[misc]
    note = (
        "Parts of a step, mean over ranks. data: waiting for the loader; agree: waiting for other ranks in small"
        " collectives; losses: with the exchange of features; backward: with the reduction of gradients under it."
    )
    return _table("Where a step's time goes", columns, summary, note)


def _memory(summary: Summary) -> Table:
    columns: dict[str, Callable[[Row], str]] = {
        "line": lambda row: row.series,
        "stage": lambda row: row.stage,
        "processes": lambda row: str(row.settings.world),
        "batch": lambda row: f"{row.batch:,}",
        "peak memory": lambda row: _range(min(row.memory_bytes), max(row.memory_bytes)),
        "sent a step": lambda row: size(sum(row.traffic.values())),
        "features": lambda row: size(row.traffic["features"]),
        "gradients": lambda row: size(row.traffic["gradients"]),
        "weights": lambda row: size(row.traffic["weights"]),
    }
    return _table("Memory and communication of a rank", columns, summary, f"{MEMORY} {HOW}")


def _planned(summary: Summary) -> Table:
    columns: dict[str, Callable[[Row], str]] = {
        "line": lambda row: row.series,
        "stage": lambda row: row.stage,
        "processes": lambda row: str(row.settings.world),
        "step": lambda row: duration(row.seconds),
        "planned": lambda row: duration(row.planned["seconds"]) + _gives(summary, row),
        "difference": lambda row: f"{row.residuals['seconds']:+.0%}",
        "memory": lambda row: size(max(row.memory_bytes)),
        "planned memory": lambda row: size(row.planned["peak_bytes"]),
        "difference of memory": lambda row: f"{row.residuals['peak_bytes']:+.0%}",
        "sent": lambda row: size(sum(row.traffic.values())),
        "planned sent": lambda row: size(row.planned["sent_bytes"]),
    }
    return _table(
        "Planned and measured",
        columns,
        summary,
        "Differences: measured minus planned, as a part of planned. Memory is what the planner's tensors need, on a"
        " CPU with what the process of one point held beside them.",
        shown=lambda row: bool(row.planned),
    )


def _gives(summary: Summary, row: Row) -> str:
    given = summary.curve.given
    return " (gives the factor)" if given is not None and row.point == given.point else ""


def _quality(summary: Summary) -> Table:
    names = list(dict.fromkeys(lang for row in summary.rows for lang in row.quality.get("test", {})))
    columns: dict[str, Callable[[Row], str]] = {
        "line": lambda row: row.series,
        "batch": lambda row: f"{row.batch:,}",
        "validation": lambda row: f"{row.quality['metric']} {row.quality['value']:.2f}" if row.quality else "–",
    }
    for lang in names:
        columns[f"test SumR {lang}"] = lambda row, lang=lang: _number(row.quality.get("test", {}).get(lang))  # type: ignore[misc]
    last = summary.stages[-1]
    rows = [row for row in summary.rows if row.stage == last]
    cells = [[column(row) for column in columns.values()] for row in rows]
    return Table("Quality and batch", list(columns), cells, "Mean over repeats, which have the same seed.")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _failed(summary: Summary) -> Table:
    rows = [
        [f"{record.point}.r{record.repeat}", record.said, record.error.splitlines()[-1] if record.error else ""]
        for record in summary.failed
    ]
    return Table("Failed", ["training", "how it ended", "its last line"], rows)


def _table(
    title: str,
    columns: dict[str, Callable[[Row], str]],
    summary: Summary,
    note: str,
    *,
    shown: Callable[[Row], bool] = lambda row: True,
) -> Table:
    for name in ("line", "stage"):
        if len({columns[name](row) for row in summary.rows}) == 1:
            del columns[name]  # it is in the caption
    cells = [[column(row) for column in columns.values()] for row in summary.rows if shown(row)]
    return Table(title, list(columns), cells, note)


def environment_notes(summary: Summary) -> list[str]:
    """What was measured how, and on what, a sentence each."""
    study, notes = summary.study, []
    kinds = {
        "strong": "Strong scaling: the global batch is the same for every number of processes.",
        "weak": "Weak scaling: the rows of a process are the same, and the global batch grows with the processes.",
        "batch": "The batch is what varies.",
    }
    notes.append(kinds[study.kind])
    for what, values in (("Line", summary.series), ("Stage", summary.stages)):
        if len(values) == 1:
            notes.append(f"{what}: {values[0]}.")
    notes.append(
        f"Read: all steps after {study.warmup} warm-up steps of each stage; {study.repeats} training(s) of each point,"
        " all points once before any is repeated."
    )
    places = summary.environments()
    for said, trials in places.items():
        which = "" if len(places) == 1 else f" ({', '.join(trials)})"
        notes.append(f"Measured on {said}{which}.")
    if len(places) > 1:
        notes.append("Points were measured under different conditions: compare them with care.")
    if summary.missing:
        notes.append(f"Not measured yet: {', '.join(summary.missing)}.")
    notes += _curve(summary)
    for why, points in summary.curve.unplanned.items():
        named = "" if len(points) == len({row.point for row in summary.rows}) else f" for {', '.join(points)}"
        notes.append(f"No planner's curve{named}: {why}.")
    return notes


def _curve(summary: Summary) -> list[str]:
    """Where the planner's numbers come from."""
    speeds, given = summary.curve.speeds, summary.curve.given
    if not speeds:
        return _tokens(summary)
    clocks = {"cpu": "in processor time", "wall": "on the clock"}
    over = " and ".join(f"{each.processes}" for each in speeds)
    first = speeds[0]
    said = (
        f"Planner's curve: speeds of single operators and collectives on {first.name}, measured over {over} process(es)"
        f" {clocks.get(str(first.machine.get('clock')), 'on the clock')}, no training among them."
    )
    if given is None:
        said += " No point of one process was measured, which would give the factor of whole steps."
        return [said, *_tokens(summary)]
    said += f" One factor, {given.factor:.3g}, is that of the steps of {given.point} by the sum of their operators"
    said += f", whose process held {size(given.process_bytes)} beside its tensors" if given.process_bytes else ""
    return [f"{said}. All other points are predicted.", *_tokens(summary)]


def _tokens(summary: Summary) -> list[str]:
    """How long captions were planned, and how long they were."""
    read = [row for row in summary.rows if row.planned and row.tokens_per_s]
    if not read:
        return []
    rows = [row.tokens_per_s * row.seconds / row.batch for row in read if row.tokens_per_s]
    seen = f"{min(rows):.3g}" if f"{min(rows):.3g}" == f"{max(rows):.3g}" else f"{min(rows):.3g} to {max(rows):.3g}"
    asked = summary.study.tokens
    said = f"captions of {asked} tokens" if asked else "captions as long as the text tower reads (`tokens` is not set)"
    return [f"Planned for {said}; in the trainings a row of the batch had {seen} tokens, of all its texts and prompts."]


def fit_sentence(series: str, stage: str, found: Fit) -> str:
    """A serial fraction in words."""
    worlds = ", ".join(map(str, found.worlds))
    interval = f"{found.low:.1%} to {found.high:.1%}"
    text = (
        f"{series}, stage {stage}: {found.law}'s serial fraction is {found.serial:.1%} ({LEVEL:.0f} % interval"
        f" {interval}), fitted to {worlds} processes; no measured rate is further than {found.deviation:.0%} from the"
        " law."
    )
    if len(found.worlds) == 2:
        text += " Two numbers of processes fit any such law: nothing tests it here."
    return text


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def _range(low: float, high: float) -> str:
    return size(high) if size(low) == size(high) else f"{size(low)} to {size(high)}"
