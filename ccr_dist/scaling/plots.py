"""Draws the plots of a scaling report as PNG: a panel a stage, on white, in the style of studies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ccr_dist.scaling.measured import PHASES
from ccr_dist.scaling.summary import Row, Summary
from ccr_dist.study.plots import GROUPS, INK, MUTED, axes_of, png

CAPTIONS = {
    "rate": "Samples a second: measured (bars: lowest and highest repeat), ideal, fitted law, planned",
    "efficiency": "Efficiency: samples a second of a process, by that of a process where they are fewest",
    "split": "Where the time of a step goes",
    "memory": "Peak memory of a rank (bars: lowest and highest rank), and the planner's",
    "traffic": "Bytes that a rank sends in a step: gradients and weights computed, features counted",
    "quality": "Validation and batch",
}
PARTS = ("features", "gradients", "weights")
Marks = list[tuple[str, dict[str, Any]]]  # what is in the legend besides the series: name, style


def draw(summary: Summary) -> dict[str, bytes]:
    """All plots that have something to show, by name."""
    batch = summary.study.kind == "batch"
    made: dict[str, Callable[[], Any]] = {"rate": lambda: rate(summary)}
    if not batch:
        made["efficiency"] = lambda: efficiency(summary)
    made |= {
        "split": lambda: split(summary),
        "memory": lambda: memory(summary),
        "traffic": lambda: traffic(summary),
    }
    if batch and any(row.quality for row in summary.rows):
        made["quality"] = lambda: quality(summary)
    return {name: png(make) for name, make in made.items()}


def rate(summary: Summary) -> Any:
    def panel(axis: Any, stage: str) -> None:
        for series, colour, line in _lines(summary, stage):
            at = [_x(summary, row) for row in line]
            rates = [row.samples_per_s for row in line]
            low = [max(0.0, row.samples_per_s - row.batch / row.repeated[-1]) for row in line]
            high = [max(0.0, row.batch / row.repeated[0] - row.samples_per_s) for row in line]
            axis.errorbar(at, rates, [low, high], fmt="o-", color=colour, capsize=3, markersize=5, label=series)
            if summary.study.kind != "batch":
                ideal = [rates[0] / at[0] * world for world in at]
                axis.plot(at, ideal, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
                if (found := summary.fits.get((series, stage))) is not None:
                    axis.plot(at, [found.rate_at(world) for world in at], color=colour, linewidth=1, linestyle="--")
            planned = [row for row in line if row.planned]
            if planned:
                there = [row.batch / row.planned["seconds"] for row in planned]
                axis.plot([_x(summary, row) for row in planned], there, "x-.", color=colour, linewidth=1, alpha=0.7)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("samples/s")

    marks: Marks = [("measured", {"color": INK, "marker": "o"})]
    if summary.study.kind != "batch":
        marks += [("ideal", {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))})]
        marks += [("fitted law", {"color": INK, "linewidth": 1, "linestyle": "--"})] if summary.fits else []
    if any(row.planned for row in summary.rows):
        marks += [("planned", {"color": INK, "linewidth": 1, "linestyle": "-.", "marker": "x"})]
    return _panels(summary, panel, marks)


def efficiency(summary: Summary) -> Any:
    def panel(axis: Any, stage: str) -> None:
        for series, colour, line in _lines(summary, stage):
            least = line[0].samples_per_s / line[0].settings.world
            at = [_x(summary, row) for row in line]
            shares = [100 * (row.efficiency or 0) for row in line]
            span = [[100 * row.batch / s / row.settings.world / least for s in row.repeated] for row in line]
            low = [max(0.0, share - min(each)) for share, each in zip(shares, span, strict=True)]
            high = [max(0.0, max(each) - share) for share, each in zip(shares, span, strict=True)]
            axis.errorbar(at, shares, [low, high], fmt="o-", color=colour, capsize=3, markersize=5, label=series)
        axis.axhline(100, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        axis.set_ylim(bottom=0)
        axis.set_ylabel("efficiency, %")

    return _panels(summary, panel)


def split(summary: Summary) -> Any:
    """A bar a point; its parts add up to the step."""
    return _bars(summary, PHASES, lambda row, part: 1000 * row.phases[part], "ms a step, mean over ranks")


def traffic(summary: Summary) -> Any:
    return _bars(summary, PARTS, lambda row, part: row.traffic[part], "sent by a rank in a step", unit="B")


def memory(summary: Summary) -> Any:
    def panel(axis: Any, stage: str) -> None:
        for series, colour, line in _lines(summary, stage):
            at = [_x(summary, row) for row in line]
            most = [max(row.memory_bytes) / 1e9 for row in line]
            least = [min(row.memory_bytes) / 1e9 for row in line]
            spread = [[high - low for high, low in zip(most, least, strict=True)], [0.0] * len(line)]
            axis.errorbar(at, most, spread, fmt="o-", color=colour, capsize=3, markersize=5, label=series)
            planned = [(_x(summary, row), row.planned["peak_bytes"] / 1e9) for row in line if row.planned]
            axis.plot([x for x, _ in planned], [y for _, y in planned], "x-.", color=colour, linewidth=1, alpha=0.7)
        axis.set_ylim(0, 1.1 * max(_peaks(summary.of(stage))) / 1e9)
        axis.set_ylabel("GB a rank")

    marks: Marks = []
    if any(row.planned for row in summary.rows):
        marks = [
            ("measured", {"color": INK, "marker": "o"}),
            ("planned", {"color": INK, "linewidth": 1, "linestyle": "-.", "marker": "x"}),
        ]
    return _panels(summary, panel, marks)


def _peaks(rows: list[Row]) -> list[int]:
    return [max(row.memory_bytes) for row in rows] + [row.planned["peak_bytes"] for row in rows if row.planned]


def quality(summary: Summary) -> Any:
    def panel(axis: Any, stage: str) -> None:
        metric = ""
        for series, colour, line in _lines(summary, stage):
            judged = [row for row in line if row.quality]
            metric = metric or judged[0].quality["metric"]
            values = [row.quality["value"] for row in judged]
            axis.plot([_x(summary, row) for row in judged], values, "o-", color=colour, label=series)
        axis.set_ylabel(f"validation {metric}")

    return _panels(summary, panel, stages=summary.stages[-1:])


def _bars(
    summary: Summary,
    parts: tuple[str, ...],
    value: Callable[[Row, str], float],
    label: str,
    *,
    unit: str | None = None,
) -> Any:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    series = summary.series
    most = max(len(summary.of(stage)) for stage in summary.stages)
    figure, axes = axes_of((1.6 + 4.2 * len(summary.stages), 0.9 + 0.34 * most), 1, len(summary.stages))
    for axis, stage in zip(axes, summary.stages, strict=True):
        rows = summary.of(stage)
        left = [0.0] * len(rows)
        for part, colour in zip(parts, GROUPS, strict=False):
            widths = [value(row, part) for row in rows]
            axis.barh(range(len(rows)), widths, 0.68, left, color=colour, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        names = [_named(summary, row, alone=len(series) == 1) for row in rows]
        axis.set_yticks(range(len(rows)), names)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(label)
        if unit is not None:
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.xaxis.set_major_formatter(EngFormatter(unit))
        axis.set_title(f"stage {stage}")
    _legend(figure, axes[0].get_legend_handles_labels())
    return figure


def _named(summary: Summary, row: Row, *, alone: bool) -> str:
    what = f"batch {row.batch}" if summary.study.kind == "batch" else f"{row.settings.world} proc."
    return what if alone else f"{row.series}: {what}"


def _panels(
    summary: Summary,
    panel: Callable[[Any, str], None],
    marks: Marks | None = None,
    stages: list[str] | None = None,
) -> Any:
    from matplotlib.lines import Line2D

    shown = stages or summary.stages
    figure, axes = axes_of((0.8 + 4.2 * len(shown), 3.6), 1, len(shown))
    for axis, stage in zip(axes, shown, strict=True):
        panel(axis, stage)
        axis.spines["left"].set_visible(True)
        at = sorted({_x(summary, row) for row in summary.of(stage)})
        axis.set_xscale("log", base=2)
        axis.set_xticks(at, [str(x) for x in at])
        axis.minorticks_off()
        axis.set_xlabel("rows of the global batch" if summary.study.kind == "batch" else "processes")
        axis.set_title(f"stage {stage}")
    handles, labels = axes[0].get_legend_handles_labels()
    if len(labels) == 1:
        handles, labels = [], []
    for name, style in marks or ():
        handles.append(Line2D([], [], **style))
        labels.append(name)
    _legend(figure, (handles, labels))
    return figure


def _legend(figure: Any, found: tuple[list[Any], list[str]]) -> None:
    if found[1]:
        figure.legend(*found, loc="outside lower center", ncols=min(4, len(found[1])), frameon=False, fontsize=8.5)


def _lines(summary: Summary, stage: str) -> list[tuple[str, str, list[Row]]]:
    """Name, colour and rows of each series, from left to right."""
    return [
        (series, GROUPS[n % len(GROUPS)], line)
        for n, series in enumerate(summary.series)
        if (line := summary.of(stage, series))
    ]


def _x(summary: Summary, row: Row) -> int:
    return row.batch if summary.study.kind == "batch" else row.settings.world
