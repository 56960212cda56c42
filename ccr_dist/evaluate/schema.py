"""The results file: what `evaluate` writes for one run and `report` reads. One JSON object per (run, dataset, split).

    {"format": 1,
     "name": "dasd-emoji14-s0",       name of the run
     "label": "DASD",                 row of the table; seeds of one label are averaged
     "method": "dasd",                the method's registered name
     "seed": 0,
     "dataset": "emoji14", "split": "test", "dataset_digest": "…",
     "source_language": "en",         its rows are the ceiling
     "items": 512, "groups": 498,     size of the gallery; number of concepts
     "languages": {"pt": LanguageResult},
     "test_reads": 1,                 how often this run read the split's captions; null: unknown
     "selection": "mR on emoji14/val",
                                      how the weights were chosen; null: nothing was chosen (untrained)
     "columns": {"image": "…", "caption.pt": "…"},
                                      digest of each column that was measured on, and of those that these were made
                                      from; {}: an earlier version wrote the file
     "rules": {"pictures": 1},        number of the rule that opened the gallery's pictures (data/media/pictures.py),
                                      or that separated its "texts" from blanks (data/media/text.py), where known
     "provenance": {"caption.pt.opus": "…"},
                                      columns that the run was trained or queried with -> who made them (MT engine,
                                      humans)
     "attribution": ["Pictures: …, CC BY-SA 4.0"],
     "config": {…},                   the resolved run config
     "meta": {"strategy": …, "world": …, "commit": …, "hardware": …, "versions": {…}, "command": …,
                                      anything; shown as it is
              "texts": {"rows", "concepts", "whole", "within"},
                                      of a run that also read texts without pictures (data.texts): their rows, and how
                                      many of the concepts of this split are a whole text there, or occur as words
              "weights": "…", "ranks": "…",
                                      digests of the weights that were measured, and of SPLIT.ranks.npz
              "digest": "…"}}         of the rest of the file; missing in files of earlier versions

LanguageResult:
    {"column": "caption.pt",
     "metrics": {"t2v_R1", "t2v_R5", "t2v_R10", "t2v_MRR", "t2v_median_rank", "v2t_…" the same, "SumR", "mR"},
                                      percent; MRR from 0 to 1
     "item_level": {…},               the same keys, with visual→text counted over items (MLA, DASD)
     "ci": {"t2v_R1": [low, high], …, "SumR", "mR"},
                                      95 % percentile bootstrap over items
     "curve": {"k": [1, 2, …], "t2v": […], "v2t": […]},
     "counts": {"captions", "items", "groups", "queries_v2t", "items_without_caption", "captions_without_item",
                "captions_blank"},    blank texts are never queries; "captions" counts those that were queries
     "examples": [{"item": key, "query": text, "english": text|null, "rank": 3,
                   "top": [{"item": key, "score": 0.31, "correct": false, "english": text|null}, …]}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ccr_dist.data.storage.checked import parse
from ccr_dist.data.storage.store import digest_json
from ccr_dist.errors import DataError


class Record(BaseModel):
    """Base of the file's objects: immutable, unknown keys are errors, NaN is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Hit(Record):
    """One retrieved item."""

    item: str
    score: float
    correct: bool
    english: str | None = None


class Example(Record):
    """One caption and what it found."""

    item: str
    query: str
    english: str | None = None
    rank: int = Field(ge=1)
    top: tuple[Hit, ...]


class LanguageResult(Record):
    """All numbers of one language."""

    column: str
    metrics: dict[str, float]
    item_level: dict[str, float]
    ci: dict[str, tuple[float, float]]
    curve: dict[str, tuple[float, ...]]
    counts: dict[str, int]
    examples: tuple[Example, ...] = ()


class RunResult(Record):
    """One run on one split of one dataset."""

    format: Literal[1] = 1
    name: str
    label: str
    method: str
    seed: int
    dataset: str
    split: str
    dataset_digest: str
    source_language: str = "en"
    items: int
    groups: int
    languages: dict[str, LanguageResult] = Field(min_length=1)
    test_reads: int | None = None
    selection: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    rules: dict[str, int] = Field(default_factory=dict)
    provenance: dict[str, str] = Field(default_factory=dict)
    attribution: tuple[str, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict)


def written(result: RunResult) -> bytes:
    """The bytes of a results file, with its digest."""
    values = result.model_dump(mode="json")
    values["meta"]["digest"] = _digest(values)
    return json.dumps(values, indent=1, ensure_ascii=False).encode()


def read_result(path: Path) -> RunResult:
    """Reads a results file.

    Raises:
        DataError: the file is missing, damaged, or not a results file.
    """
    try:
        values = parse(path.read_bytes())
        run = RunResult.model_validate(values)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except ValidationError as error:
        wrong = ", ".join(dict.fromkeys(".".join(map(str, e["loc"])) for e in error.errors()[:3]))
        raise DataError(
            f"{path}: not a results file of format 1 (missing or wrong: {wrong or 'everything'}); `ccr-dist evaluate"
            " CONFIG` writes one"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path}: damaged, it is not JSON ({error}); `ccr-dist evaluate … --again` measures again"
        ) from None
    digest = run.meta.get("digest")
    if digest is not None and digest != _digest(values):
        raise DataError(
            f"{path}: damaged, its numbers are not what its digest says; `ccr-dist evaluate … --again` measures again"
        )
    return run


def require_comparable(runs: Iterable[RunResult]) -> None:
    """Checks that results of one split were measured on the same content.

    Args:
        runs: results; those that do not record what they were measured on (`unrecorded`) are not checked.

    Raises:
        DataError: naming two runs, where a column has different bytes, or pictures were opened by different rules.
    """
    known: dict[tuple[str, str, str, str], tuple[str, str | int]] = {}
    for run in runs:
        for kind, found in (("column", run.columns), ("rule", run.rules)):
            for name, value in found.items():
                other, theirs = known.setdefault((run.dataset, run.split, kind, name), (run.name, value))
                if theirs != value:
                    what = (
                        f"column {name} had other content"
                        if kind == "column"
                        else f"{name} were read by rule {theirs} in the first and by rule {value} in the second"
                    )
                    raise DataError(
                        f"{other} and {run.name} were not measured on the same {run.dataset}/{run.split}: {what}, so"
                        " their numbers cannot be compared; measure both on the same columns (`ccr-dist evaluate …"
                        " --again`)"
                    )


def unrecorded(runs: Iterable[RunResult]) -> str | None:
    """A note for people about results that do not record what they were measured on; None if all do."""
    names = sorted({run.name for run in runs if not run.columns})
    if not names:
        return None
    return (
        f"Not recorded in results of an earlier version: which content they were measured on ({', '.join(names)}). They"
        " are compared as if their columns, and the rules that read them, were those of the others; `ccr-dist"
        " evaluate … --again` records it."
    )


def _digest(values: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(values))
    plain.get("meta", {}).pop("digest", None)
    return digest_json(plain)
