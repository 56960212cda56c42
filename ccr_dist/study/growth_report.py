"""Writes what `growth.py` found: OUT/growth.md, .csv (the points), .json (everything) and .png."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.evaluate.tables import cell
from ccr_dist.study.compare import LEVEL, Estimate
from ccr_dist.study.growth import Curve, Difference, Fit, Grown
from ccr_dist.study.plots import GROUPS, MUTED, axes_of, png
from ccr_dist.study.summary import interval, magnitude

EXPLAINED = (
    "SumR, mean over languages and seeds. Lines: SumR = a + slope · log10(x) through a curve's points, by least squares"
    f" with equal weights; misfit: the largest distance of a point from its line. Intervals: {LEVEL:.0f} %, everything"
    " computed again in each bootstrap replicate, which draws test items and seeds; a point of one seed counts as free"
    " of chance in training, and two or three seeds hardly show how large it is. Two points give a line, and no"
    " evidence that there is one. Beyond the last point all is extrapolation: no line of SumR against a logarithm goes"
    " on for ever, since SumR ends at 600."
)
_FARTHEST = 1e9  # a crossing beyond is no number worth printing


def report(grown: Grown, out: Path) -> Path:
    """Writes all files.

    Returns:
        The path of growth.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "growth.md": markdown(grown),
        "growth.csv": _csv(grown),
        "growth.json": json.dumps(as_json(grown), ensure_ascii=False, indent=1),
    }
    for name, text in texts.items():
        replace_atomic(out / name, text.encode())
    replace_atomic(out / "growth.png", png(lambda: figure(grown)))
    return out / "growth.md"


def markdown(grown: Grown) -> str:
    """Points, fits and differences as Markdown tables."""
    lines = [f"{EXPLAINED} Here x is {grown.growth.x}."]
    for name, level in grown.levels.items():
        lines += ["", f"{grown.labels[name]}: {level.mean:.1f} ({interval(level, signed=False)})"]
    places = sorted({point.x for curve in grown.curves for point in curve.points})
    levels = list(grown.levels)
    heads = [
        *map(magnitude, places),
        "slope a tenfold",
        "misfit",
        *(f"reaches {grown.labels[name]}" for name in levels),
    ]
    lines += ["", _row([f"curve, SumR at {grown.growth.x}", *heads]), _row(["---", *["---:"] * len(heads)])]
    for curve in grown.curves:
        at = {point.x: point for point in curve.points}
        cells = [_point(at[x].value.mean, at[x].seeds) if x in at else "–" for x in places]
        lines.append(_row([curve.name, *cells, *_line(curve.fit), *(_reaches(curve, name) for name in levels)]))
    if grown.differences:
        heads = [*map(magnitude, places), "change a tenfold"]
        lines += ["", _row([f"difference, at {grown.growth.x}", *heads]), _row(["---", *["---:"] * len(heads)])]
        for each in grown.differences:
            found = {point.x: point.value.estimate() for point in each.points}
            cells = [
                f"{found[x].mean:+.1f} ({interval(found[x])})".replace("-", "−") if x in found else "–" for x in places
            ]
            lines.append(_row([f"{each.claim}: {each.a} − {each.b}", *cells, *_line(each.fit)[:1]]))
    if grown.missing:
        lines += ["", f"No result yet: {', '.join(grown.missing)}."]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(each.replace("|", r"\|") for each in cells) + " |"


def _point(mean: float, seeds: int) -> str:
    return f"{mean:.1f} ({seeds} seed{'s' if seeds > 1 else ''})"


def _line(fit: Fit | None) -> list[str]:
    """Slope with its interval, and misfit."""
    if fit is None:
        return ["–", "–"]
    slope = fit.slope.estimate()
    said = f"{slope.mean:+.1f} ({interval(slope)})".replace("-", "−")
    return [said, f"{fit.misfit:.1f}" if fit.points > 2 else "–"]


def _reaches(curve: Curve, name: str) -> str:
    if name not in curve.crossings:
        return "–"
    found = curve.crossings[name]
    mean, low, high = (place(x, least=min(1.0, curve.points[0].x)) for x in (found.mean, found.low, found.high))
    said = f"{mean} ({low} to {high})"
    return said if curve.inside(found.mean) or found.mean in (0, math.inf) else f"{said}, extrapolated"


