"""Measuring a run or a model on a split: the results file.

Selection is on validation (`validation.py`). The test split is read by `measure` alone, which counts how often it did.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.config import RunConfig, as_dict
from ccr_dist.data.storage.store import replace_atomic, sha256_file
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.environment import environment
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.evaluate.evaluate import results
from ccr_dist.evaluate.schema import RunResult, read_result, written
from ccr_dist.methods.base import Method
from ccr_dist.methods.params import count
from ccr_dist.places import require_writable
from ccr_dist.retriever.model_folder import IN_RUN, is_model, keep_result
from ccr_dist.train.inputs import asked, measured_on
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.subjects import Subject
from ccr_dist.train.validation import blank, encoded, total
from ccr_dist.train.watch.signals import StopRequest


def measure(subject: Subject, strategy: Strategy, *, split: str, again: bool) -> Path:
    """Measures a run or a model on a split, and writes RESULTS/SPLIT.json. Collective.

    An existing result is kept unless `again`, or other weights or another dataset were measured; the file says how
    often the split was read.

    Args:
        subject: what is measured.
        strategy: the processes.
        split: "val" or "test".
        again: measure although there is a result.

    Returns:
        The results file.

    Raises:
        ConfigError: the run is not complete or another one than its config, or no dataset is named.
        DataError: a dataset or column is missing or damaged.
        Stopped: a stop request came before the split was read to its end.
    """
    config, path = subject.config, subject.results / f"{split}.json"
    stop = StopRequest(subject.place)

    def leave(what: str) -> None:
        stop.leave(strategy)

    location = config.data.test if split == "test" else config.data.val
    if location is None:
        raise ConfigError(f"{config.name}: data.test names no dataset")
    dataset = Dataset.open(location)
    found_before: list[tuple[RunResult | None, str | None, dict[str, str]]] = []

    def look() -> None:
        weights, files = subject.weights(), subject.files()
        try:
            found_before.append((read_result(path) if path.exists() else None, weights, files))
        except DataError:
            if not again:
                raise
            found_before.append((None, weights, files))

    strategy.together(look if strategy.main else lambda: None)
    known, weights, files = strategy.agree(found_before[0] if strategy.main else None)
    now = {"weights": weights, "files": files}
    if known is not None and not again and _still_holds(subject, dataset, known, now, path, tell=strategy.main):
        return path
    strategy.together((lambda: require_writable(subject.results)) if strategy.main else lambda: None)
    subject.check(split)
    made: list[Method] = []
    strategy.together(lambda: made.append(subject.build(tell=strategy.main)))
    [method] = made
    if strategy.main:
        for line in subject.notes():
            print(line, file=sys.stderr)
    wrapped = Step(method).to(strategy.device)
    queries = config.method.query_columns(config.data)
    shown = {lang: config.data.queries[lang] for lang in queries}
    fusion = subject.fusion(method, wrapped, strategy, leave)
    chosen = bool(config.stages) or len(method.fusions()) > 1
    before = method.truncated
    test = encoded(config, method, wrapped, strategy, dataset, queries, before=leave)
    truncated = total(strategy, method.truncated - before)
    measured = results(test, score=method.scores, fusion=fusion, shown=shown, english_column=config.data.source)
    found = {lang: each.result for lang, each in measured.items()}

    def write() -> None:
        columns, rules = measured_on(config, dataset)
        validation = subject.selected_on() if chosen else {}
        counts = next(iter(found.values())).counts
        used = [*queries.values(), *config.data.targets.values()]
        used += [column for entry in config.data.texts for column in entry.targets.values()]
        texts = subject.texts_read(dataset)
        result = RunResult(
            name=f"{config.name}-s{config.seed}",
            label=config.row,
            method=config.method.name,
            seed=config.seed,
            dataset=dataset.name,
            split=dataset.split,
            dataset_digest=dataset.digest,
            items=counts["items"],
            groups=counts["groups"],
            languages=found,
            test_reads=((known.test_reads or 0) if known else 0) + 1,
            selection=f"{config.select} on {config.data.val}" if chosen else None,
            columns=columns,
            rules=rules,
            provenance=subject.provenance(dataset, used),
            attribution=_attribution(dataset),
            config=as_dict(config),
            meta={
                "score": str(fusion),
                "truncated": truncated,
                "parameters": count(method),
                **({"weights": weights} if weights else {}),
                **({"files": files} if files else {}),
                **({"validation": validation} if validation else {}),
                **({"texts": texts} if texts else {}),
                **strategy.facts,
                **environment(),
            },
        )
        subject.results.mkdir(parents=True, exist_ok=True)
        ranks = subject.results / f"{split}.ranks.npz"
        keep_ranks(ranks, {lang: each.ranks for lang, each in measured.items()})
        replace_atomic(path, written(result.model_copy(update={"meta": {**result.meta, "ranks": sha256_file(ranks)}})))
        if is_model(subject.place / IN_RUN):
            keep_result(subject.place / IN_RUN, path)
        cut = f"; {truncated} texts were longer than the model reads, and cut" if truncated else ""
        print(
            f"{path}: written{cut}{blank({lang: each.counts['captions_blank'] for lang, each in found.items()})}",
            flush=True,
        )

    strategy.together(write if strategy.main else lambda: None)
    return path


def _still_holds(
    subject: Subject, dataset: Dataset, known: RunResult, now: Mapping[str, Any], path: Path, *, tell: bool
) -> bool:
    """Whether a result is of these weights and data; says which it is. now: of the subject, "weights" and "files"."""
    columns, rules = _read_now(subject.config, dataset, known.columns) if known.columns else (None, None)
    validation = known.meta.get("validation") and not subject.config.stages
    compared = (
        ("weights", known.meta.get("weights"), now["weights"]),
        ("content of base weights", known.meta.get("files"), now["files"] or None),
        ("validation data", known.meta.get("validation"), subject.selected_on() or None if validation else None),
        ("dataset", known.dataset_digest, dataset.digest),
        ("content of columns", known.columns or None, columns),
        ("rule for pictures", known.rules or None, rules),
    )
    changed = [what for what, there, now in compared if there is not None and now is not None and there != now]
    if tell and changed:
        print(f"{path}: was measured with another {' and '.join(changed)}; measuring again", flush=True)
    elif tell:
        print(f"{path}: measured already; --again measures again and counts it", flush=True)
    return not changed


def _read_now(
    config: RunConfig, dataset: Dataset, known: Mapping[str, str]
) -> tuple[dict[str, str] | None, dict[str, int] | None]:
    """`measured_on`; nothing where a column is gone: a result that is there stays what it is, unless other columns
    than the `known` ones are asked for.
    """
    try:
        return measured_on(config, dataset)
    except DataError:
        if any(column not in known for _, column in asked(config)):
            raise
        return None, None


def keep_ranks(path: Path, ranks: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """RUN/results/SPLIT.ranks.npz: `<language>/<array>` of `evaluate.Found.ranks`, for paired comparisons of runs."""
    arrays: dict[str, Any] = {
        f"{lang}/{name}": array.astype(np.int32) for lang, found in ranks.items() for name, array in found.items()
    }
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    replace_atomic(path, data.getvalue())


def _attribution(dataset: Dataset) -> tuple[str, ...]:
    """Author and licence of everything that is shown, as the columns' provenance has them."""
    lines = []
    for name in dataset.columns():
        made = dataset.column(name).provenance
        if "licence" in made:
            lines.append(", ".join(str(made[key]) for key in ("author", "licence", "url") if key in made))
    return tuple(dict.fromkeys(lines))
