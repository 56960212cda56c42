"""Plots as inline SVG. Colours are CSS variables of the page (`--s0` ...), so that they follow its light or dark
scheme, and text stays text.

Each plot shows one thing. The page arranges them in a grid, and has their titles and the legend.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.json_lines import has_types, read_lines
from ccr_dist.errors import DataError, let_pass
from ccr_dist.evaluate.summaries import ResultRow

SERIES = 8
MARKERS = "osD^vPX*"
SIZE = (3.3, 2.3)  # inches at 72 points: readable from 300 pixels of width
_INK, _GRID, _CEILING = "#010203", "#010204", "#010205"
_SERIES = [f"#0203{i:02x}" for i in range(SERIES)]
_VARIABLES = {_INK: "--muted", _GRID: "--line", _CEILING: "--text"} | {
    colour: f"--s{i}" for i, colour in enumerate(_SERIES)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
}


def bars(rows: Sequence[ResultRow], ceiling: ResultRow | None, way: str, colour: Mapping[str, int], top: float) -> str:
    """R@1, R@5 and R@10 of one direction: a bar per row, a dot per seed, whiskers for the interval, and dashes for the
    ceiling.

    Args:
        rows: of one language.
        ceiling: row of the source language, or None.
        way: t2v or v2t.
        colour: label -> its number.
        top: upper end of the axis, in percent.

    Returns:
        An `svg` element, as the other plots.
    """

    def draw(axes: Any) -> None:
        width = 0.82 / len(rows)
        for n, row in enumerate(rows):
            for at, k in enumerate((1, 5, 10)):
                name, x = f"{way}_R{k}", at + (n - (len(rows) - 1) / 2) * width
                stat, shade = row.metrics[name], _SERIES[colour[row.label] % SERIES]
                axes.bar(x, stat.mean, width * 0.88, color=shade, linewidth=0)
                if name in row.ci:
                    low, high = row.ci[name]
                    axes.vlines(x, low, high, color=_INK, linewidth=0.9)
                if len(stat.values) > 1:
                    axes.plot([x] * len(stat.values), stat.values, ".", color=_CEILING, markersize=2.6)
        level = {} if ceiling is None else ceiling.metrics
        for at, k in enumerate((1, 5, 10) if level else ()):
            axes.hlines(
                level[f"{way}_R{k}"].mean,
                at - 0.45,
                at + 0.45,
                color=_CEILING,
                linewidth=1,
                linestyle=(0, (3, 2)),
            )
        axes.set_xticks(range(3), ["R@1", "R@5", "R@10"])
        axes.set_ylim(0, top)

    return _svg(draw, "recall bars")


def curve(rows: Sequence[ResultRow], ceiling: ResultRow | None, way: str, colour: Mapping[str, int]) -> str:
    """Recall at k, for k from 1 to 100; a line per row. Arguments as for `bars`."""

    def draw(axes: Any) -> None:
        for row in rows:
            n = colour[row.label] % SERIES
            axes.plot(row.curve["k"], row.curve[way], color=_SERIES[n], marker=MARKERS[n], markersize=3)
        if ceiling:
            axes.plot(ceiling.curve["k"], ceiling.curve[way], color=_CEILING, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("k")

    return _svg(draw, "recall at k")


def training(logs: Mapping[str, Sequence[str | Path]], colour: Mapping[str, int], metric: str | None) -> str | None:
    """A line per training log.

    Args:
        logs: label -> log files of its runs.
        colour: label -> its number.
        metric: of validation; None: the training loss, with a gap between stages.

    Returns:
        An `svg` element; None if no log has these values.

    Raises:
        DataError: a log cannot be read.
    """
    lines = [(label, _read(Path(path), metric)) for label, paths in logs.items() for path in paths]
    if not any(line for _, line in lines):
        return None

    def draw(axes: Any) -> None:
        for label, points in lines:
            n = colour[label] % SERIES
            mark = {"marker": MARKERS[n], "markersize": 3} if metric else {"linewidth": 1.1}
            axes.plot([p[0] for p in points], [p[1] for p in points], color=_SERIES[n], **mark)
        axes.set_xlabel("step")

    return _svg(draw, metric or "training loss")


def _read(path: Path, metric: str | None) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    stage = None
    numbers: dict[str, Any] = dict.fromkeys(("step", "loss", metric or "loss"), int | float)
    try:
        found = read_lines(path, lambda line: has_types(line, numbers))
    except OSError as error:
        let_pass(error, path)
        raise DataError(
            f"{path}: the training log cannot be read ({error.strerror}); leave it out of the report's curves"
        ) from None
    for line in found.require(path, "take the line out, and its step is missing in the curve"):
        if metric is None and "event" not in line and "loss" in line:
            if points and stage != line.get("stage"):
                points.append((line["step"], float("nan")))
            stage = line.get("stage")
            points.append((line["step"], line["loss"]))
        elif metric is not None and line.get("event") == "validation" and metric in line:
            points.append((line["step"], line[metric]))
    return points


def _svg(draw: Any, label: str) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    style: Any = {**_STYLE, "svg.hashsalt": label}
    with rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{label}"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
