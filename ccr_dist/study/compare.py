"""Is one row better than another? A paired bootstrap over the test's items and the seeds, and a verdict in words.

Items are drawn with replacement together with their captions, the same items for all runs and languages, so that what
makes an item hard for every run cancels in a difference. Seeds are drawn as well, the same for rows with equal seeds:
n - 1 out of n, which makes the variance of their mean unbiased (Rao & Wu 1988; drawing n would lose a fifth of it with
five seeds). Drawing both items and seeds gives slightly too wide intervals (Owen 2007). A row with a single run counts
as free of randomness. Computed from ranks (`results/<split>.ranks.npz`) with NumPy only.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ccr_dist.data.storage.store import sha256_file
from ccr_dist.errors import DataError
from ccr_dist.evaluate.protocols import hits, recalls
from ccr_dist.evaluate.schema import RunResult, read_result, require_comparable
from ccr_dist.study.plan import Comparison

ALL = "all"  # the mean over languages
LEVEL = 95.0
REPLICATES = 4000
AT_ONCE = 500

Verdict = Literal["shown", "not shown", "contradicted"]


@dataclass(frozen=True)
class MeasuredRun:
    """One run with its hits.

    Attributes:
        result: The result of the run.
        tables: By language, (rows of the test split, 8), see `protocols.hits`.
    """

    result: RunResult
    tables: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval: the mean SumR over seeds of a row, or the difference of two rows."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Sampled:
    """SumR of a row in one language.

    Attributes:
        mean: Measured, over seeds.
        draws: (replicates,), the mean in each replicate.
    """

    mean: float
    draws: np.ndarray

    def estimate(self) -> Estimate:
        """The mean with its bootstrap interval."""
        low, high = np.percentile(self.draws, [50 - LEVEL / 2, 50 + LEVEL / 2])
        return Estimate(self.mean, float(low), float(high))

    def __sub__(self, other: Sampled) -> Sampled:
        return Sampled(self.mean - other.mean, self.draws - other.draws)


@dataclass(frozen=True)
class Judged:
    """A comparison and its outcome.

    Attributes:
        comparison: The comparison that the study declares.
        by_language: Differences; `ALL` has the mean over the shared languages, which decides the verdict.
        seeds: Number of runs of both rows.
    """

    comparison: Comparison
    by_language: dict[str, Estimate]
    seeds: tuple[int, int]

    @property
    def difference(self) -> Estimate:
        return self.by_language[ALL]

    @property
    def verdict(self) -> Verdict:
        """What the interval of the mean over languages shows of the claim."""
        if self.difference.low > 0:
            return "shown"
        return "contradicted" if self.difference.high < 0 else "not shown"


@contextlib.contextmanager
def opened_ranks(file: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a file of ranks, read when they are asked for.

    Raises:
        DataError: The file is missing or damaged; also from inside the block.
    """
    try:
        with file.open("rb") as opened:
            kept = np.load(opened, allow_pickle=False)
            if not isinstance(kept, np.lib.npyio.NpzFile):
                raise ValueError("one array, not several")
            yield kept
    except FileNotFoundError:
        raise DataError(
            f"{file}: no ranks beside the result, so runs cannot be compared item by item; `ccr-dist evaluate …"
            " --again` writes them"
        ) from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # what NumPy raises over damaged archives
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: damaged ({error}); `ccr-dist evaluate … --again` measures again") from None


def load_outcome(path: Path, label: str) -> MeasuredRun:
    """Reads a results file with its ranks.

    Args:
        path: The results file.
        label: Name of the row in reports.

    Raises:
        DataError: Either file is missing, or they do not belong together.
    """
    result = read_result(path).model_copy(update={"label": label})
    file = path.with_name(f"{path.stem}.ranks.npz")
    if not file.exists():
        raise DataError(
            f"{file}: no ranks beside {path.name}, so runs cannot be compared item by item; `ccr-dist evaluate …"
            " --again` writes them"
        )
    if result.meta.get("ranks") not in (None, sha256_file(file)):
        raise DataError(
            f"{file}: damaged, or not of the same measurement as {path}; `ccr-dist evaluate … --again` measures again"
        )
    tables = {}
    with opened_ranks(file) as kept:
        for lang, found in result.languages.items():
            try:
                rows, item, t2v, v2t = (kept[f"{lang}/{name}"] for name in ("rows", "item", "t2v", "v2t"))
            except KeyError as error:
                raise DataError(f"{file}: {error.args[0]}; it is not of the same measurement as {path}") from None
            table = np.zeros((int(rows.max()) + 1, 8))
            table[rows] = hits(t2v, v2t, item)
            if not np.isclose(recalls(table.sum(0)).sum(), found.metrics["SumR"]):
                raise DataError(f"{file}: its ranks do not give the SumR of {path} ({lang}); one of them was changed")
            tables[lang] = table
    return MeasuredRun(result, tables)


