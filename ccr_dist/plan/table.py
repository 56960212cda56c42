"""Plans as tables that a person understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ccr_dist.plan.jobs import JobPlan, Rate
from ccr_dist.plan.predict import Prediction
from ccr_dist.plan.recommend import Option, Recommendation

SHOWN = {
    "compute": "arithmetic",
    "memory_traffic": "memory traffic",
    "overhead": "kernel starts",
    "collectives": "communication",
    "data": "data",
    "solve": "solving, on one process",
}


def overview(found: Mapping[int, Sequence[Option]], chosen: Mapping[int, Recommendation]) -> Any:
    """A line for each number of GPUs, strategy and precision; the recommended ones are marked."""
    from rich.table import Table

    table = Table(
        "GPUs", "strategy", "precision", "rows at a time", "peak memory", "step", "samples/s", "a GPU", "time"
    )
    table.add_column("GPU-hours")
    for column in (0, 3, 4, 5, 6, 7, 8, 9):
        table.columns[column].justify = "right"
    for gpus, several in found.items():
        best = chosen[gpus].option
        for number, each in enumerate(several):
            mark = " *" if each is best else ""
            table.add_row(
                str(gpus) if number == 0 else "", each.strategy + mark, each.precision, *_numbers(each),
                style="bold" if mark else ("" if each.fits else "dim"), end_section=number == len(several) - 1,
            )  # fmt: skip
    return table


def _numbers(option: Option) -> list[str]:
    if option.refused is not None:
        return ["", "refused", "", "", "", "", ""]
    room = option.stages[0].room_bytes
    peak = f"{gib(option.peak_bytes)} of {gib(room)}" + ("" if option.fits else ", too much")
    parts = "all" if option.micro_batch is None else str(option.micro_batch)
    used = option.micro_batch or option.largest
    if option.largest != used:
        parts += f" (at most {option.largest})" if option.largest else " (none fits)"
    if not option.fits:
        return [parts, peak, "", "", "", "", ""]
    rate = sum(each.batch * each.steps for each in option.stages) / option.total_s
    return [
        parts,
        peak,
        ", ".join(duration(each.seconds["step"]) for each in option.stages),
        f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}",
        f"{rate / option.gpus:,.1f}",
        duration(option.total_s),
        f"{option.gpu_hours:,.1f}" if option.gpu_hours >= 1 else f"{option.gpu_hours:.2g}",
    ]


def details(predictions: Sequence[Prediction]) -> tuple[Any, Any]:
    """Where memory and time of the recommended ways go, a column each: GPUs and stage."""
    from rich.table import Table

    heads = [f"{each.world} x {each.strategy}, {each.stage}" for each in predictions]
    memory = Table("memory of a GPU", *heads)
    for part in dict.fromkeys(name for each in predictions for name in each.memory):
        if any(each.memory.get(part) for each in predictions):
            memory.add_row(part, *(gib(each.memory.get(part, 0)) for each in predictions))
    memory.add_row("peak", *(gib(each.peak_bytes) for each in predictions), style="bold")
    time = Table("time of a step", *heads)
    for part in SHOWN:
        hidden = [each.hidden.get(part, 0.0) for each in predictions]
        if any(each.seconds.get(part) for each in predictions) or any(hidden):
            cells = [
                share(each.seconds.get(part, 0.0), each.seconds["step"])
                + (f" (+ {duration(more)} hidden)" if more > 1e-6 else "")
                for each, more in zip(predictions, hidden, strict=True)
            ]
            time.add_row(SHOWN[part], *cells)
    time.add_row("step", *(duration(each.seconds["step"]) for each in predictions), style="bold")
    time.add_row("a rank sends", *(gib(sum(each.sent.values())) for each in predictions))
    for each in (memory, time):
        for column in each.columns[1:]:
            column.justify = "right"
    return memory, time


def jobs(rate: Rate, plans: Sequence[JobPlan]) -> Any:
    """A job on several numbers of workers."""
    from rich.table import Table

    per = f"{rate.rows_per_s:.3g} rows/s a worker" + (
        f" (90 %: {rate.low:.3g} to {rate.high:.3g})" if rate.low is not None else ""
    )
    table = Table("GPUs", "rows", "time", "GPU-hours", "90 % interval", title=f"{per}, after {duration(rate.start_s)}")
    for each in plans:
        ends = "too few batches" if each.low is None else f"{each.low:,.2f} to {each.high:,.2f}"
        table.add_row(str(each.gpus), f"{each.rows:,}", duration(3600 * each.hours), f"{each.gpu_hours:,.2f}", ends)
    return table


def share(part: float, whole: float) -> str:
    """Seconds and their share."""
    return f"{duration(part)} {part / whole:4.0%}"


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} d"
