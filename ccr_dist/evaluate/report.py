"""Several runs' results files -> rows with means and spreads -> terminal table, `results.csv`, `results.json`,
`report.html`.

The files' format is in `schema.py`; how the page looks is in `page.py` and `plots.py`. Rows are a (dataset, split,
language, label): seeds of one label are averaged, the spread is the sample standard deviation over seeds. Intervals are
each run's bootstrap over items; with several seeds the mean of their ends. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.errors import DataError
from ccr_dist.evaluate.protocols import RECALL_NAMES
from ccr_dist.evaluate.schema import LanguageResult, RunResult, read_result, require_comparable
from ccr_dist.terminal import visible

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # what spreadsheets take for the beginning of one


@dataclass(frozen=True)
class Results:
    """Runs in the order in which they were named: the order of rows, colours and pictures."""

    runs: tuple[RunResult, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.label for run in self.runs))


@dataclass(frozen=True)
class Stat:
    """Mean over seeds; `sd`: sample standard deviation, None with one seed."""

    mean: float
    sd: float | None
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Stat:
        return Stat(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, tuple(values))

    def __str__(self) -> str:
        # two lines: means align, rows fit 80 columns
        return f"{self.mean:.1f}" + (f"\n±{self.sd:.1f}" if self.sd is not None else "")


@dataclass(frozen=True)
class Row:
    """One line of the table. `ceiling`: queries in the source language, which the others cannot be expected to beat."""

    dataset: str
    split: str
    language: str
    label: str
    method: str
    ceiling: bool
    seeds: tuple[int, ...]
    metrics: dict[str, Stat]
    item_level: dict[str, Stat]
    ci: dict[str, tuple[float, float]]
    curve: dict[str, tuple[float, ...]]
    counts: dict[str, int]


def collect(paths: Iterable[str | Path]) -> Results:
    """Reads results files. DataError naming the file that is missing, not a results file, or a second result of the
    same run and seed.
    """
    runs: list[RunResult] = []
    seen: dict[tuple[str, str, int, str], Path] = {}
    for path in map(Path, paths):
        run = read_result(path)
        for lang in run.languages:
            same = (run.dataset + "/" + run.split, run.label, run.seed, lang)
            if same in seen:
                raise DataError(
                    f"{path}: {run.label!r}, seed {run.seed}, {same[0]}, {lang} is in {seen[same]} already; relabel one"
                )
            seen[same] = path
        runs.append(run)
    if not runs:
        raise DataError("no results file was given")
    return Results(tuple(runs))


def aggregate(results: Results) -> list[Row]:
    """Rows by dataset, language (the ceiling last), label; each in order of first appearance. DataError where results
    of one split were measured on different content.
    """
    require_comparable(results.runs)
    found: dict[tuple[str, str, str, str], list[RunResult]] = {}
    for run in results.runs:
        for lang in run.languages:
            found.setdefault((run.dataset, run.split, lang, run.label), []).append(run)
    rows = [_row(lang, runs) for (_, _, lang, _), runs in found.items()]
    datasets = list(dict.fromkeys((row.dataset, row.split) for row in rows))
    languages = list(dict.fromkeys(row.language for row in rows))
    labels = results.labels
    return sorted(
        rows,
        key=lambda r: (
            datasets.index((r.dataset, r.split)),
            r.ceiling,
            languages.index(r.language),
            labels.index(r.label),
        ),
    )


def _row(lang: str, runs: list[RunResult]) -> Row:
    runs = sorted(runs, key=lambda run: run.seed)
    results = [run.languages[lang] for run in runs]
    for run, result in zip(runs, results, strict=True):
        if (run.dataset_digest, result.counts) != (runs[0].dataset_digest, results[0].counts):
            raise DataError(
                f"{run.name} and {runs[0].name}, both {run.label!r}, were measured on different"
                f" {run.dataset}/{run.split} ({lang})"
            )

    def stats(of: Callable[[LanguageResult], Mapping[str, float]]) -> dict[str, Stat]:
        return {name: Stat.of([of(result)[name] for result in results]) for name in of(results[0])}

    first = results[0]
    return Row(
        dataset=runs[0].dataset,
        split=runs[0].split,
        language=lang,
        label=runs[0].label,
        method=runs[0].method,
        ceiling=lang == runs[0].source_language,
        seeds=tuple(run.seed for run in runs),
        metrics=stats(lambda result: result.metrics),
        item_level=stats(lambda result: result.item_level),
        ci={name: tuple(statistics.fmean(r.ci[name][end] for r in results) for end in (0, 1)) for name in first.ci},  # type: ignore[misc]
        curve={"k": first.curve["k"]}
        | {
            way: tuple(map(statistics.fmean, zip(*(r.curve[way] for r in results), strict=True)))
            for way in ("t2v", "v2t")
        },
        counts=first.counts,
    )


def merged_ceiling(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """(name, row) to show: source-language rows with equal figures (adapters that leave the source language alone)
    become one.
    """
    shown: dict[Any, tuple[list[str], Row]] = {}
    for row in rows:
        means = tuple(round(stat.mean, 9) for stat in row.metrics.values())
        same = (row.dataset, row.split, row.language, means if row.ceiling else row.label)
        shown.setdefault(same, ([], row))[0].append(row.label)
    return [(", ".join(labels), row) for labels, row in shown.values()]


def table(rows: Sequence[Row], title: str | None = None) -> Table:
    """For the terminal."""
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


def interval(row: Row, name: str = "SumR") -> str:
    """The interval as text; – where none was computed."""
    return "–" if name not in row.ci else "{:.1f}–{:.1f}".format(*row.ci[name])


def to_json(results: Results, rows: Sequence[Row]) -> dict[str, Any]:
    """The rows with every seed's value, and the runs without their examples."""
    runs = [run.model_dump(mode="json", exclude={"languages"}) for run in results.runs]
    return {"format": 1, "rows": [asdict(row) for row in rows], "runs": runs}


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row: means, `_sd` (empty with one seed), `item_` for the item-level protocol, `_low` and `_high` of
    the intervals.
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
    """A value of a CSV file that is text to spreadsheets and terminals, too: what begins like a formula gets an
    apostrophe, controls are made visible. Numbers are left alone.
    """
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.lstrip().startswith(FORMULA) else visible(value)


def write_report(
    results: Results,
    out: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    images: Callable[[str], bytes | None] = lambda key: None,
    curves: Mapping[str, Sequence[str | Path]] | None = None,
) -> Path:
    """Writes results.json, results.csv and report.html (one file, nothing loaded from elsewhere) in the folder `out`;
    the page's path.

    Args: `notes`: paragraphs; `images`: item key -> picture, or None for a tile with the key; `curves`: label ->
    training logs, JSONL with `step`, and `loss` or (where `event` is "validation") the selection metric.
    """
    from ccr_dist.evaluate.page import page

    out, rows = Path(out), aggregate(results)
    out.mkdir(parents=True, exist_ok=True)
    html = page(results, rows, title=title, notes=notes, images=images, curves=curves or {})
    replace_atomic(out / "results.json", json.dumps(to_json(results, rows), ensure_ascii=False, indent=1).encode())
    replace_atomic(out / "results.csv", to_csv(rows).encode())
    replace_atomic(out / "report.html", html.encode())
    return out / "report.html"
