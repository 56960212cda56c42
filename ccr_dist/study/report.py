"""From the results of a study's runs to its report: table, comparisons, plots, and one page.

OUT/report/: report.html (everything in one file), table.md, comparisons.md, rows.csv, comparisons.csv, study.json (the
numbers of both), results.csv and results.json (every metric of every row, as `ccr-dist report` writes them),
comparisons.png, rows.png, parameters.png. What is missing is said, never filled in.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.errors import DataError
from ccr_dist.evaluate.report import Results, Stat, aggregate, cell, to_csv, to_json
from ccr_dist.evaluate.schema import RunResult
from ccr_dist.study import plots
from ccr_dist.study.compare import ALL, LEVEL, REPLICATES, Estimate, Judged, judge, load_outcome, over, sample
from ccr_dist.study.plan import Plan, RowPlan, Run, state
from ccr_dist.study.plots import magnitude

EXPLAINED = (
    "SumR: sum of R@1, R@5 and R@10 in both directions (0 to 600), mean ± standard deviation over seeds. Trained:"
    f" parameters, without the embedding table. Intervals: {LEVEL:.0f} % bootstrap over test items and seeds."
)
JUDGED = (
    "Difference of SumR, mean over languages and seeds; items and seeds are drawn alike for both rows (paired"
    " bootstrap). Shown: the whole interval is above zero. Contradicted: it is below. Not shown: it contains zero,"
    " which is no proof that the rows are equal. Intervals are not corrected for the number of comparisons: of twenty"
    " between equal rows, one is expected to look different."
)


@dataclass(frozen=True)
class Line:
    """One row of the study: SumR by language (`stats` over seeds, `estimates` with intervals; `ALL`: mean over target
    languages).
    """

    row: RowPlan
    runs: tuple[RunResult, ...]
    stats: dict[str, Stat]
    estimates: dict[str, Estimate]

    @property
    def label(self) -> str:
        return self.row.shown

    @property
    def parameters(self) -> int:
        """Trained parameters without the multilingual embedding table, whose size is the vocabulary's affair."""
        counted = self.runs[0].meta["parameters"]
        return int(counted["trainable"] - counted.get("table", 0)) if counted["trainable"] else 0


@dataclass(frozen=True)
class Summary:
    """All that a report shows. `missing`: names of runs without a result."""

    plan: Plan
    lines: tuple[Line, ...]
    judged: tuple[Judged, ...]
    targets: tuple[str, ...]
    source: str
    missing: tuple[str, ...]
    results: Results

    def label(self, name: str) -> str:
        return next(row.shown for row in self.plan.study.rows if row.name == name)

    @property
    def groups(self) -> dict[str, list[Line]]:
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            found.setdefault(line.row.group, []).append(line)
        return found

    @property
    def unjudged(self) -> list[str]:
        done = [each.comparison for each in self.judged]
        return [each.claim for each in self.plan.study.comparisons if each not in done]


def summarise(plan: Plan, *, replicates: int = REPLICATES) -> Summary:
    """Reads the results of all complete runs. DataError when there are none, or when runs were asked different queries;
    ConfigError for a result of another config.
    """
    complete: dict[str, list[Run]] = {}
    missing = []
    for run in plan.runs:
        if state(run) == "complete":
            complete.setdefault(run.row.name, []).append(run)
        else:
            missing.append(run.name)
    if not complete:
        raise DataError(
            f"{plan.study.out}: no run of the study {plan.study.name!r} is complete; `ccr-dist study run` makes them"
        )
    outcomes = {name: [load_outcome(run.result, run.row.shown) for run in runs] for name, runs in complete.items()}
    drawn = sample(outcomes, replicates=replicates)
    results = Results(tuple(outcome.result for each in outcomes.values() for outcome in each))
    source = results.runs[0].source_language
    languages = list(dict.fromkeys(lang for run in results.runs for lang in run.languages))
    targets = [lang for lang in languages if lang != source] or languages

    lines = []
    for row in plan.study.rows:
        if row.name in outcomes:
            runs = tuple(outcome.result for outcome in outcomes[row.name])
            own = [lang for lang in targets if lang in drawn[row.name]]
            values = {lang: [run.languages[lang].metrics["SumR"] for run in runs] for lang in drawn[row.name]}
            values[ALL] = [sum(each) / len(own) for each in zip(*(values[lang] for lang in own), strict=True)]
            stats = {lang: Stat.of(each) for lang, each in values.items()}
            estimates = {lang: each.estimate() for lang, each in drawn[row.name].items()} | {
                ALL: over(drawn[row.name], own).estimate()
            }
            lines.append(Line(row, runs, stats, estimates))
    seeds = {line.row.name: len(line.runs) for line in lines}
    judged = [
        judge(each, drawn, seeds, targets) for each in plan.study.comparisons if each.a in drawn and each.b in drawn
    ]
    return Summary(plan, tuple(lines), tuple(judged), tuple(targets), source, tuple(missing), results)


