"""Rows of results for the terminal, as CSV and as JSON. The HTML page is in `page.py`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ccr_dist.evaluate.protocols import RECALL_NAMES
from ccr_dist.evaluate.summaries import ResultRow, Results, interval, merged_ceiling
from ccr_dist.terminal import visible

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # spreadsheets read a cell that begins so as a formula


def table(rows: Sequence[ResultRow], title: str | None = None) -> Table:
    """The rows as a table for the terminal, a section per language."""
    made = Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0)
    )
    made.caption = (
        "Percent, mean ±standard deviation over n seeds. t→i: text→image. CI: 95 % bootstrap over items. "
        "SumR-i: image→text counted by items. † source-language queries, the ceiling."
    )
    made.add_column("Method", min_width=15)
    for name in ("n", "t→i\nR@1", "R@5", "R@10", "i→t\nR@1", "R@5", "R@10", "SumR", "CI of\nSumR", "SumR-i"):
        made.add_column(name, justify="right", no_wrap=True)
    group: tuple[str, ...] = ()
    for label, row in merged_ceiling(rows):
        if group != (group := (row.dataset, row.split, row.language)):
            if made.row_count:
                made.add_section()
            made.add_row(Text(f"{row.language} · {row.dataset}/{row.split}", "bold"))
        made.add_row(
            Text(label + (" †" if row.ceiling else "")),
            str(len(row.seeds)),
            *(str(row.metrics[name]) for name in RECALL_NAMES),
            str(row.metrics["SumR"]),
            interval(row),
            str(row.item_level["SumR"]),
            style="italic" if row.ceiling else "",
        )
    return made


def to_json(results: Results, rows: Sequence[ResultRow]) -> dict[str, Any]:
    """results.json: the rows with the values of all seeds, and the runs without their numbers and examples."""
    runs = [run.model_dump(mode="json", exclude={"languages"}) for run in results.runs]
    return {"format": 1, "rows": [asdict(row) for row in rows], "runs": runs}


def to_csv(rows: Sequence[ResultRow]) -> str:
    """results.csv: one line per row.

    Returns:
        Columns are the metrics' means; with `_sd`, standard deviations (empty with one seed); with `item_` in front,
        the same with visual→text counted over items; with `_low` and `_high`, the ends of the intervals.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {
            name: getattr(row, name) for name in ("dataset", "split", "language", "label", "method", "ceiling")
        }
        line |= {"seeds": " ".join(map(str, row.seeds)), **row.counts}
        for prefix, metrics in (("", row.metrics), ("item_", row.item_level)):
            for name, stat in metrics.items():
                line |= {f"{prefix}{name}": stat.mean, f"{prefix}{name}_sd": stat.sd}
        for name, (low, high) in row.ci.items():
            line |= {f"{name}_low": low, f"{name}_high": high}
        lines.append(line)
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, names))
    writer.writerows([cell(line.get(name)) for name in names] for line in lines)
    return text.getvalue()


def cell(value: Any) -> Any:
    """A value of a CSV file that spreadsheets and terminals take for text, too: an apostrophe is put before what looks
    like a formula, and control characters are made visible. Numbers are unchanged.
    """
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.lstrip().startswith(FORMULA) else visible(value)
