"""The report of several runs in one folder: `results.csv`, `results.json`, and the page `report.html`."""

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
    """Writes results.json, results.csv and report.html (one file, nothing loaded from elsewhere) in the folder `out`;
    the page's path.

    Args: `notes`: paragraphs; `images`: item key -> picture, or None for a tile with the key; `curves`: label ->
    training logs, JSONL with `step`, and `loss` or (where `event` is "validation") the selection metric.
    """
    out, rows = Path(out), aggregate(results)
    out.mkdir(parents=True, exist_ok=True)
    html = page(results, rows, title=title, notes=notes, images=images, curves=curves or {})
    replace_atomic(out / "results.json", json.dumps(to_json(results, rows), ensure_ascii=False, indent=1).encode())
    replace_atomic(out / "results.csv", to_csv(rows).encode())
    replace_atomic(out / "report.html", html.encode())
    return out / "report.html"
