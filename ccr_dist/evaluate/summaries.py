"""Results of several runs as rows of a table: means and standard deviations over seeds, intervals, counts.

There is one row per (dataset, split, language, label). Seeds of one label are averaged; the spread is the sample
standard deviation over seeds. Intervals are each run's bootstrap over items; with several seeds, the mean of their
ends. The results files are in `schema.py`; `tables.py` and `page.py` show the rows. No torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist.errors import DataError
from ccr_dist.evaluate.schema import LanguageResult, RunResult, read_result, require_comparable


@dataclass(frozen=True)
class Results:
    """Runs in the order in which they were named, which is the order of rows and colours."""

    runs: tuple[RunResult, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, each once, in order of first appearance."""
        return tuple(dict.fromkeys(run.label for run in self.runs))


@dataclass(frozen=True)
class Stat:
    """A metric over seeds.

    Attributes:
        mean: over seeds.
        sd: sample standard deviation; None with one seed.
        values: of each seed.
    """

    mean: float
    sd: float | None
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Stat:
        """From the values of the seeds, at least one."""
        return Stat(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, tuple(values))

    def __str__(self) -> str:
        # on two lines, so that means align and rows fit into 80 columns
        return f"{self.mean:.1f}" + (f"\n±{self.sd:.1f}" if self.sd is not None else "")


@dataclass(frozen=True)
class ResultRow:
    """One line of the table.

    Attributes:
        dataset, split, language, label: what it is of.
        method: registered name.
        ceiling: the queries are in the source language, which other languages are not expected to beat.
        seeds: of the runs, ascending.
        metrics: by name (`schema.py`).
        item_level: the same, with visual→text counted over items.
        ci: ends of the intervals, by the name of the metric.
        curve: k, and the recall at each k of both directions.
        counts: of captions, items and so on; the same for all seeds.
    """

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
    """Reads results files.

    Raises:
        DataError: there are none, a file is missing or not a results file, or it is a second result of the same label,
            seed, split and language.
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


def aggregate(results: Results) -> list[ResultRow]:
    """The rows, by dataset, language (the ceiling last) and label, each in order of first appearance.

    Raises:
        DataError: results of one split were measured on different content.
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


def _row(lang: str, runs: list[RunResult]) -> ResultRow:
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
    return ResultRow(
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


def merged_ceiling(rows: Sequence[ResultRow]) -> list[tuple[str, ResultRow]]:
    """The rows to show, with their names. Source-language rows with equal numbers become one: methods that leave the
    source language unchanged share it.
    """
    shown: dict[Any, tuple[list[str], ResultRow]] = {}
    for row in rows:
        means = tuple(round(stat.mean, 9) for stat in row.metrics.values())
        same = (row.dataset, row.split, row.language, means if row.ceiling else row.label)
        shown.setdefault(same, ([], row))[0].append(row.label)
    return [(", ".join(labels), row) for labels, row in shown.values()]


def interval(row: ResultRow, name: str = "SumR") -> str:
    """The interval of a metric as text; – if there is none."""
    return "–" if name not in row.ci else "{:.1f}–{:.1f}".format(*row.ci[name])
