"""From an encoded gallery and its queries to results: ranks, metrics, intervals and examples by language.

Encoding is in `encoding.py`, ranks come from `retrieval.py`, metrics from `protocols.py`, the example queries from
`examples.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ccr_dist.evaluate import retrieval
from ccr_dist.evaluate.encoding import Encoded
from ccr_dist.evaluate.examples import Texts, pick
from ccr_dist.evaluate.protocols import language_result
from ccr_dist.evaluate.schema import LanguageResult

SHOWN = 5  # retrieved items of an example


@dataclass(frozen=True)
class Found:
    """One language's result, and the ranks (`retrieval.Ranks`, with each caption's item) that comparisons of runs are
    made from.
    """

    result: LanguageResult
    # t2v (Nt,), v2t (Nv,), item (Nt,), part (Nt,): as in `Queries`; rows (Nv,): row numbers of the gallery
    ranks: dict[str, np.ndarray]


@torch.no_grad()
def results(
    encoded: Encoded,
    *,
    score: retrieval.Score = retrieval.cosine,
    fusion: retrieval.Fusion = retrieval.PLAIN,
    shown: Mapping[str, str] | None = None,
    english_column: str | None = None,
    examples: int = 6,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Found]:
    """Results by language, the same on every rank.

    Args:
        score, fusion: parts of a score, and how they become one (`retrieval.py`).
        shown: language -> aligned column whose texts the examples show (the untranslated ones).
        examples: queries per language whose best items are kept.
        replicates, seed: of the bootstrap.
    Raises:
        NonFiniteError: a score that is NaN.
    """
    group, gallery_rows = encoded.group, encoded.rows
    languages: dict[str, Found] = {}
    for lang, asked in encoded.queries.items():
        item = asked.item
        scoring: dict[str, Any] = {"score": score, "fusion": fusion}
        found = retrieval.ranks(asked.bank, encoded.visual, torch.from_numpy(item), torch.from_numpy(group), **scoring)
        t2v, v2t, v2t_items = (
            ranks.numpy() for ranks in (found.text_to_visual, found.visual_to_text, found.visual_to_text_items)
        )
        assert (t2v > 0).all(), "every caption has a rank"
        picked = pick(item, examples)
        best, scores = retrieval.top_k(asked.bank, encoded.visual, torch.from_numpy(picked), SHOWN, **scoring)
        table = Texts(encoded.dataset, (shown or {}).get(lang, asked.column), english_column)
        kept = []
        for q, top, values in zip(picked, best.tolist(), scores.tolist(), strict=True):
            hits = [
                (gallery_rows[v], round(value, 6), bool(group[v] == group[item[q]]))
                for v, value in zip(top, values, strict=True)
            ]
            kept.append(table.example(asked.rows[q], int(asked.parts[q]), int(t2v[q]), hits))
        counts = {
            "captions_without_item": asked.without_item,
            "captions_blank": asked.blank,
            "groups": len(np.unique(group)),
        }
        if encoded.undescribed is not None:
            counts["items_without_description"] = encoded.undescribed
        result = language_result(
            asked.column,
            t2v,
            v2t,
            v2t_items,
            item,
            counts=counts,
            examples=tuple(kept),
            replicates=replicates,
            seed=seed,
        )
        languages[lang] = Found(
            result, {"t2v": t2v, "v2t": v2t, "item": item, "part": asked.parts, "rows": gallery_rows}
        )
    return languages
