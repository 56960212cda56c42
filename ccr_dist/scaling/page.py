"""Makes the page of a scaling report: one HTML file in the style of `evaluate/report.html`, with the plots inside. Text
from data is escaped.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from ccr_dist.evaluate.page import details
from ccr_dist.scaling.plots import CAPTIONS
from ccr_dist.scaling.summary import Summary
from ccr_dist.scaling.tables import Table, environment_notes, fit_sentence, tables
from ccr_dist.study.page import picture


def page(summary: Summary, figures: Mapping[str, bytes]) -> str:
    """The HTML page of a study.

    Args:
        summary: Its results.
        figures: PNG of each plot by name (`plots.draw`).
    """
    study = summary.study
    shown = {"Speed": ("rate", "efficiency"), "Where a step's time goes": ("split",)}
    shown |= {"Memory and communication of a rank": ("memory", "traffic"), "Quality and batch": ("quality",)}
    body = []
    for table in tables(summary):
        body += [f"<h2>{escape(table.title)}</h2>", _table(table)]
        body += [f"<p><small>{escape(table.note)}</small></p>"] if table.note else []
        if table.title == "Speed" and summary.fits:
            said = [fit_sentence(series, stage, found) for (series, stage), found in summary.fits.items()]
            body.append(f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in said)}</ul>")
        body += [picture(figures[name], CAPTIONS[name]) for name in shown.get(table.title, ()) if name in figures]
    body.append(details("Commands of all trainings", _commands(summary)))
    template = Template(files("ccr_dist.evaluate").joinpath("report.html").read_text(encoding="utf-8"))
    notes = "".join(f"<p>{escape(note)}</p>" for note in study.notes)
    facts = "".join(f"<li>{escape(note)}</li>" for note in environment_notes(summary))
    return template.substitute(
        title=escape(study.title), header=f"{notes}<ul>{facts}</ul>", body="\n".join(body), footer=""
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.heads)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in table.rows)
    look = " class=plain" if table.title == "Failed" else ""
    return f"<div class=scroll><table{look}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _commands(summary: Summary) -> str:
    head = "<tr><th>training</th><th>exit code</th><th>command</th></tr>"
    rows = "".join(
        f"<tr><td>{escape(record.point)}.r{record.repeat}</td><td>{record.exit}</td>"
        f"<td><code>{escape(shlex.join(record.command))}</code></td></tr>"
        for record in summary.records
    )
    return f"<div class=scroll><table class=plain><thead>{head}</thead><tbody>{rows}</tbody></table></div>"
