"""Draws a curve as PNG: useful training against the checkpoint interval."""

from __future__ import annotations

import io
from typing import Any

from ccr_dist.simulate.advise import shown
from ccr_dist.simulate.curve import Curve
from ccr_dist.simulate.outcome import STATES

INK, MUTED, GRID = "#1d2127", "#6b7280", "#e2e4e8"
COLOURS = ("#178a60", "#c02f52", "#3b66b8", "#d4660b", "#8b4fc0", "#8a6136")  # of STATES
_STYLE: dict[str, Any] = {
    "font.size": 9.5, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.titlesize": 10,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID, "xtick.color": MUTED, "ytick.color": INK,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def draw(curve: Curve, title: str) -> bytes:
    """The plot as PNG: above, ratios with the optima; below, where the time goes.

    Args:
        curve: The curve.
        title: Its title.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    points = curve.points
    at = [point.outcome.interval for point in points]
    style: Any = _STYLE
    with rc_context(style):
        figure = Figure(figsize=(7.6, 6.4), layout="constrained", dpi=160)
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True)
        found = [point.outcome.goodput for point in points]
        above.fill_between(
            at, [each.least for each in found], [each.most for each in found], color="#178a60", alpha=0.2
        )
        above.plot(at, [each.mean for each in found], "o-", color="#178a60", label="goodput, simulated; 5 % to 95 %")
        above.plot(at, [point.closed for point in points], "--", color=INK, label="ETTR, closed form")
        for place, (name, interval) in enumerate(curve.optima.items()):
            above.axvline(interval, color=COLOURS[place + 1], linewidth=1, label=f"{name}: {shown(interval)}")
        above.set_title(title)
        above.set_ylabel("part of the time")
        above.legend(fontsize=8)
        parts = [[point.outcome.seconds[state].mean() / point.outcome.length for point in points] for state in STATES]
        below.stackplot(at, *parts[1:], labels=STATES[1:], colors=COLOURS[1:], alpha=0.85)
        below.set_ylabel("time that is not useful training")
        below.set_xlabel("training between two checkpoints")
        below.legend(fontsize=8)
        below.set_xscale("log")
        below.set_xticks(at)
        below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
        below.xaxis.set_minor_formatter(NullFormatter())
        below.tick_params(axis="x", rotation=30)
        data = io.BytesIO()
        figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
