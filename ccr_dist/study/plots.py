"""Draws the three plots of a study as PNG: differences with intervals, SumR by row, SumR against trained parameters. On
white, for any page.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ccr_dist.evaluate.page import NAMES
from ccr_dist.study.compare import ALL, Judged
from ccr_dist.study.summary import Line, StudySummary, magnitude

INK, MUTED, GRID = "#1d2127", "#6b7280", "#e2e4e8"
VERDICTS = {"shown": "#178a60", "not shown": "#6b7280", "contradicted": "#c02f52"}
GROUPS = ("#3b66b8", "#d4660b", "#178a60", "#8b4fc0", "#c02f52", "#138a9f", "#8a6136", "#6b7280")
DPI = 160
_STYLE: dict[str, Any] = {
    "font.size": 9.5, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID, "xtick.color": MUTED, "ytick.color": INK, "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def draw(summary: StudySummary) -> dict[str, bytes]:
    """All plots as PNG by name: `comparisons` if there are some, `rows`, and `parameters` if a row trains something."""
    wanted = {"comparisons": (comparisons, bool(summary.judged)), "rows": (rows, True),
              "parameters": (parameters, any(line.parameters for line in summary.lines))}  # fmt: skip
    return {name: png(partial(made, summary)) for name, (made, there) in wanted.items() if there}


def comparisons(summary: StudySummary) -> Any:
    """Forest plot with one panel per group; squares are means over languages, thin ticks single languages."""
    panels: dict[str, list[Judged]] = {}
    for each in summary.judged:
        panels.setdefault(each.comparison.group, []).append(each)
    figure, axes = _stacked([len(judged) for judged in panels.values()], width=9.5, extra=0.62)
    for axis, (group, judged) in zip(axes, panels.items(), strict=True):
        for at, each in enumerate(judged):
            found, colour = each.difference, VERDICTS[each.verdict]
            axis.hlines(at, found.low, found.high, color=colour, linewidth=2)
            axis.plot(found.mean, at, "s", color=colour, markersize=6)
            single = [difference.mean for lang, difference in each.by_language.items() if lang != ALL]
            axis.plot(single, [at] * len(single), "|", color=INK, markersize=8, markeredgewidth=1, alpha=0.65)
            said = f"{found.mean:+.1f}  [{found.low:+.1f}, {found.high:+.1f}]  {each.verdict}".replace("-", "−")
            axis.annotate(
                said,
                (1.02, at),
                xycoords=("axes fraction", "data"),
                va="center",
                color=colour,
                fontsize=8.5,
                annotation_clip=False,
            )
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_yticks(range(len(judged)), [each.comparison.claim for each in judged])
        axis.set_ylim(len(judged) - 0.5, -0.5)
        axis.margins(x=0.08)
        axis.grid(axis="y", visible=False)
        axis.set_title(group)
    axes[-1].set_xlabel(
        "difference of SumR, mean over languages and seeds; line: 95 % interval; thin ticks: single languages"
    )
    return figure


def rows(summary: StudySummary) -> Any:
    """SumR of every row, with a panel for the mean over the target languages that all rows have and one for each."""
    shown = [ALL, *summary.common] if len(summary.common) > 1 else list(summary.common)
    order, heads = _grouped(summary)
    height = 0.25 * (len(order) + len(heads)) + 0.9
    figure, axes = axes_of((2.9 + 2.35 * len(shown), height), 1, len(shown), sharey=True)
    for axis, lang in zip(axes, shown, strict=True):
        for at, line, colour in order:
            if lang in line.estimates:
                found = line.estimates[lang]
                axis.barh(at, found.mean, height=0.68, color=colour, alpha=0.85)
                axis.hlines(at, found.low, found.high, color=INK, linewidth=1.1)
                axis.annotate(
                    f"{found.mean:.0f}",
                    (found.high, at),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                    color=MUTED,
                )
        axis.set_title("mean over languages" if lang == ALL else NAMES.get(lang, lang))
        axis.set_xlim(0, 1.13 * max(line.estimates[lang].high for line in summary.lines if lang in line.estimates))
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("SumR")
    axes[0].set_yticks([at for at, _, _ in order], [line.label for _, line, _ in order])
    axes[0].set_ylim(max(at for at, _, _ in order) + 0.6, -0.6)
    for at, group in heads:
        axes[0].annotate(
            group, (0, at), xycoords=("axes fraction", "data"), xytext=(-6, 0), textcoords="offset points",
            ha="right", va="center",
            weight="bold", annotation_clip=False,
        )  # fmt: skip
    return figure


def parameters(summary: StudySummary) -> Any:
    """Mean SumR against trained parameters, as numbered points with a legend beside the axes.

    Rows that train nothing are horizontal lines, or named below if they lie outside the axes.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    order, heads = _grouped(summary)
    trained = [(line, colour) for _, line, colour in order if line.parameters]
    figure, (axis,) = axes_of((7.4, max(4.2, 0.19 * (len(order) + len(heads)))), 1, 1)
    low = min(line.estimates[ALL].low for line, _ in trained)
    high = max(line.estimates[ALL].high for line, _ in trained)
    room = 0.15 * (high - low)
    beyond = []
    for _, line, _ in order:
        value = line.estimates[ALL].mean
        if line.parameters:
            continue
        if low - room < value < high + room:
            axis.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axis.annotate(
                line.label,
                (0.01, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color=MUTED,
                fontsize=8,
            )
        else:
            beyond.append(f"{line.label} {value:.0f}")
    for number, (place, (line, colour)) in enumerate(
        zip(_apart([line.parameters for line, _ in trained]), trained, strict=True), 1
    ):
        found = line.estimates[ALL]
        axis.vlines(place, found.low, found.high, color=colour, linewidth=1.1, alpha=0.6)
        axis.plot(place, found.mean, "o", color=colour, markersize=11)
        axis.annotate(
            str(number),
            (place, found.mean),
            ha="center",
            va="center_baseline",
            color="white",
            fontsize=6.5,
            weight="bold",
        )
    numbers = {line.label: number for number, (line, _) in enumerate(trained, 1)}
    step, shown = 1 / (len(order) + len(heads)), [(at, group, INK, "bold") for at, group in heads]
    shown += [
        (at, f"{numbers[line.label]}  {line.label}" if line.parameters else f"–  {line.label}", colour, "normal")
        for at, line, colour in order
    ]
    for at, text, colour, weight in shown:
        indent = 0.02 if weight == "normal" else 0
        where = (1.03 + indent, 1 - (at + 0.5) * step)
        axis.annotate(
            text,
            where,
            xycoords="axes fraction",
            va="center",
            color=colour,
            weight=weight,
            fontsize=8.5,
            annotation_clip=False,
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: magnitude(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.spines["left"].set_visible(True)
    axis.margins(x=0.07)
    axis.set_ylim(low - room, high + room)
    axis.set_xlabel(
        "trained parameters, without the embedding table"
        + (f"\nbeyond the axis, nothing trained: {', '.join(beyond)}" if beyond else "")
    )
    axis.set_ylabel("SumR, mean over languages")
    return figure


def _apart(values: Sequence[float]) -> list[float]:
    """Positions on a log axis; points that would overlap are placed side by side around their mean."""
    logs = np.log10(values)
    order, width = np.argsort(logs, kind="stable"), max(0.03 * float(np.ptp(logs)), 0.02)
    blocks: list[list[int]] = []
    for n in order:
        blocks.append([n])
        while len(blocks) > 1 and _middle(logs, blocks[-2]) + width * (len(blocks[-2]) + len(blocks[-1])) / 2 > _middle(
            logs, blocks[-1]
        ):
            last = blocks.pop()
            blocks[-1] += last
    for block in blocks:
        logs[block] = _middle(logs, block) + width * (np.arange(len(block)) - (len(block) - 1) / 2)
    return list(10**logs)


def _middle(logs: np.ndarray, block: Sequence[int]) -> float:
    return float(logs[list(block)].mean())


def _grouped(summary: StudySummary) -> tuple[list[tuple[int, Line, str]], list[tuple[int, str]]]:
    """(position, row, colour) from the top down, and (position, group) of the headings between them."""
    order: list[tuple[int, Line, str]] = []
    heads: list[tuple[int, str]] = []
    groups, at = summary.groups, 0
    for group, lines in groups.items():
        if len(groups) > 1:
            heads.append((at, group))
            at += 1
        for line in lines:
            order.append((at, line, _colour(list(groups), line)))
            at += 1
    return order, heads


def _colour(groups: Sequence[str], line: Line) -> str:
    return GROUPS[groups.index(line.row.group) % len(GROUPS)]


def _stacked(counts: Sequence[int], *, width: float, extra: float) -> tuple[Any, list[Any]]:
    """Panels below each other, each as high as its rows need."""
    heights = [0.3 * n + extra for n in counts]
    return axes_of((width, sum(heights) + 0.3), len(counts), 1, gridspec_kw={"height_ratios": heights})


def axes_of(size: tuple[float, float], down: int, across: int, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of a size in inches, and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(down, across, squeeze=False, **options).flat)


def png(make: Callable[[], Any]) -> bytes:
    """The figure that `make` draws, in the style of all plots of studies."""
    from matplotlib import rc_context

    data = io.BytesIO()
    style: Any = _STYLE
    with rc_context(style):
        make().savefig(data, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return data.getvalue()
