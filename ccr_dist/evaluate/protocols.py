"""Metrics from ranks: recalls, their sums, mean reciprocal rank, median rank, bootstrap intervals. Numpy only.

Two published ways to count visual→text exist (methods differ by several points of SumR when items have several
captions): candidates are captions (LECCR, NRCCR; primary here) or items merged by their best caption (MLA, DASD;
reported beside it as `item_level`). A median rank is that of the queries; recalls are percent of all queries.
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
    """Percent of queries whose best correct answer is among the first k."""
    return 100.0 * float(np.mean(ranks <= k))


def metrics(t2v: np.ndarray, v2t: np.ndarray) -> dict[str, float]:
    """Ranks (from 1) of all queries of both directions -> metrics by name, see `schema.py`. SumR adds the six recalls,
    mR is their mean.
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
    """(items, 8), of each item: hits at 1, 5, 10 of its captions and of itself, its captions, 1 if it is a query. As
    for `bootstrap`.
    """
    items = len(v2t)
    columns: list[np.ndarray] = [np.bincount(text_item, weights=t2v <= k, minlength=items) for k in RECALLS]
    columns += [(v2t > 0) & (v2t <= k) for k in RECALLS] + [np.bincount(text_item, minlength=items), v2t > 0]
    return np.stack(columns, axis=1).astype(np.float64)


def recalls(sums: np.ndarray) -> np.ndarray:
    """Sums (..., 8) of `hits` over items -> the six recalls (..., 6) in percent."""
    with np.errstate(invalid="ignore"):  # a tiny draw may hold no query of one direction: no evidence, not zero
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

    `t2v` (Nt,) ranks; `v2t` (Nv,) ranks, 0 = not a query; `text_item` (Nt,). Items without queries are left out. Empty
    without replicates.
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
    """Everything reported about one language, from the arrays of `retrieval.Ranks`; `counts` are added to the own
    ones.
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