def place(x: float, *, least: float = 1.0) -> str:
    """An x at which something is reached, as `crossing` finds it.

    Args:
        x: The place.
        least: What is smaller is no number worth printing.
    """
    if not math.isfinite(x):
        return "never"
    if x == 0:
        return "above from the start"
    if x > _FARTHEST:
        return f"beyond {magnitude(_FARTHEST)}"
    return magnitude(x) if x >= least else f"below {magnitude(least)}"


def as_json(grown: Grown) -> dict[str, Any]:
    """The content of growth.json. Of crossings null is never, and 0 a line that is above the row from the start."""
    curves = [
        {
            "name": curve.name,
            "points": _points(curve),
            "fit": _fit_record(curve.fit),
            "reaches": {name: _finite(found) for name, found in curve.crossings.items()},
        }
        for curve in grown.curves
    ]
    differences = [
        {"claim": each.claim, "a": each.a, "b": each.b, "points": _points(each), "fit": _fit_record(each.fit)}
        for each in grown.differences
    ]
    about = {"format": 1, "title": grown.title, "x": grown.growth.x, "missing": grown.missing}
    return {
        **about,
        "levels": {name: asdict(level) for name, level in grown.levels.items()},
        "curves": curves,
        "differences": differences,
    }


def _points(of: Curve | Difference) -> list[dict[str, Any]]:
    return [{"x": point.x, "seeds": point.seeds, **asdict(point.value.estimate())} for point in of.points]


def _fit_record(fit: Fit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {"slope": asdict(fit.slope.estimate()), "at_1": fit.at.mean, "misfit": fit.misfit, "points": fit.points}


def _finite(found: Estimate) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in asdict(found).items()}


def _csv(grown: Grown) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["curve", grown.growth.x, "seeds", "SumR", "low", "high", "fitted"])
    for curve in grown.curves:
        for point in curve.points:
            found = point.value.estimate()
            line = f"{curve.fit.value(point.x).mean:.3f}" if curve.fit else ""
            values = (f"{each:.3f}" for each in (found.mean, found.low, found.high))
            writer.writerow([*map(cell, (curve.name, f"{point.x:.15g}", point.seeds)), *values, line])
    return text.getvalue()


def figure(grown: Grown) -> Any:
    """Left: curves with their lines and the levels; right: differences, if any."""
    from matplotlib.ticker import NullLocator

    axes_figure, axes = axes_of((10.5 if grown.differences else 6.4, 4.6), 1, 2 if grown.differences else 1)
    colours = {curve.name: GROUPS[n % len(GROUPS)] for n, curve in enumerate(grown.curves)}
    for curve in grown.curves:
        _drawn(axes[0], curve.points, curve.fit, colours[curve.name], curve.name)
    for name, level in grown.levels.items():
        axes[0].axhline(level.mean, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes[0].annotate(
            grown.labels[name], (0.01, level.mean), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", color=MUTED, fontsize=8,
        )  # fmt: skip
    axes[0].set_ylabel("SumR, mean over languages")
    axes[0].set_title("SumR; line: log-linear fit")
    for n, each in enumerate(grown.differences):
        _drawn(axes[1], each.points, each.fit, GROUPS[n % len(GROUPS)], f"{each.claim}: {each.a} − {each.b}")
    if grown.differences:
        axes[1].axhline(0, color=MUTED, linewidth=1)
        axes[1].set_title(f"differences, with {LEVEL:.0f} % intervals")
    places = sorted({point.x for curve in grown.curves for point in curve.points})
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(places, [magnitude(x) for x in places])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(grown.growth.x)
        axis.spines["left"].set_visible(True)
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return axes_figure


def _drawn(axis: Any, points: Sequence[Any], fit: Fit | None, colour: str, label: str) -> None:
    found = [point.value.estimate() for point in points]
    x = [point.x for point in points]
    axis.plot(x, [each.mean for each in found], "o", color=colour, markersize=5, label=label)
    axis.vlines(x, [each.low for each in found], [each.high for each in found], color=colour, linewidth=1.2, alpha=0.6)
    if fit is not None:
        axis.plot((x[0], x[-1]), [fit.value(each).mean for each in (x[0], x[-1])], color=colour, linewidth=1.2)
