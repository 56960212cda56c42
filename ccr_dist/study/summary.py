"""Summarises a study: its rows over seeds, and a verdict on each declared comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ccr_dist.errors import DataError
from ccr_dist.evaluate.schema import RunResult
from ccr_dist.evaluate.summaries import Results, Stat
from ccr_dist.study.compare import (
    ALL,
    LEVEL,
    REPLICATES,
    Estimate,
    Judged,
    MeasuredRun,
    judge,
    load_outcome,
    over,
    sample,
)
from ccr_dist.study.plan import RowPlan, Run, StudyPlan, states

EXPLAINED = (
    "SumR: sum of R@1, R@5 and R@10 in both directions (0 to 600), mean ± standard deviation over seeds. Trained:"
    f" parameters, without the embedding table. Intervals: {LEVEL:.0f} % bootstrap over test items and seeds."
)
TEXTS = (
    "Test concepts in texts: of a row that also read texts without pictures, how many concepts of the test split occur"
    " in their English as words, and of these how many are a whole text."
)
JUDGED = (
    "Difference of SumR, mean over languages and seeds; items and seeds are drawn alike for both rows (paired"
    " bootstrap). Shown: the whole interval is above zero. Contradicted: it is below. Not shown: it contains zero,"
    " which is no proof that the rows are equal. Intervals are not corrected for the number of comparisons: of twenty"
    " between equal rows, one is expected to look different."
)


@dataclass(frozen=True)
class Line:
    """The results of one row.

    Attributes:
        row: The row of the plan.
        runs: Its complete runs.
        stats: SumR over seeds by language; `ALL` has the mean over the target languages that all rows have.
        estimates: The same with bootstrap intervals.
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
        """Number of trained parameters, without the multilingual embedding table, whose size depends only on the
        vocabulary.
        """
        counted = self.runs[0].meta["parameters"]
        return int(counted["trainable"] - counted.get("table", 0)) if counted["trainable"] else 0

    @property
    def texts(self) -> dict[str, int]:
        """Of the texts without pictures that it read: "rows", and of the test split's "concepts" those that are a
        "whole" text or "within" one. Empty: it read none.
        """
        found: dict[str, int] = self.runs[0].meta.get("texts", {})
        return found

    @property
    def texts_said(self) -> str:
        """The same in words; a dash where there are none."""
        found = self.texts
        return f"{found['within']} of {found['concepts']} ({found['whole']} whole)" if found else "–"


@dataclass(frozen=True)
class StudySummary:
    """Everything that a report shows.

    Attributes:
        plan: The study.
        lines: Results of its rows.
        judged: Verdicts on its comparisons.
        targets: Target languages.
        common: Those in which every row was measured; means are over them.
        source: Source language.
        missing: Names of runs without a result that counts.
        outdated: Of those, name -> what has changed since it was measured.
    """

    plan: StudyPlan
    lines: tuple[Line, ...]
    judged: tuple[Judged, ...]
    targets: tuple[str, ...]
    common: tuple[str, ...]
    source: str
    missing: tuple[str, ...]
    results: Results
    outdated: Mapping[str, str] = field(default_factory=dict)

    def label(self, name: str) -> str:
        return next(row.shown for row in self.plan.study.rows if row.name == name)

    @property
    def explained(self) -> str:
        """What the numbers of the rows are."""
        means = "" if self.common == self.targets else f" Means: over {', '.join(self.common)}, which all rows have."
        return EXPLAINED + means + (f" {TEXTS}" if self.with_texts else "")

    @property
    def with_texts(self) -> bool:
        """Whether some row read texts without pictures."""
        return any(line.texts for line in self.lines)

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


