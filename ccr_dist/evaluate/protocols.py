"""Metrics from ranks: recalls, their sums, mean reciprocal rank, median rank, bootstrap intervals. NumPy only.

There are two published ways to count visual→text, which differ by several points of SumR when items have several
captions. Candidates are captions (LECCR, NRCCR): the primary number here. Or candidates are items, each with its best
caption (MLA, DASD): reported beside it as `item_level`. Recalls are percent of all queries.
"""

from __future__ import annotations

import numpy as np

from ccr_dist.errors import DataError
from ccr_dist.evaluate.schema import Example, LanguageResult

RECALLS = (1, 5, 10)
CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
DIRECTIONS = ("t2v", "v2t")
RECALL_NAMES = tuple(f"{direction}_R{k}" for direction in DIRECTIONS for k in RECALLS)
REPLICATES_AT_ONCE = 64


def recall(ranks: np.ndarray, k: int) -> float:
    """Percent of queries whose best correct answer is among the first k.

    Args:
        ranks: (n,) from 1.
        k: how many answers count.
    """
    return 100.0 * float(np.mean(ranks <= k))


def metrics(t2v: np.ndarray, v2t: np.ndarray) -> dict[str, float]:
    """The metrics of one language.

    Args:
        t2v: (Nt,) ranks of the captions, from 1.
        v2t: (Nq,) ranks of the items that are queries, from 1.

    Returns:
        Metrics by name (`schema.py`). SumR is the sum of the six recalls, mR their mean.
    """
    result: dict[str, float] = {}
    for direction, ranks in zip(DIRECTIONS, (t2v, v2t), strict=True):
        result |= {f"{direction}_R{k}": recall(ranks, k) for k in RECALLS}
        result[f"{direction}_MRR"] = float(np.mean(1.0 / ranks))
        result[f"{direction}_median_rank"] = float(np.median(ranks))
    result["SumR"] = sum(result[name] for name in RECALL_NAMES)
    result["mR"] = result["SumR"] / len(RECALL_NAMES)
    return result


def hits(t2v: np.ndarray, v2t: np.ndarray, text_item: np.ndarray) -> np.ndarray:
    """Counts from which recalls of any sample of items can be added up.

    Args:
        t2v: (Nt,) ranks of the captions, from 1.
        v2t: (Nv,) ranks of the items, from 1; 0: not a query.
        text_item: (Nt,) the item of each caption.

    Returns:
        (Nv, 8) of each item: its captions with a hit at 1, 5, 10; 1 for its own hit at 1, 5, 10; its captions; 1 if it
        is a query.
    """
    items = len(v2t)
    columns: list[np.ndarray] = [np.bincount(text_item, weights=t2v <= k, minlength=items) for k in RECALLS]
    columns += [(v2t > 0) & (v2t <= k) for k in RECALLS] + [np.bincount(text_item, minlength=items), v2t > 0]
    return np.stack(columns, axis=1).astype(np.float64)


def recalls(sums: np.ndarray) -> np.ndarray:
    """The six recalls (..., 6) in percent, from sums (..., 8) of `hits` over items. NaN where there is no query."""
    with np.errstate(invalid="ignore"):  # a small sample may hold no query of one direction
        return 100.0 * sums[..., :6] / np.repeat(sums[..., 6:], 3, axis=-1)


def bootstrap(
    t2v: np.ndarray,
    v2t: np.ndarray,
    text_item: np.ndarray,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals (Efron 1979) of the six recalls, SumR and mR, from resampling items together with their
    captions.

    Args:
        t2v: (Nt,) ranks of the captions, from 1.
        v2t: (Nv,) ranks of the items, from 1; 0: not a query.
        text_item: (Nt,) the item of each caption. Items without captions that are no queries are left out.
        replicates: samples; 0: no intervals.
        level: share of the samples between the ends.
        seed: of the samples.

    Returns:
        (low, high) in percent by the name of the metric.
    """
    if replicates == 0:
        return {}
    table = hits(t2v, v2t, text_item)
    table = table[table[:, -2:].any(axis=1)]  # items in use
    random, chance = np.random.default_rng(seed), np.full(len(table), 1 / len(table))
    draws = []
    for start in range(0, replicates, REPLICATES_AT_ONCE):
        times = random.multinomial(len(table), chance, size=min(REPLICATES_AT_ONCE, replicates - start))
        draws.append(recalls(times @ table))
    found = np.concatenate(draws)
    total = found.sum(axis=1, keepdims=True)
    ends = np.nanpercentile(
        np.concatenate([found, total, total / 6], axis=1), [50 - 50 * level, 50 + 50 * level], axis=0
    )
    return {
        name: (float(low), float(high)) for name, low, high in zip((*RECALL_NAMES, "SumR", "mR"), *ends, strict=True)
    }


def language_result(
    column: str,
    text_to_visual: np.ndarray,
    visual_to_text: np.ndarray,
    visual_to_text_items: np.ndarray,
    text_item: np.ndarray,
    *,
    counts: dict[str, int] | None = None,
    examples: tuple[Example, ...] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> LanguageResult:
    """Everything that is reported about one language.

    Args:
        column: of its captions.
        text_to_visual: (Nt,) ranks of the captions, as the other arrays of ranks from `retrieval.Ranks`.
        visual_to_text: (Nv,) ranks of the items among captions; 0: not a query.
        visual_to_text_items: (Nv,) ranks of the items among items.
        text_item: (Nt,) the item of each caption.
        counts: further counts, by name.
        examples: queries for people to look at.
        replicates, seed: of the bootstrap.

    Raises:
        DataError: there is no query.
    """
    if not len(text_to_visual) or not (visual_to_text > 0).any():
        raise DataError(f"column {column} has no query to count")
    asked, asked_items = (ranks[ranks > 0] for ranks in (visual_to_text, visual_to_text_items))
    return LanguageResult(
        column=column,
        metrics=metrics(text_to_visual, asked),
        item_level=metrics(text_to_visual, asked_items),
        ci=bootstrap(text_to_visual, visual_to_text, text_item, replicates=replicates, seed=seed),
        curve={
            "k": CURVE,
            "t2v": tuple(recall(text_to_visual, k) for k in CURVE),
            "v2t": tuple(recall(asked, k) for k in CURVE),
        },
        counts={
            "captions": len(text_to_visual),
            "items": len(visual_to_text),
            "queries_v2t": len(asked),
            "items_without_caption": int(np.sum(np.bincount(text_item, minlength=len(visual_to_text)) == 0)),
            **(counts or {}),
        },
        examples=examples,
    )
