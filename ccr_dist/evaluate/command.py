"""The command `report`: finds the results of run folders, their logs and the pictures for the examples, and hands them
to `report.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ccr_dist import terminal
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.evaluate.report import write_report
from ccr_dist.evaluate.schema import unrecorded
from ccr_dist.evaluate.summaries import aggregate, collect
from ccr_dist.evaluate.tables import table
from ccr_dist.places import require_writable


def report(
    runs: Sequence[Path], *, out: Path, split: str, title: str, notes: Sequence[str], pictures: Path | None
) -> None:
    """Print the table of `runs` (run folders or results files) and write OUT/report.html, results.json and
    results.csv.
    """
    require_writable(out)
    files = [_results_file(run, split) for run in runs]
    results = collect(files)
    rows = aggregate(results)
    if len(results.runs) > 1 and (note := unrecorded(results.runs)):
        print(note, file=sys.stderr)
        notes = [*notes, note]
    curves: dict[str, list[str | Path]] = {}
    for file, run in zip(files, results.runs, strict=True):
        log = file.parent.parent / "log.jsonl"
        if log.exists():
            curves.setdefault(run.label, []).append(log)
    page = write_report(results, out, title=title, notes=notes, images=_pictures(pictures), curves=curves)
    console = terminal.console()
    console.print(table(rows, title))
    console.print(f"{page.resolve()}", soft_wrap=True)


def _results_file(run: Path, split: str) -> Path:
    if run.is_file():
        return run
    file = run / "results" / f"{split}.json"
    if not file.exists():
        raise DataError(
            f"{file}: no such file: the run was not measured on {split} yet. `ccr-dist evaluate CONFIG --split"
            f" {split}`{' (or `train CONFIG --test`)' if split == 'test' else ''} does that"
        )
    return file


def _pictures(path: Path | None) -> Callable[[str], bytes | None]:
    """Item key -> picture bytes of a dataset; nothing without one."""
    if path is None:
        return lambda key: None
    dataset = Dataset.open(path)
    column = dataset.column("image")
    places = {key: (shard, row) for shard in range(len(dataset.shards)) for row, key in enumerate(dataset.keys(shard))}
    return lambda key: column.value(*places[key]) if key in places else None
