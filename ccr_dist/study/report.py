"""From the results of a study's runs to its report in OUT/report/.

    report.html                                  everything in one file
    table.md, rows.csv, rows.png                 the rows
    comparisons.md, comparisons.csv and .png     the comparisons
    study.json                                   the numbers of both
    parameters.png                               SumR against trained parameters, if a row trains some
    results.csv, results.json                    every metric of every row, as `ccr-dist report` writes them

What is missing is named, never filled in.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.evaluate.summaries import Stat, aggregate
from ccr_dist.evaluate.tables import cell, to_csv, to_json
from ccr_dist.study import plots
from ccr_dist.study.compare import ALL, LEVEL
from ccr_dist.study.page import page
from ccr_dist.study.summary import JUDGED, StudySummary, interval, languages_shown, magnitude


def write(summary: StudySummary, out: Path) -> Path:
    """Writes all files of the report.

    Returns:
        The path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, figures = aggregate(summary.results), plots.draw(summary)
    for name, png in figures.items():
        replace_atomic(out / f"{name}.png", png)
    texts = {
        "results.json": json.dumps(to_json(summary.results, rows), ensure_ascii=False, indent=1),
        "results.csv": to_csv(rows),
        "study.json": json.dumps(as_json(summary), ensure_ascii=False, indent=1),
        "rows.csv": _csv(row_records(summary)),
        "comparisons.csv": _csv(comparison_records(summary)),
        "table.md": table_markdown(summary),
        "comparisons.md": comparisons_markdown(summary),
        "report.html": page(summary, rows, figures),
    }
    for name, text in texts.items():
        replace_atomic(out / name, text.encode())
    return out / "report.html"


def as_json(summary: StudySummary) -> dict[str, Any]:
    """The content of study.json."""
    study = summary.plan.study
    about = {"format": 1, "name": study.name, "title": study.title, "missing": summary.missing}
    return {**about, "rows": row_records(summary), "comparisons": comparison_records(summary)}


def row_records(summary: StudySummary) -> list[dict[str, Any]]:
    """One record a row: `SumR.LANG`, with `_sd`, `_low` and `_high`; "all" is the mean over the
    target languages that all rows have."""
    found = []
    for line in summary.lines:
        record: dict[str, Any] = {"name": line.row.name, "label": line.label, "group": line.row.group}
        record |= {"seeds": len(line.runs), "trained_parameters": line.parameters}
        record |= {f"texts_{key}": number for key, number in line.texts.items()}
        for lang, stat in line.stats.items():
            about = line.estimates[lang]
            key = f"SumR.{lang}"
            record |= {key: stat.mean, f"{key}_sd": stat.sd, f"{key}_low": about.low, f"{key}_high": about.high}
        found.append(record)
    return found


def comparison_records(summary: StudySummary) -> list[dict[str, Any]]:
    """One record a comparison, with its differences by language."""
    found = []
    for each in summary.judged:
        record = {
            **each.comparison.model_dump(),
            "verdict": each.verdict,
            "seeds_a": each.seeds[0],
            "seeds_b": each.seeds[1],
        }
        for lang, difference in each.by_language.items():
            record |= {f"{lang}.{key}": value for key, value in asdict(difference).items()}
        found.append(record)
    return found


def table_markdown(summary: StudySummary) -> str:
    """The rows as a Markdown table."""
    shown = languages_shown(summary)
    heads = ["method", "seeds", "trained", *(f"SumR {lang}" for lang in shown), "mean SumR", "interval"]
    heads += ["test concepts in texts"] if summary.with_texts else []
    text = [summary.explained, "", markdown_row(heads), markdown_row(["---"] * 3 + ["---:"] * (len(heads) - 3))]
    for group, lines in summary.groups.items():
        if len(summary.groups) > 1:
            text.append(markdown_row([f"**{group}**", *[""] * (len(heads) - 1)]))
        for line in lines:
            cells = [line.label, str(len(line.runs)), magnitude(line.parameters)]
            cells += [spread(line.stats[lang]) if lang in line.stats else "–" for lang in shown]
            cells += [spread(line.stats[ALL]), interval(line.estimates[ALL], signed=False)]
            text.append(markdown_row([*cells, *([line.texts_said] if summary.with_texts else [])]))
    return "\n".join(text) + "\n"


def comparisons_markdown(summary: StudySummary) -> str:
    """The comparisons as a Markdown table."""
    heads = ["claim", "verdict", "difference", f"{LEVEL:.0f} % interval", *summary.targets]
    text = [JUDGED, "", markdown_row(heads), markdown_row(["---"] * 2 + ["---:"] * (len(heads) - 2))]
    for each in summary.judged:
        by = [f"{each.by_language[lang].mean:+.1f}" if lang in each.by_language else "–" for lang in summary.targets]
        text.append(
            markdown_row(
                [each.comparison.claim, each.verdict, f"{each.difference.mean:+.1f}", interval(each.difference), *by]
            )
        )
    return "\n".join(text) + "\n"


def spread(stat: Stat) -> str:
    """Mean ± standard deviation."""
    return f"{stat.mean:.1f}" + (f" ±{stat.sd:.1f}" if stat.sd is not None else "")


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(key for record in records for key in record))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, names))
    writer.writerows([cell(record.get(name)) for name in names] for record in records)
    return text.getvalue()
