"""Measuring a method with human captions: validation during training, and the results file of a run.

Selection is on validation. The test split is read by `measure.py` alone, which counts how often it did.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import ENGLISH, RunConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.encoding import Encoded, Encoders, Encoding, EvaluatedColumns
from ccr_dist.evaluate.evaluate import results
from ccr_dist.evaluate.protocols import RECALL_NAMES
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import learnt_languages
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.strategy import Strategy

UNDETERMINED = "und"  # BCP 47: English captions under this tag take the path of other languages
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
    """Language -> validation column that weights are selected by: captions in the learnt languages; of a method that
    encodes others, too, in those; as the last resort English captions, treated as those of any language. A method on
    top of one that another run has trained: captions in all languages but English.

    Raises:
        ConfigError: There is nothing to select by.
    """
    if config.select not in SELECTABLE:
        raise ConfigError(f"select: {config.select!r} is no metric to select by; choose one of {', '.join(SELECTABLE)}")
    columns = config.method.query_columns(config.data)
    foreign, learnt = tuple(lang for lang in columns if lang != ENGLISH), learnt_languages(config)
    if config.method.learner() is not config.method:
        wanted = foreign
    elif config.method.any_language and not any(lang in columns for lang in learnt):
        if not foreign and ENGLISH in columns:
            return {UNDETERMINED: columns[ENGLISH]}
        wanted = foreign or (ENGLISH,)
    else:
        wanted = learnt or (ENGLISH,)
    queries = {lang: columns[lang] for lang in wanted if lang in columns}
    if not queries:
        raise ConfigError(
            f"data.queries has no captions in {', '.join(wanted) or 'another language than English'}, so nothing can be"
            " selected on validation"
        )
    return queries


def validate(
    config: RunConfig, method: Method, wrapped: nn.Module | Engine, strategy: Strategy, **watched: Any
) -> tuple[float, dict[str, Any]]:
    """The selection metric on the validation split, mean over the learnt languages, and lines for the log.

    Leaves the modules in eval mode. watched: `before` and `alive` of `encoded`.
    """
    found = results(
        encoded_validation(config, method, wrapped, strategy, **watched),
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


def encoded_validation(
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
    val = encoded_validation(config, method, wrapped, strategy, **watched)

    def value(fusion: Fusion) -> float:
        found = results(val, score=method.scores, fusion=fusion, replicates=0, examples=0)
        return statistics.fmean(each.result.metrics[config.select] for each in found.values())

    return max(candidates, key=value)  # the first of equals


def blank(counts: Mapping[str, int]) -> str:
    """Tells of captions by language that are no queries; nothing where there are none."""
    some = ", ".join(f"{n} in {lang}" for lang, n in counts.items() if n)
    return f"; blank captions are no queries: {some}" if some else ""


def total(strategy: Strategy, count: int) -> int:
    """Sum of a count over ranks."""
    return int(strategy.sum(torch.tensor(count, device=strategy.device)))
