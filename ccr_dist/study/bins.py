"""Recall by the length of queries, or by the agreement of two of their translations: shows for which queries a row is
good.

Computed from the ranks beside the results and the texts of the test set; no model runs. Bins are quantiles of the
queries, so that they hold about as many each; a cell is the mean over seeds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccr_dist.data.media.text import texts_of
from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.names import check_column_name
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.evaluate.schema import read_result, require_comparable
from ccr_dist.evaluate.tables import cell
from ccr_dist.study.compare import opened_ranks
from ccr_dist.study.plan import StudyPlan, states

RECALLS = (1, 10)
EXPLAINED = (
    "R@1 / R@10 of text queries in percent, mean over seeds. With n queries in a bin, a recall of p has a sampling"
    f" error of about sqrt(p (100 - p) / n), the same queries for all rows. Differences: of R@{RECALLS[-1]}, mean over"
    " seeds, ± 1.96 standard errors over the queries of a bin (the chance of the seeds is not in them)."
)


@dataclass(frozen=True)
class Binned:
    """The recalls of one language.

    Attributes:
        lang: The language.
        by: The values that bins are made of.
        bins: Their names.
        queries: Number of queries in each bin.
        recalls: Row label -> (bins, len(RECALLS)), percent.
        differences: Claim -> (bins, 2), points of the last recall and 1.96 standard errors.
    """

    lang: str
    by: str
    bins: tuple[str, ...]
    queries: tuple[int, ...]
    recalls: Mapping[str, np.ndarray]
    differences: Mapping[str, np.ndarray]


def binned(plan: StudyPlan, by: str, count: int = 4) -> list[Binned]:
    """Recalls of all complete runs by quantiles of a property of the queries, for each language.

    Args:
        plan: The study.
        by: "words" of the query; or "chrf:A:B", chrF of the query's text in column A against that in column B, such as
            translations into English by two systems. `{lang}` in a column name stands for the language.
        count: Number of bins.

    Raises:
        ConfigError: `by` is something else, or sacrebleu is not installed.
        DataError: No run is complete, or columns are not aligned with the queries.
    """
    measure = _measure(by)
    looked_at = states(plan.runs)
    complete = [run for run in plan.runs if looked_at[run.name][0] == "complete"]
    if not complete:
        raise DataError(
            f"{plan.study.out}: no run of the study {plan.study.name!r} is complete; `ccr-dist study run` makes them"
        )
    require_comparable(read_result(run.result) for run in complete)
    data = complete[0].config.data
    assert data.test is not None, "checked where the study was read"
    dataset = Dataset(data.test)
    found = []
    for lang, column in data.queries.items():
        hits: dict[str, list[np.ndarray]] = {}
        places: np.ndarray | None = None
        for run in complete:
            file = run.result.with_name(f"{run.result.stem}.ranks.npz")
            with opened_ranks(file) as kept:
                if f"{lang}/t2v" not in kept:
                    continue
                ranks, rows = kept[f"{lang}/t2v"], kept[f"{lang}/rows"][kept[f"{lang}/item"]]
                # Ranks of earlier versions do not say which captions they belong to: all captions of a row, in order.
                parts = kept[f"{lang}/part"] if f"{lang}/part" in kept else _counted(rows)
            asked = np.stack([rows, parts], axis=1)
            if places is not None and not np.array_equal(places, asked):
                raise DataError(
                    f"{file}: other queries than those of {complete[0].name} ({lang}): test sets or their blank"
                    " captions differ"
                )
            places = asked
            hits.setdefault(run.row.name, []).append(np.stack([ranks <= k for k in RECALLS], axis=1))
        if places is None:
            continue
        values = measure(dataset, column, lang, places)
        edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
        at = np.digitize(values, edges[1:-1]) if len(edges) > 2 else np.zeros(len(values), int)
        used = sorted(set(at.tolist()))
        names = tuple(f"{values[at == b].min():g}–{values[at == b].max():g}" for b in used)
        mean = {name: 100 * np.mean(each, axis=0) for name, each in hits.items()}  # (queries, len(RECALLS))
        label = {row.name: row.shown for row in plan.study.rows}
        recalls = {label[name]: np.stack([each[at == b].mean(0) for b in used]) for name, each in mean.items()}
        differences = {
            each.claim: np.stack([_difference(mean[each.a][at == b, -1] - mean[each.b][at == b, -1]) for b in used])
            for each in plan.study.comparisons
            if each.a in mean and each.b in mean
        }
        found.append(Binned(lang, by, names, tuple(int((at == b).sum()) for b in used), recalls, differences))
    return found


def _difference(values: np.ndarray) -> np.ndarray:
    """(2,): mean, 1.96 standard errors."""
    return np.array([values.mean(), 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan])


def _counted(rows: np.ndarray) -> np.ndarray:
    """(Nt,): 0, 1, … for each row of `rows` (Nt,) that is named again and again."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    return np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))