def sample(
    rows: Mapping[str, Sequence[MeasuredRun]], *, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, dict[str, Sampled]]:
    """Draws the bootstrap replicates of all rows, with the same draws for all.

    Args:
        rows: The runs of each row.
        replicates: How many.
        seed: Seed of the draws.

    Returns:
        Row -> language -> SumR in every replicate.

    Raises:
        DataError: The runs were measured with different queries or on different content.
    """
    outcomes = [outcome for runs in rows.values() for outcome in runs]
    require_comparable(outcome.result for outcome in outcomes)
    _check_same_queries(outcomes)
    keys = [(name, n, lang) for name, runs in rows.items() for n, outcome in enumerate(runs) for lang in outcome.tables]
    items = max(len(table) for outcome in outcomes for table in outcome.tables.values())
    tables = np.zeros((items, len(keys), 8))
    for at, (name, n, lang) in enumerate(keys):
        table = rows[name][n].tables[lang]
        tables[: len(table), at] = table
    tables = tables[tables.any(axis=(1, 2))]
    flat, random = tables.reshape(len(tables), -1), np.random.default_rng(seed)
    drawn = []
    for start in range(0, replicates, AT_ONCE):
        times = random.multinomial(len(flat), np.full(len(flat), 1 / len(flat)), size=min(AT_ONCE, replicates - start))
        drawn.append(recalls((times @ flat).reshape(len(times), len(keys), 8)).sum(-1))
    draws = dict(zip(keys, np.concatenate(drawn).T, strict=True))  # SumR by run and language, (replicates,)
    measured = dict(zip(keys, recalls(tables.sum(0)).sum(-1), strict=True))

    found: dict[str, dict[str, Sampled]] = {}
    for name, runs in rows.items():
        weights = _seed_weights([run.result.seed for run in runs], replicates, seed)
        found[name] = {}
        for lang in runs[0].tables:
            of = [(name, n, lang) for n in range(len(runs))]
            value = sum(weights[:, n] * draws[key] for n, key in enumerate(of))
            found[name][lang] = Sampled(float(np.mean([measured[key] for key in of])), np.asarray(value))
    return found


def over(languages: Mapping[str, Sampled], chosen: Sequence[str]) -> Sampled:
    """The mean over some languages, replicate by replicate."""
    picked = [languages[lang] for lang in chosen]
    return Sampled(float(np.mean([each.mean for each in picked])), np.mean([each.draws for each in picked], axis=0))


def judge(
    comparison: Comparison, rows: Mapping[str, Mapping[str, Sampled]], seeds: Mapping[str, int], targets: Sequence[str]
) -> Judged:
    """Estimates the difference a - b in each target language that both rows have, and in the mean over these.

    Raises:
        DataError: There is no such language.
    """
    a, b = rows[comparison.a], rows[comparison.b]
    shared = [lang for lang in targets if lang in a and lang in b]
    if not shared:
        raise DataError(f"{comparison.a} and {comparison.b} were measured in no language that both have")
    found = {lang: (a[lang] - b[lang]).estimate() for lang in shared}
    found[ALL] = (over(a, shared) - over(b, shared)).estimate()
    return Judged(comparison, found, (seeds[comparison.a], seeds[comparison.b]))


def _seed_weights(seeds: Sequence[int], replicates: int, seed: int) -> np.ndarray:
    """(replicates, runs), rows sum to 1. A function of the seeds: rows with the same ones are drawn together."""
    n = len(seeds)
    if n == 1:
        return np.ones((replicates, 1))
    random = np.random.default_rng([seed, n, *seeds])
    return random.multinomial(n - 1, np.full(n, 1 / n), size=replicates) / (n - 1)


def _check_same_queries(outcomes: Sequence[MeasuredRun]) -> None:
    first: dict[str, MeasuredRun] = {}
    for outcome in outcomes:
        for lang, table in outcome.tables.items():
            known = first.setdefault(lang, outcome)
            same = known.result.dataset_digest == outcome.result.dataset_digest and np.array_equal(
                known.tables[lang][:, 6:], table[:, 6:]
            )
            if not same:
                raise DataError(
                    f"{known.result.name} and {outcome.result.name} were asked different queries ({lang}): test sets,"
                    " galleries or captions differ, or which captions are blank (of translations, where those are"
                    " asked; `captions_blank` in their results), so they cannot be compared item by item"
                )
