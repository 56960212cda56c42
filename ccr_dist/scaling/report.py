"""From the records of a study to its report in OUT/report/.

    report.html    everything in one file
    report.md      the tables, for a page or an issue
    report.json    every number, with commands, commits, versions and hardware
    *.png          the plots

What failed or is missing is named, never filled in.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.scaling import plots
from ccr_dist.scaling.page import page
from ccr_dist.scaling.plan import FORMAT
from ccr_dist.scaling.record import Record
from ccr_dist.scaling.summary import Summary
from ccr_dist.scaling.tables import Table, environment_notes, fit_sentence, tables
from ccr_dist.study.report import markdown_row


def write(summary: Summary, out: Path) -> Path:
    """Write all files of the report.

    Returns:
        The path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = plots.draw(summary)
    for name, png in figures.items():
        replace_atomic(out / f"{name}.png", png)
    texts = {
        "report.json": json.dumps(as_json(summary), ensure_ascii=False, indent=1),
        "report.md": markdown(summary, figures),
        "report.html": page(summary, figures),
    }
    for name, text in texts.items():
        replace_atomic(out / name, text.encode())
    return out / "report.html"


def as_json(summary: Summary) -> dict[str, Any]:
    """The content of report.json."""
    return {
        "format": FORMAT,
        "study": summary.study.model_dump(mode="json"),
        "rows": [row.to_json() for row in summary.rows],
        "serial_fractions": [
            {"series": series, "stage": stage, **asdict(found)} for (series, stage), found in summary.fits.items()
        ],
        "failed": [_trial(record) | {"error": record.error} for record in summary.failed],
        "missing": summary.missing,
        "unplanned": summary.curve.unplanned,
        "planner": {
            "given": summary.curve.given and asdict(summary.curve.given),
            "speeds": [{"processes": s.processes, "cores": s.cores, **s.machine} for s in summary.curve.speeds],
        },
        "trainings": [
            _trial(record) | {"environment": record.found.get("environment")} for record in summary.records
        ],
    }  # fmt: skip


def _trial(record: Record) -> dict[str, Any]:
    keys = ("point", "repeat", "command", "exit", "seconds")
    return {key: getattr(record, key) for key in keys}


def markdown(summary: Summary, figures: Iterable[str]) -> str:
    """The tables and plots as Markdown."""
    study = summary.study
    text = [f"# {study.title}", ""]
    for note in study.notes:
        text += [note, ""]
    for note in environment_notes(summary):
        text += [f"- {note}"]
    text.append("")
    for each in tables(summary):
        text += [f"## {each.title}", "", *_table(each), ""]
        text += [each.note, ""] if each.note else []
    text += [f"- {fit_sentence(series, stage, found)}" for (series, stage), found in summary.fits.items()]
    text += ["", *(f"![{plots.CAPTIONS[name]}]({name}.png)\n" for name in figures)]
    text += ["## Commands", "", "```bash", *_commands(summary), "```", ""]
    return "\n".join(text)


def _table(table: Table) -> list[str]:
    return [
        markdown_row(table.heads),
        markdown_row(["---"] + ["---:"] * (len(table.heads) - 1)),
        *(markdown_row(cells) for cells in table.rows),
    ]


def _commands(summary: Summary) -> list[str]:
    """One training of each point."""
    first: dict[str, Record] = {}
    for record in summary.records:
        first.setdefault(record.point, record)
    return [shlex.join(record.command) for record in first.values()]
