"""Measuring a method with human captions: validation during training, and the results file of a run.

Selection is on validation. The test split is read by `measure_run(split="test")` alone, which counts how often it did.
"""

from __future__ import annotations

import io
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccr_dist.config import ENGLISH, RunConfig, as_dict
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.storage.store import replace_atomic, sha256_file
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.inspect import origin_of
from ccr_dist.environment import environment
from ccr_dist.errors import CheckpointError, ConfigError, DataError, require_writable
from ccr_dist.evaluate.encoding import Encoded, Encoders, Encoding, EvaluatedColumns
from ccr_dist.evaluate.evaluate import results
from ccr_dist.evaluate.protocols import RECALL_NAMES
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.evaluate.schema import RunResult, read_result, written
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method, learnt_languages
from ccr_dist.methods.params import count
from ccr_dist.models import tensorfile
from ccr_dist.train.assemble import check_columns, open_datasets
from ccr_dist.train.cached_features import of_another_rule, read_pictures
from ccr_dist.train.inputs import asked, measured_on
from ccr_dist.train.state.checkpoint import restore_weights
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.watch.signals import StopRequest

SELECTABLE = (*RECALL_NAMES, "SumR", "mR")


def encoded(
    config: RunConfig,
    method: Method,
    wrapped: nn.Module | Engine,
    strategy: Strategy,
    dataset: Dataset,
    queries: dict[str, str],
    *,
    before: Callable[[str], None] = lambda what: None,
    alive: Callable[[], None] = lambda: None,
) -> Encoded:
    """Gallery and queries as the method encodes them, on all ranks. Leaves the modules in eval mode.

    before: as for `evaluate.encoding.Encoding`. alive: called for every block.
    """
    needs, companions = config.method.gallery(), config.method.companions(config.data)

    def encode_text(texts: Sequence[str], lang: str, companion: Sequence[str]) -> dict[str, Tensor]:
        alive()
        with strategy.autocast():
            bank = wrapped("encode_text", texts, lang, companion)
        return {name: bank[name].float() for name in method.text_parts}

    def encode_visual(visual: Tensor, mask: Tensor | None, description: Sequence[str]) -> dict[str, Tensor]:
        alive()
        with strategy.autocast():
            bank = wrapped("encode_visual", visual, mask, description)
        return {name: bank[name].float() for name in method.visual_parts}

    wrapped.eval()
    encoders = Encoders(
        encode_text,
        encode_visual,
        transform=method.backbone.image_transform(),
        device=strategy.device,
        lockstep=isinstance(wrapped, Engine) and not wrapped.replicated,
    )
    columns = EvaluatedColumns(
        queries,
        config.data.visual,
        many="tokens" in needs,
        description=config.data.description if "description" in needs else None,
        companions={lang: column for lang, column in companions.items() if lang in queries},
        group=config.data.group,
    )
    runtime = config.runtime
    return Encoding(encoders, dataset, columns, batch=runtime.eval_batch, workers=runtime.workers, before=before).run()


def selection_queries(config: RunConfig) -> dict[str, str]:
    """Language -> validation column that weights are selected by. Raises ConfigError where nothing can be selected
    by.
    """
    if config.select not in SELECTABLE:
        raise ConfigError(f"select: {config.select!r} is no metric to select by; choose one of {', '.join(SELECTABLE)}")
    columns, wanted = (
        config.method.query_columns(config.data),
        learnt_languages(config) or (ENGLISH,),
    )
    queries = {lang: columns[lang] for lang in wanted if lang in columns}
    if not queries:
        raise ConfigError(
            f"data.queries has no captions in {', '.join(wanted)}, so nothing can be selected on validation"
        )
    return queries


def validate(
    config: RunConfig, method: Method, wrapped: nn.Module | Engine, strategy: Strategy, **watched: Any
) -> tuple[float, dict[str, Any]]:
    """The selection metric on the validation split, mean over the learnt languages, and lines for the log.

    Leaves the modules in eval mode. watched: `before` and `alive` of `encoded`.
    """
    found = results(
        _validation(config, method, wrapped, strategy, **watched),
        score=method.scores,
        fusion=method.fusions()[0],
        replicates=0,
        examples=0,
    )
    metrics = {lang: each.result.metrics for lang, each in found.items()}
    value = statistics.fmean(each[config.select] for each in metrics.values())
    lines = {
        f"{lang}/{key}": each[key] for lang, each in metrics.items() for key in (config.select, "t2v_R1", "t2v_R10")
    }
    lines |= {
        f"{lang}/captions_blank": n for lang, each in found.items() if (n := each.result.counts["captions_blank"])
    }
    return value, {config.select: value, **lines}