def _measure(by: str) -> Callable[[Dataset, str, str, np.ndarray], np.ndarray]:
    """(dataset, column, language, (Nt, 2) row and number of each caption) -> (Nt,)."""
    kind, *columns = by.split(":")
    if by == "words":
        return lambda dataset, column, lang, asked: np.array(
            [len(text.split()) for text in _queries(dataset, column, asked)]
        )
    if kind != "chrf" or len(columns) != 2:
        raise ConfigError(
            f"--by {by}: expected words, or chrf:A:B with two columns of texts that are aligned with the queries"
        )
    for name in columns:
        check_column_name(name.replace("{lang}", "en"))
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise ConfigError("chrF needs sacrebleu: pip install 'ccr-dist[quality]'") from error

    def agreement(dataset: Dataset, column: str, lang: str, asked: np.ndarray) -> np.ndarray:
        texts = [_queries(dataset, name.replace("{lang}", lang), asked) for name in columns]
        score = CHRF().sentence_score
        return np.array([round(score(a, [b]).score) for a, b in zip(*texts, strict=True)])

    return agreement


def _queries(dataset: Dataset, column: str, asked: np.ndarray) -> list[str]:
    """The text of each query; `asked` (Nt, 2): row and number of the caption. Raises DataError without such a text."""
    texts, ends = [], np.cumsum(dataset.shard_rows)
    source = dataset.column(column)
    for row, part in asked.tolist():
        if row >= dataset.rows:
            raise DataError(f"{dataset.place}: {dataset.rows} rows, and row {row} was measured: it is another dataset")
        shard = int(np.searchsorted(ends, row, side="right"))
        found = texts_of(source.value(shard, int(row - ends[shard] + dataset.shard_rows[shard])))
        if part >= len(found):
            raise DataError(
                f"{source.folder}: row {row} has {len(found)} texts, and query {part} was asked: not aligned with the"
                " queries"
            )
        texts.append(found[part])
    return texts


def markdown(tables: list[Binned]) -> str:
    """A Markdown table for each language."""
    lines = [EXPLAINED]
    for table in tables:
        heads = [f"{name} (n = {n})" for name, n in zip(table.bins, table.queries, strict=True)]
        lines += ["", f"| {table.lang}, by {table.by} | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
        for label, recalls in table.recalls.items():
            lines.append(
                f"| {label} | " + " | ".join(" / ".join(f"{value:.1f}" for value in cell) for cell in recalls) + " |"
            )
        for claim, differences in table.differences.items():
            lines.append(
                f"| *{claim}* | " + " | ".join(f"{mean:+.1f} ± {error:.1f}" for mean, error in differences) + " |"
            )
    return "\n".join(lines) + "\n"


def write(tables: list[Binned], out: Path) -> Path:
    """Writes OUT/bins-WHAT.md and .csv.

    Returns:
        The path of the first.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["language", "by", "bin", "queries", "row", *(f"R{k}" for k in RECALLS)])
    for table in tables:
        for label, recalls in table.recalls.items():
            for name, n, values in zip(table.bins, table.queries, recalls, strict=True):
                writer.writerow(
                    [*map(cell, (table.lang, table.by, name, n, label)), *(f"{value:.3f}" for value in values)]
                )
    stem = f"bins-{tables[0].by.partition(':')[0]}"
    replace_atomic(out / f"{stem}.csv", text.getvalue().encode())
    replace_atomic(out / f"{stem}.md", markdown(tables).encode())
    return out / f"{stem}.md"