def measured(plan: StudyPlan) -> tuple[dict[str, list[MeasuredRun]], dict[str, str]]:
    """The complete runs of each row that has some; and name -> why it counts for nothing, of the others.

    Raises:
        DataError: There are no results, or one is damaged.
        ConfigError: A result belongs to another config.
    """
    complete: dict[str, list[Run]] = {}
    looked_at = states(plan.runs)
    missing: dict[str, str] = {}
    for run in plan.runs:
        found, changed = looked_at[run.name]
        if found == "complete":
            complete.setdefault(run.row.name, []).append(run)
        else:
            missing[run.name] = f"outdated: {', '.join(changed)} changed since" if changed else "no result"
    if not complete:
        old = [f"\n  {name}: {why}" for name, why in missing.items() if why != "no result"]
        raise DataError(
            f"{plan.study.out}: no run of the study {plan.study.name!r} is complete; `ccr-dist study run` makes them"
            + "".join(old[:12])
        )
    return {name: [load_outcome(run.result, run.row.shown) for run in runs] for name, runs in complete.items()}, missing


def summarise(plan: StudyPlan, *, replicates: int = REPLICATES) -> StudySummary:
    """Summarise the results of all complete runs.

    Args:
        plan: The study.
        replicates: Number of bootstrap replicates.

    Raises:
        DataError: There are no results, or runs were evaluated on different queries, or in no common language.
        ConfigError: A result belongs to another config.
    """
    outcomes, missing = measured(plan)
    drawn = sample(outcomes, replicates=replicates)
    results = Results(tuple(outcome.result for each in outcomes.values() for outcome in each))
    source = results.runs[0].source_language
    languages = list(dict.fromkeys(lang for run in results.runs for lang in run.languages))
    targets = [lang for lang in languages if lang != source] or languages
    common = [lang for lang in targets if all(lang in spoken for spoken in drawn.values())]
    if not common:
        said = "; ".join(f"{name}: {', '.join(spoken)}" for name, spoken in drawn.items())
        raise DataError(
            f"{plan.study.out}: no target language is common to all rows, which cannot be compared ({said})"
        )

    lines = []
    for row in plan.study.rows:
        if row.name in outcomes:
            runs = tuple(outcome.result for outcome in outcomes[row.name])
            values = {lang: [run.languages[lang].metrics["SumR"] for run in runs] for lang in drawn[row.name]}
            values[ALL] = [sum(each) / len(common) for each in zip(*(values[lang] for lang in common), strict=True)]
            stats = {lang: Stat.of(each) for lang, each in values.items()}
            estimates = {lang: each.estimate() for lang, each in drawn[row.name].items()} | {
                ALL: over(drawn[row.name], common).estimate()
            }
            lines.append(Line(row, runs, stats, estimates))
    seeds = {line.row.name: len(line.runs) for line in lines}
    judged = [
        judge(each, drawn, seeds, targets) for each in plan.study.comparisons if each.a in drawn and each.b in drawn
    ]
    return StudySummary(
        plan, tuple(lines), tuple(judged), tuple(targets), tuple(common), source, tuple(missing), results,
        {name: why for name, why in missing.items() if why != "no result"},
    )  # fmt: skip


def sentence(judged: Judged, label: Callable[[str], str]) -> str:
    """A verdict in plain words.

    Args:
        judged: The comparison and its outcome.
        label: Label of a row by name.
    """
    a, b, found = label(judged.comparison.a), label(judged.comparison.b), judged.difference
    if judged.verdict == "not shown":
        return f"Not shown: {a} and {b} cannot be distinguished ({LEVEL:.0f} % interval {interval(found)})"
    way = "above" if found.mean > 0 else "below"
    return (
        f"{judged.verdict.capitalize()}: {a} is {abs(found.mean):.1f} points of SumR {way} {b} ({LEVEL:.0f} % interval"
        f" {interval(found)})"
    )


def interval(found: Estimate, *, signed: bool = True) -> str:
    said = f"{found.low:+.1f} to {found.high:+.1f}" if signed else f"{found.low:.1f} to {found.high:.1f}"
    return said.replace("-", "−")


def languages_shown(summary: StudySummary) -> list[str]:
    """Target languages, and the source as the ceiling if it was evaluated as well."""
    known = [*summary.targets, summary.source]
    return [lang for lang in dict.fromkeys(known) if any(lang in line.stats for line in summary.lines)]


def magnitude(n: float) -> str:
    """A number of parameters, or of what a curve counts: 0, 0.25, 950, 1.2 k, 3.4 M, 5.6 B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= 0.9995 * size:  # rounded to three digits, it is one of this unit
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}" if n >= 100 else f"{n:.3g}"