def _validation(
    config: RunConfig, method: Method, wrapped: nn.Module | Engine, strategy: Strategy, **watched: Any
) -> Encoded:
    return encoded(
        config, method, wrapped, strategy, Dataset.open(config.data.val), selection_queries(config), **watched
    )


def chosen_fusion(
    config: RunConfig, method: Method, wrapped: nn.Module | Engine, strategy: Strategy, **watched: Any
) -> Fusion:
    """Of the method's ways to fuse its scores, the one that validation likes best; with a single one nothing is
    measured.
    """
    candidates = method.fusions()
    if len(candidates) == 1:
        return candidates[0]
    val = _validation(config, method, wrapped, strategy, **watched)

    def value(fusion: Fusion) -> float:
        found = results(val, score=method.scores, fusion=fusion, replicates=0, examples=0)
        return statistics.fmean(each.result.metrics[config.select] for each in found.values())

    return max(candidates, key=value)  # the first of equals


def measure_run(config: RunConfig, strategy: Strategy, *, split: str, again: bool) -> Path:
    """Measure the selected weights of a run, or an untrained method, and write RUN/results/SPLIT.json.

    An existing result is kept unless `again`, or other weights or another dataset were measured; the file
    says how often the split was read by this run. Raises ConfigError when the run is not complete or another one than
    `config`, Stopped when a stop request came before the split was read to its end.
    """
    folder = RunFolder(config.folder)
    stop = StopRequest(folder.path)

    def leave(what: str) -> None:
        stop.leave(strategy)

    path = folder.results / f"{split}.json"
    location = config.data.test if split == "test" else config.data.val
    if location is None:
        raise ConfigError(f"{config.name}: data.test names no dataset")
    dataset = Dataset.open(location)
    found_before: list[tuple[RunResult | None, str | None]] = []

    def look() -> None:
        there = folder.path / "model.safetensors"
        if config.stages and there.exists():
            folder.require_same(config)  # a result of another config is no answer, either
        weights = sha256_file(there) if config.stages and there.exists() else None
        try:
            found_before.append((read_result(path) if path.exists() else None, weights))
        except DataError:
            if not again:
                raise
            found_before.append((None, weights))

    strategy.together(look if strategy.main else lambda: None)
    known, weights = strategy.agree(found_before[0] if strategy.main else None)
    if known is not None and not again:
        columns, rules = _read_now(config, dataset, known.columns) if known.columns else (None, None)
        compared = (
            ("weights", known.meta.get("weights"), weights),
            ("dataset", known.dataset_digest, dataset.digest),
            ("content of columns", known.columns or None, columns),
            ("rule for pictures", known.rules or None, rules),
        )
        changed = [what for what, there, now in compared if there is not None and now is not None and there != now]
        if strategy.main:
            said = (
                f"was measured with another {' and '.join(changed)}; measuring again"
                if changed
                else "measured already; --again"
            )
            print(f"{path}: {said}" + ("" if changed else " measures again and counts it"), flush=True)
        if not changed:
            return path
    strategy.together((lambda: require_writable(folder.results)) if strategy.main else lambda: None)
    check_columns(config)
    made: list[tuple[Method, Step]] = []
    strategy.together(lambda: made.append(trained_method(config, folder, tell=strategy.main)))
    [(method, step)] = made
    trained_on = open_datasets(
        [*config.data.train, *(each for stage in config.stages.values() for each in stage.train or ())]
    )
    if strategy.main and read_pictures(folder.identity(), trained_on, config.data.visual):
        for line in of_another_rule(folder.identity(), {"pictures": VERSION}):
            print(f"{folder.path}: {line}", file=sys.stderr)
    wrapped = step.to(strategy.device)
    queries = config.method.query_columns(config.data)
    shown = {lang: config.data.queries[lang] for lang in queries}
    fusion = chosen_fusion(config, method, wrapped, strategy, before=leave)
    before = method.truncated
    test = encoded(config, method, wrapped, strategy, dataset, queries, before=leave)
    truncated = total(strategy, method.truncated - before)
    measured = results(test, score=method.scores, fusion=fusion, shown=shown, english_column=config.data.source)
    found = {lang: each.result for lang, each in measured.items()}

    def write() -> None:
        columns, rules = measured_on(config, dataset)
        counts = next(iter(found.values())).counts
        used = [*queries.values(), *config.data.targets.values()]
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
            selection=f"{config.select} on {config.data.val}" if config.stages else None,
            columns=columns,
            rules=rules,
            provenance=_provenance([Dataset.open(entry.path) for entry in config.data.train] + [dataset], used),
            attribution=_attribution(dataset),
            config=as_dict(config),
            meta={
                "score": str(fusion),
                "truncated": truncated,
                "parameters": count(method),
                **({"weights": weights} if weights else {}),
                **strategy.facts,
                **environment(),
            },
        )
        folder.results.mkdir(parents=True, exist_ok=True)
        ranks = folder.results / f"{split}.ranks.npz"
        keep_ranks(ranks, {lang: each.ranks for lang, each in measured.items()})
        replace_atomic(path, written(result.model_copy(update={"meta": {**result.meta, "ranks": sha256_file(ranks)}})))
        cut = f"; {truncated} texts were longer than the model reads, and cut" if truncated else ""
        print(
            f"{path}: written{cut}{blank({lang: each.counts['captions_blank'] for lang, each in found.items()})}",
            flush=True,
        )

    strategy.together(write if strategy.main else lambda: None)
    return path


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


