"""Writes the report of several runs: `results.csv`, `results.json`, and the page `report.html`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.evaluate.page import page
from ccr_dist.evaluate.summaries import Results, aggregate
from ccr_dist.evaluate.tables import to_csv, to_json


def write_report(
    results: Results,
    out: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    images: Callable[[str], bytes | None] = lambda key: None,
    curves: Mapping[str, Sequence[str | Path]] | None = None,
) -> Path:
    """Writes results.json, results.csv and report.html, a page that loads nothing from elsewhere.

    Args:
        results: the runs.
        out: folder; made if it is missing.
        title: of the page.
        notes: paragraphs below the title.
        images: item key -> bytes of its picture; None: the key is shown instead.
        curves: label -> training logs: JSON lines with `step`, and `loss` or, where `event` is "validation", the
            selection metric.

    Returns:
        Path of the page.

    Raises:
        DataError: results cannot be compared, a picture cannot be decoded, or a log cannot be read.
    """
    out, rows = Path(out), aggregate(results)
    out.mkdir(parents=True, exist_ok=True)
    html = page(results, rows, title=title, notes=notes, images=images, curves=curves or {})
    replace_atomic(out / "results.json", json.dumps(to_json(results, rows), ensure_ascii=False, indent=1).encode())
    replace_atomic(out / "results.csv", to_csv(rows).encode())
    replace_atomic(out / "report.html", html.encode())
    return out / "report.html"
