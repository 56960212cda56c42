"""Makes the page of a study: one HTML file in the style of `evaluate/report.html`, with the plots inside. Text from
data is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from ccr_dist.evaluate.page import NAMES, details, footer, header, recall_table
from ccr_dist.evaluate.schema import unrecorded
from ccr_dist.evaluate.summaries import ResultRow, Stat
from ccr_dist.study.compare import ALL
from ccr_dist.study.plots import VERDICTS
from ccr_dist.study.summary import JUDGED, StudySummary, interval, languages_shown, magnitude, sentence

CAPTIONS = {
    "comparisons": "Differences with their 95 % intervals",
    "rows": "SumR by row, with 95 % intervals",
    "parameters": "SumR against trained parameters",
}


def page(summary: StudySummary, rows: Sequence[ResultRow], figures: Mapping[str, bytes]) -> str:
    """The HTML page of a study.

    Args:
        summary: The study's results.
        rows: Results by row, for the table of recalls.
        figures: PNG of each plot by name (`plots.draw`).
    """
    study = summary.plan.study
    notes = list(study.notes)
    if summary.missing:
        notes.append(f"Incomplete: {len(summary.missing)} runs have no result yet: {', '.join(summary.missing)}.")
    notes += [f"Not counted: {name}, {why}." for name, why in summary.outdated.items()]
    if note := unrecorded(summary.results.runs):
        notes.append(note)
    if summary.unjudged:
        notes.append(f"Not judged, for want of results: {'; '.join(summary.unjudged)}.")
    body = []
    if summary.judged:
        body += [
            "<h2>What was claimed, and what shows</h2>",
            _claims(summary),
            f"<p><small>{JUDGED}</small></p>",
            picture(figures["comparisons"], CAPTIONS["comparisons"]),
        ]
    body += [
        "<h2>Rows</h2>",
        _table(summary),
        f"<p><small>{summary.explained}</small></p>",
        *(picture(figures[name], CAPTIONS[name]) for name in ("rows", "parameters") if name in figures),
    ]
    body.append(details("Recalls by language", recall_table(rows)))
    template = Template(files("ccr_dist.evaluate").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(study.title),
        header=header(summary.results, rows, notes),
        body="\n".join(body),
        footer=footer(summary.results),
    )


def _claims(summary: StudySummary) -> str:
    lines = []
    for each in summary.judged:
        colour, verdict = VERDICTS[each.verdict], escape(each.verdict)
        lines.append(
            f"<tr><td>{escape(each.comparison.claim)}</td><td><b style='color:{colour}'>{verdict}</b></td>"
            f"<td>{escape(sentence(each, summary.label).partition(': ')[2])}</td></tr>"
        )
    head = "<tr><th>Claim</th><th>Verdict</th><th></th></tr>"
    return f"<div class=scroll><table class=plain><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table></div>"


def _table(summary: StudySummary) -> str:
    shown = languages_shown(summary)
    names = "".join(
        f"<th>{escape(NAMES.get(lang, lang))}{' (ceiling)' if lang == summary.source else ''}</th>" for lang in shown
    )
    head = f"<tr><th>Method</th><th>Seeds</th><th>Trained</th>{names}<th>Mean SumR</th><th>Interval</th>"
    head += "<th>Test concepts in texts</th></tr>" if summary.with_texts else "</tr>"
    columns = 5 + len(shown) + summary.with_texts
    body = []
    for group, lines in summary.groups.items():
        body.append(f"<tbody><tr><th colspan={columns}><span>{escape(group)}</span></th></tr>")
        for line in lines:
            cells = "".join(_cell(line.stats.get(lang)) for lang in shown) + _cell(line.stats[ALL])
            about = (
                f"<td class=first>{escape(line.label)}</td><td>{len(line.runs)}</td>"
                f"<td>{magnitude(line.parameters)}</td>"
            )
            texts = f"<td>{escape(line.texts_said)}</td>" if summary.with_texts else ""
            body.append(f"<tr>{about}{cells}<td>{interval(line.estimates[ALL], signed=False)}</td>{texts}</tr>")
        body.append("</tbody>")
    return f"<div class=scroll><table><thead>{head}</thead>{''.join(body)}</table></div>"


def _cell(stat: Stat | None) -> str:
    if stat is None:
        return "<td>–</td>"
    return f"<td>{stat.mean:.1f}" + (f"<small>±{stat.sd:.1f}</small>" if stat.sd is not None else "") + "</td>"


def picture(png: bytes, caption: str) -> str:
    """A plot inside a page, on white."""
    data, caption = base64.b64encode(png).decode(), escape(caption)
    return (
        f"<figure style='background:#fff;margin:.9rem 0'><figcaption style='color:#5c6470'>{caption}</figcaption><img"
        f" src='data:image/png;base64,{data}' alt='{caption}'"
        " style='max-width:100%;height:auto;display:block;margin:auto'></figure>"
    )