def blank(counts: Mapping[str, int]) -> str:
    """Tells of captions by language that are no queries; nothing where there are none."""
    some = ", ".join(f"{n} in {lang}" for lang, n in counts.items() if n)
    return f"; blank captions are no queries: {some}" if some else ""


def total(strategy: Strategy, count: int) -> int:
    """Sum of a count over ranks."""
    return int(strategy.sum(torch.tensor(count, device=strategy.device)))


def keep_ranks(path: Path, ranks: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """RUN/results/SPLIT.ranks.npz: `<language>/<array>` of `evaluate.Found.ranks`, for paired comparisons of runs."""
    arrays: dict[str, Any] = {
        f"{lang}/{name}": array.astype(np.int32) for lang, found in ranks.items() for name, array in found.items()
    }
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    replace_atomic(path, data.getvalue())


def trained_method(config: RunConfig, folder: RunFolder, *, tell: bool = True) -> tuple[Method, Step]:
    """A run's method with its selected weights (`model.safetensors`); an untrained method as it is built.

    tell: say it where the weights carry no digest (one rank of several does).
    """
    if not config.stages:
        method = build_method(config, state={})
        return method, Step(method)
    if not (folder.path / "model.safetensors").exists():
        raise ConfigError(
            f"{folder.path} is not a complete run (no model.safetensors); train it first, with the same config and seed"
        )
    folder.require_same(config)
    total_steps = sum(stage.steps for stage in config.stages.values())
    weights, facts = tensorfile.read(folder.path / "model.safetensors")
    if facts is None:
        if tell:
            print(f"{folder.path}/model.safetensors: it has no digest (an earlier version wrote it)", file=sys.stderr)
    elif facts.get("step") != total_steps:
        raise ConfigError(
            f"{folder.path}/model.safetensors holds the weights of step {facts.get('step')}, and the config trains"
            f" {total_steps} steps; train it first, with the same config and seed"
        )
    state = folder.method_state()
    if state is None:
        raise CheckpointError(f"{folder.path}/method.json is missing; training with the same command makes it again")
    method = build_method(config, state=state)
    step = Step(method)
    own = {n: p for n, p in step.named_parameters() if n.startswith("net.") or n in weights}
    restore_weights(own, weights, str(folder.path / "model.safetensors"))
    return method, step


def _provenance(datasets: Sequence[Dataset], columns: Sequence[str]) -> dict[str, str]:
    """Column -> who made it, in words."""
    found = [(name, dataset.column(name)) for dataset in datasets for name in columns if name in dataset.columns()]
    return {name: origin_of(column.plan, column.provenance) for name, column in found}


def _attribution(dataset: Dataset) -> tuple[str, ...]:
    """Author and licence of everything that is shown, as the columns' provenance has them."""
    lines = []
    for name in dataset.columns():
        made = dataset.column(name).provenance
        if "licence" in made:
            lines.append(", ".join(str(made[key]) for key in ("author", "licence", "url") if key in made))
    return tuple(dict.fromkeys(lines))