def write(summary: Summary, out: Path) -> Path:
    """All files of the report; the page's path."""
    from ccr_dist.study.page import page

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


def as_json(summary: Summary) -> dict[str, Any]:
    study = summary.plan.study
    about = {"format": 1, "name": study.name, "title": study.title, "missing": summary.missing}
    return {**about, "rows": row_records(summary), "comparisons": comparison_records(summary)}


def row_records(summary: Summary) -> list[dict[str, Any]]:
    """One record a row: `SumR.LANG`, with `_sd`, `_low` and `_high`; "all" is the mean over the target languages."""
    found = []
    for line in summary.lines:
        record: dict[str, Any] = {"name": line.row.name, "label": line.label, "group": line.row.group}
        record |= {"seeds": len(line.runs), "trained_parameters": line.parameters}
        for lang, stat in line.stats.items():
            about = line.estimates[lang]
            key = f"SumR.{lang}"
            record |= {key: stat.mean, f"{key}_sd": stat.sd, f"{key}_low": about.low, f"{key}_high": about.high}
        found.append(record)
    return found


def comparison_records(summary: Summary) -> list[dict[str, Any]]:
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


def sentence(judged: Judged, label: Callable[[str], str]) -> str:
    """The verdict in plain words."""
    a, b, found = label(judged.comparison.a), label(judged.comparison.b), judged.difference
    if judged.verdict == "not shown":
        return f"Not shown: {a} and {b} cannot be told apart ({LEVEL:.0f} % interval {interval(found)})"
    way = "above" if found.mean > 0 else "below"
    return (
        f"{judged.verdict.capitalize()}: {a} is {abs(found.mean):.1f} points of SumR {way} {b} ({LEVEL:.0f} % interval"
        f" {interval(found)})"
    )


def interval(found: Estimate, *, signed: bool = True) -> str:
    said = f"{found.low:+.1f} to {found.high:+.1f}" if signed else f"{found.low:.1f} to {found.high:.1f}"
    return said.replace("-", "−")


def languages_shown(summary: Summary) -> list[str]:
    """Targets, and the source as the ceiling where it was asked too."""
    known = [*summary.targets, summary.source]
    return [lang for lang in dict.fromkeys(known) if any(lang in line.stats for line in summary.lines)]


def table_markdown(summary: Summary) -> str:
    shown = languages_shown(summary)
    heads = ["method", "seeds", "trained", *(f"SumR {lang}" for lang in shown), "mean SumR", "interval"]
    text = [EXPLAINED, "", _markdown_row(heads), _markdown_row(["---"] * 3 + ["---:"] * (len(heads) - 3))]
    for group, lines in summary.groups.items():
        if len(summary.groups) > 1:
            text.append(_markdown_row([f"**{group}**", *[""] * (len(heads) - 1)]))
        for line in lines:
            cells = [line.label, str(len(line.runs)), magnitude(line.parameters)]
            cells += [spread(line.stats[lang]) if lang in line.stats else "–" for lang in shown]
            text.append(_markdown_row([*cells, spread(line.stats[ALL]), interval(line.estimates[ALL], signed=False)]))
    return "\n".join(text) + "\n"


def comparisons_markdown(summary: Summary) -> str:
    heads = ["claim", "verdict", "difference", f"{LEVEL:.0f} % interval", *summary.targets]
    text = [JUDGED, "", _markdown_row(heads), _markdown_row(["---"] * 2 + ["---:"] * (len(heads) - 2))]
    for each in summary.judged:
        by = [f"{each.by_language[lang].mean:+.1f}" if lang in each.by_language else "–" for lang in summary.targets]
        text.append(
            _markdown_row(
                [each.comparison.claim, each.verdict, f"{each.difference.mean:+.1f}", interval(each.difference), *by]
            )
        )
    return "\n".join(text) + "\n"


def spread(stat: Stat) -> str:
    return f"{stat.mean:.1f}" + (f" ±{stat.sd:.1f}" if stat.sd is not None else "")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(key for record in records for key in record))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, names))
    writer.writerows([cell(record.get(name)) for name in names] for record in records)
    return text.getvalue()
