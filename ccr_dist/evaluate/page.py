"""The HTML report: one file without references to others. Every text that comes from data is escaped; the look is in
`report.html`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from ccr_dist.data.media.pictures import open_picture
from ccr_dist.errors import DataError
from ccr_dist.evaluate import plots
from ccr_dist.evaluate.protocols import RECALL_NAMES
from ccr_dist.evaluate.schema import Example
from ccr_dist.evaluate.summaries import ResultRow, Results, Stat, interval, merged_ceiling

Images = Callable[[str], bytes | None]
THUMBNAIL = 128  # pixels
QUERIES = 4  # shown a language
NAMES = {
    "ca": "Catalan", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fr": "French",
    "gl": "Galician", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese",
    "pt-BR": "Brazilian Portuguese", "ru": "Russian",
    "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip
WAYS = {"t2v": "text → image", "v2t": "image → text"}


def page(
    results: Results,
    rows: Sequence[ResultRow],
    *,
    title: str,
    notes: Sequence[str],
    images: Images,
    curves: Mapping[str, Sequence[str | Path]],
) -> str:
    """The whole page.

    Args:
        results: the runs.
        rows: of the tables (`summaries.aggregate`).
        title: heading of the page.
        notes: paragraphs below it.
        images: item key -> bytes of its picture; None: the key is shown instead.
        curves: label -> training logs of its runs.

    Returns:
        HTML.

    Raises:
        DataError: a log cannot be read, a picture cannot be decoded, or curves have an unknown label.
    """
    if unknown := [label for label in curves if label not in results.labels]:
        raise DataError(f"curves of {', '.join(unknown)}: no such row; there are {', '.join(results.labels)}")
    colour = {label: n for n, label in enumerate(results.labels)}
    body = ["<h2>Recall</h2>", recall_table(rows)]
    body.append(
        "<p><small>Percent. Mean ± sample standard deviation over seeds; bold: best of its language. CI: 95 % bootstrap"
        " over items. Ties count against the method. SumR by items: the candidates of image → text are items, not"
        " captions (MLA, DASD).</small></p>"
    )
    body += [
        details("Reciprocal and median ranks, protocol by items", _more(rows)),
        "<h2>By language</h2>",
        _legend(rows, colour),
    ]
    body.append(
        "<p><small>Bars: mean over seeds. Dots: single seeds. Whiskers: 95 % bootstrap interval over items. Below them:"
        " share of queries whose right answer is among the first k.</small></p>"
    )
    for group in _groups(rows):
        if not group[0].ceiling or all(row.ceiling for row in rows):
            body.append(_panels(group, rows, colour))
    body += [_training(results, curves, colour), _examples(results, images, colour)]
    template = Template(files("ccr_dist.evaluate").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title), header=header(results, rows, notes), body="\n".join(body), footer=footer(results)
    )


def header(results: Results, rows: Sequence[ResultRow], notes: Sequence[str]) -> str:
    """Notes, and what was measured how: datasets, readings of the test set, selection, seeds."""
    facts: list[tuple[str, str]] = []
    for name in dict.fromkeys((row.dataset, row.split) for row in rows):
        runs = [run for run in results.runs if (run.dataset, run.split) == name]
        sizes = (
            f"{runs[0].items} items, {runs[0].groups} concepts"
            if runs[0].groups != runs[0].items
            else f"{runs[0].items} items"
        )
        facts.append(("Measured on", f"{name[0]}, {name[1]} split: {sizes}"))
        reads = [run.test_reads for run in runs]
        if None in reads:
            said = "not recorded by every run"
        elif len(set(reads)) == 1:
            said = f"{_times(reads[0])} by each of {len(runs)} runs"
        else:
            said = "; ".join(f"{_times(run.test_reads)} by {run.name}" for run in runs)
        facts.append((f"{name[1].capitalize()} set read", said))
    chosen: dict[str, list[str]] = {}
    for run in results.runs:
        chosen.setdefault(run.selection or "nothing to select", []).append(run.label)
    facts.append(
        ("Selection", "; ".join(f"{how} ({', '.join(dict.fromkeys(labels))})" for how, labels in chosen.items()))
    )
    facts.append(("Seeds", "; ".join(f"{label}: {_seeds(results, label)}" for label in results.labels)))
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        paragraphs
        + "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
        + "</dl>"
    )


def _times(n: int | None) -> str:
    return {1: "once", 2: "twice"}.get(n or 0, f"{n} times")


def _seeds(results: Results, label: str) -> str:
    return ", ".join(map(str, sorted({run.seed for run in results.runs if run.label == label})))


def _groups(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    found: dict[tuple[str, str, str], list[ResultRow]] = {}
    for row in rows:
        found.setdefault((row.dataset, row.split, row.language), []).append(row)
    return list(found.values())


def _title(row: ResultRow, *, alone: bool) -> str:
    """Language name, and the dataset where there are several."""
    name = NAMES.get(row.language, row.language)
    return escape(name if alone else f"{name}, {row.dataset} {row.split}")


def _one_dataset(rows: Sequence[ResultRow]) -> bool:
    return len({(row.dataset, row.split) for row in rows}) == 1


def _stat(stat: Stat, *, digits: int = 1, best: bool = False) -> str:
    spread = f"<small>±{stat.sd:.{digits}f}</small>" if stat.sd is not None else ""
    return f"<td{' class=best' if best else ''}>{stat.mean:.{digits}f}{spread}</td>"


def _bodies(
    rows: Sequence[ResultRow], columns: int, cells: Callable[[ResultRow, Sequence[ResultRow]], Iterable[str]]
) -> str:
    """One `tbody` per language, headed by its name.

    Args:
        rows: of all languages.
        columns: of the table.
        cells: of a row and all rows of its language -> the cells after the label and the number of seeds.
    """
    html = []
    for group in _groups(rows):
        # a row has fewer where some of its translated queries are blank
        asked = sorted({row.counts["captions"] for row in group})
        captions = (
            f"{asked[0]} captions"
            if len(asked) == 1
            else f"{asked[0]} to {asked[-1]} captions, not the same for all rows"
        )
        counts = f"{captions}, {group[0].counts['items']} items"
        heading = _title(group[0], alone=_one_dataset(rows)) + (" (ceiling)" if group[0].ceiling else "")
        html.append(f"<tbody><tr><th colspan={columns}><span>{heading}<small>{counts}</small></span></th></tr>")
        for label, row in merged_ceiling(group):
            kind = " class=ceiling" if row.ceiling else ""
            html.append(
                f"<tr{kind}><td"
                f" class=first>{escape(label)}</td><td>{len(row.seeds)}</td>{''.join(cells(row, group))}</tr>"
            )
        html.append("</tbody>")
    return "".join(html)


def recall_table(rows: Sequence[ResultRow]) -> str:
    """The table of recalls, with the best of each language in bold."""
    names = (*RECALL_NAMES, "SumR")

    def cells(row: ResultRow, group: Sequence[ResultRow]) -> Iterable[str]:
        for name in names:
            best = max(other.metrics[name].mean for other in group)
            yield _stat(row.metrics[name], best=not row.ceiling and row.metrics[name].mean == best)
        yield f"<td>{interval(row)}</td>{_stat(row.item_level['SumR'])}"

    recalls = "<th>R@1</th><th>R@5</th><th>R@10</th>"
    head = (
        f"<tr><th></th><th></th><th colspan=3>{WAYS['t2v']}</th><th"
        f" colspan=3>{WAYS['v2t']}</th><th></th><th></th><th></th></tr>"
        f"<tr><th>Method</th><th>Seeds</th>{recalls}{recalls}<th>SumR</th><th>CI"
        " of SumR</th><th>SumR by items</th></tr>"
    )
    return f"<div class=scroll><table><thead>{head}</thead>{_bodies(rows, 11, cells)}</table></div>"


def _more(rows: Sequence[ResultRow]) -> str:
    def cells(row: ResultRow, group: Sequence[ResultRow]) -> Iterable[str]:
        yield _stat(row.metrics["mR"])
        for way in WAYS:
            yield _stat(row.metrics[f"{way}_MRR"], digits=3) + _stat(row.metrics[f"{way}_median_rank"])
        yield from (_stat(row.item_level[name]) for name in RECALL_NAMES[3:])

    ranks = "<th>MRR</th><th>Median rank</th>"
    head = (
        f"<tr><th></th><th></th><th></th><th colspan=2>{WAYS['t2v']}</th><th colspan=2>{WAYS['v2t']}</th>"
        f"<th colspan=3>{WAYS['v2t']} by items</th></tr>"
        f"<tr><th>Method</th><th>Seeds</th><th>mR</th>{ranks}{ranks}<th>R@1</th><th>R@5</th><th>R@10</th></tr>"
    )
    return f"<div class=scroll><table><thead>{head}</thead>{_bodies(rows, 10, cells)}</table></div>"


def _legend(rows: Sequence[ResultRow], colour: Mapping[str, int]) -> str:
    labels = dict.fromkeys(row.label for row in rows if not row.ceiling) or dict.fromkeys(row.label for row in rows)
    items = [f"<span>{_swatch(colour[label])}{escape(label)}</span>" for label in labels]
    if any(row.ceiling for row in rows) and any(not row.ceiling for row in rows):
        items.append("<span><span class=dash></span>source-language queries (ceiling)</span>")
    return f"<div class=legend>{''.join(items)}</div>"


def _swatch(n: int) -> str:
    return f'<span class=swatch style="background:var(--s{n % plots.SERIES})"></span>'


def _panels(group: Sequence[ResultRow], rows: Sequence[ResultRow], colour: Mapping[str, int]) -> str:
    same = [row for row in rows if (row.dataset, row.split) == (group[0].dataset, group[0].split)]
    ceiling = (
        None
        if group[0].ceiling
        else max((r for r in same if r.ceiling), key=lambda r: r.metrics["SumR"].mean, default=None)
    )
    highest = max(row.ci.get(name, (0, row.metrics[name].mean))[1] for row in same for name in RECALL_NAMES)
    figures = [
        (f"Recall, {WAYS[way]}", plots.bars(group, ceiling, way, colour, min(100.0, highest * 1.05))) for way in WAYS
    ]
    figures += [(f"Recall at k, {WAYS[way]}", plots.curve(group, ceiling, way, colour)) for way in WAYS]
    return f"<h3>{_title(group[0], alone=_one_dataset(rows))}</h3>{_figures(figures, 'plots four')}"


def _figures(figures: Iterable[tuple[str, str | None]], kind: str = "plots") -> str:
    shown = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in figures if svg)
    return f'<div class="{kind}">{shown}</div>'


def _training(results: Results, curves: Mapping[str, Sequence[str | Path]], colour: Mapping[str, int]) -> str:
    figures: list[tuple[str, str | None]] = [
        (f"Loss, {label}", plots.training({label: paths}, colour, None)) for label, paths in curves.items()
    ]
    for metric in dict.fromkeys(run.selection.split()[0] for run in results.runs if run.selection):
        figures.append((f"Validation {metric}, all runs", plots.training(curves, colour, metric)))
    return "<h2>Training</h2>" + _figures(figures) if any(svg for _, svg in figures) else ""


def _examples(results: Results, images: Images, colour: Mapping[str, int]) -> str:
    """What the first seed of each label found for the same queries."""
    found: dict[tuple[str, str], dict[tuple[str, str], dict[str, Example]]] = {}
    for run in sorted(results.runs, key=lambda run: run.seed):
        for lang, result in run.languages.items():
            if lang == run.source_language and len(run.languages) > 1:
                continue
            for example in result.examples:
                queries = found.setdefault((lang, f"{run.dataset} {run.split}"), {})
                queries.setdefault((example.item, example.query), {}).setdefault(run.label, example)
    thumbnails: dict[str, str] = {}

    def tile(item: str, correct: bool, english: str | None) -> str:
        if item not in thumbnails:
            thumbnails[item] = _thumbnail(item, images(item))
        name = escape(f"{item}: {english}" if english else item)
        inner = f'<img src="{thumbnails[item]}" alt="{name}" loading="lazy">' if thumbnails[item] else escape(item)
        return f'<div class="tile{" correct" if correct else ""}" title="{name}">{inner}</div>'

    def found_by(label: str, example: Example) -> str:
        tiles = "".join(tile(hit.item, hit.correct, hit.english) for hit in example.top)
        who = (
            f"<div>{_swatch(colour[label])}{escape(label)}<span class=rank>right one at rank"
            f" {example.rank}</span></div>"
        )
        return f"<div class=found>{who}<div class=tiles>{tiles}</div></div>"

    html = []
    for (lang, where), queries in found.items():
        most = max(len(labels) for labels in queries.values())
        cards = []
        for (_, query), by_label in [entry for entry in queries.items() if len(entry[1]) == most][:QUERIES]:
            english = next(iter(by_label.values())).english
            said = f'<blockquote lang="{escape(lang)}" dir="auto">{escape(query)}</blockquote>'
            said += f"<small>English caption: {escape(english)}</small>" if english else ""
            rows = "".join(found_by(label, by_label[label]) for label in results.labels if label in by_label)
            cards.append(f"<div class=example>{said}{rows}</div>")
        html.append(
            f"<h3>{escape(NAMES.get(lang, lang))}, {escape(where)}</h3><div class=examples>{''.join(cards)}</div>"
        )
    if not html:
        return ""
    explained = (
        "The five best items of each method, first seed; queries spread evenly over the gallery, not picked. Framed:"
        " correct."
    )
    return f"<h2>What a query finds</h2><p><small>{explained}</small></p>{''.join(html)}"


def _thumbnail(item: str, data: bytes | None) -> str:
    """A data URL of the picture, made small; "" if there is none."""
    if data is None:
        return ""
    small = open_picture(data, f"item {item!r}: its picture").convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def details(summary: str, html: str) -> str:
    """HTML that is folded up behind a line of text."""
    return f"<details><summary>{summary}</summary>{html}</details>"


def footer(results: Results) -> str:
    """Where the data comes from, attribution, and how each run was made."""
    provenance = {name: who for run in results.runs for name, who in run.provenance.items()}
    attribution = list(dict.fromkeys(line for run in results.runs for line in run.attribution))
    html = []
    if provenance:
        lines = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(who)}</td></tr>" for name, who in sorted(provenance.items())
        )
        html.append(f"<h2>Where the data comes from</h2><div class=scroll><table class=plain>{lines}</table></div>")
    if attribution:
        html.append("<h3>Attribution</h3><ul>" + "".join(f"<li>{escape(line)}</li>" for line in attribution) + "</ul>")
    lines = "".join(
        f"<tr><td>{escape(run.name)}</td><td>"
        f"{escape(', '.join(f'{key}: {_said(value)}' for key, value in run.meta.items()))}</td></tr>"
        for run in results.runs
    )
    html.append(details("How each run was made", f"<div class=scroll><table class=plain>{lines}</table></div>"))
    return "".join(html)


def _said(value: object) -> str:
    return ", ".join(f"{key} {inner}" for key, inner in value.items()) if isinstance(value, dict) else str(value)
