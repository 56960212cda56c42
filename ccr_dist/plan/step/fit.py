"""What a stage in closed form holds and computes on one rank, found without weights and without computing it.

The method's own `begin`, `statistics` and `solutions` run on fake tensors, in the order in which `train/step/fit.py`
calls them, and the meter of `trace.py` watches. A block of captions stands for all of them: their number is counted in
the datasets, where these are there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config import FitConfig, RunConfig, TextSet
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.stream.matrices import Matrices
from ccr_dist.errors import CcrError, ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.weightless import without_weights
from ccr_dist.plan.step.fake_rank import built, conversions, fake_rows, feature_width, picture_width
from ccr_dist.plan.step.meter import Meter
from ccr_dist.plan.step.operators import Kind
from ccr_dist.train.assemble import fields_for, of_texts, open_datasets, train_sets
from ccr_dist.train.step.fit import add_up

# phases on a rank's device; "solve" is on the CPU
ON_DEVICE = ("begin", "block", "texts", "next", "add", "add_texts", "sums")


@dataclass(frozen=True)
class Captions:
    """What a stage in closed form sums up.

    Attributes:
        total: captions of all blocks.
        block: of the largest block.
        blocks: number of blocks.
        note: what was assumed, a sentence; None: they were counted.
        apart: whether some have no picture beside others that have one, so that they have sums of their own.
        texts: how many of `total` those are, as far as that is known.
    """

    total: int
    block: int
    blocks: int
    note: str | None = None
    apart: bool = False
    texts: int = 0


@dataclass(frozen=True)
class FitTrace:
    """A stage in closed form, on a rank.

    Attributes:
        stage: name of the stage.
        captions: what it sums up.
        frozen_bytes, trained_bytes: of weights; every rank holds all of them.
        sums: bytes of each tensor of sums.
        drawn: bytes of the captions that are drawn before; 0: none are.
        found: bytes of the weights of all solutions.
        operators: by phase, how often each kind is called: "begin" and "solve" once, "block" and "add" a block, "texts"
            and "add_texts" one of captions without pictures that are summed up apart.
        highest: most bytes beside weights at once, by phase: begin, block, texts (the same), next (another one beside
            the sums of those), add and add_texts (both), sums (the same, with what was saved), solve.
        notes: what was assumed, a sentence each.
    """

    stage: str
    captions: Captions
    frozen_bytes: int
    trained_bytes: int
    sums: tuple[int, ...]
    drawn: int
    found: int
    operators: dict[str, dict[Kind, int]]
    highest: dict[str, int]
    notes: tuple[str, ...] = ()


def trace_fit(config: RunConfig, stage: str, *, captions: int | None = None) -> FitTrace:
    """Trace a stage in closed form.

    Args:
        config: of the run. Weights that it names need not be there, as long as their architecture is known.
        stage: name of a stage in closed form.
        captions: how many it sums up; None: they are counted in the datasets.

    Returns:
        The trace; it is the same for any number of ranks.

    Raises:
        ConfigError: the architecture of a model is not known, or captions cannot be counted and `captions` is None.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    fields = fields_for(config, config.method.training_stages()[stage])
    counted = captions_of(config, stage, fields, captions)
    with conversions(), without_weights(), torch.no_grad():
        method = built(config, FakeTensorMode(allow_non_fake_inputs=True), None)
        widths = _widths(config, stage, fields, method)
        meter = Meter(f"{config.name}: method {config.method.name!r}, stage '{stage}'")
        with meter:
            sums, drawn, found = _followed(method, stage, widths, counted, meter)
    modules = [each for each in vars(method).values() if isinstance(each, torch.nn.Module)]
    tensors = {id(each): each for module in modules for each in [*module.parameters(), *module.buffers()]}
    trained = {id(each) for each in method.net.parameters()}
    return FitTrace(
        stage=stage,
        captions=counted,
        frozen_bytes=sum(_bytes(each) for key, each in tensors.items() if key not in trained),
        trained_bytes=sum(_bytes(each) for key, each in tensors.items() if key in trained),
        sums=sums,
        drawn=drawn,
        found=found,
        operators=meter.operators.frozen(),
        highest={live.phase: live.beside for live in meter.moments()},
        notes=() if counted.note is None else (counted.note,),
    )


def _followed(
    method: Method, stage: str, widths: dict[str, int], captions: Captions, meter: Meter
) -> tuple[tuple[int, ...], int, int]:
    """The stage as `FitStage` runs it. Bytes of sums, of drawn captions, and of what was found."""
    lang = next(iter(method.languages), "en")

    def block(pictures: bool = True) -> dict[str, Tensor]:
        given = {k: fake_rows(method, (captions.block, w)) for k, w in widths.items() if pictures or k != "visual"}
        return method.statistics(stage, lang, given)

    meter.enter("begin")
    drawn = 0
    if number := method.drawn(stage):
        query = fake_rows(method, (number, widths["query"]))
        drawn = _bytes(query)
        method.begin(stage, query)
        del query
    fresh: dict[str, Tensor] = {}
    kinds = [(True, "block", "add"), *([(False, "texts", "add_texts")] if captions.apart else [])]
    for pictures, phase, _ in kinds:
        meter.enter(phase)
        add_up(fresh, block(pictures))
    for pictures, _, phase in kinds:
        meter.enter("next")
        more = block(pictures)
        meter.enter(phase)
        add_up(fresh, more)
        del more
    meter.enter("sums")
    saved = dict(fresh)
    fresh.clear()
    for pictures, *_ in [*kinds, kinds[0]]:
        add_up(fresh, block(pictures))
    del fresh
    meter.enter("solve")
    sums = tuple(map(_bytes, saved.values()))
    solved = [weights for _, weights in method.solutions(stage, saved)]
    meter.enter("end")
    return sums, drawn, sum(_bytes(tensor) for weights in solved for tensor in weights.values())


def _widths(config: RunConfig, stage: str, fields: Fields, method: Method) -> dict[str, int]:
    assert fields.source_feature and fields.query_features
    query = next(iter(fields.query_features.values()))
    widths = {
        "query": feature_width(config, stage, query, method, "query"),
        "english": feature_width(config, stage, fields.source_feature, method, "text"),
    }
    if fields.visual:
        widths["visual"] = picture_width(config, stage, fields.visual, method)
    return widths


def captions_of(config: RunConfig, stage: str, fields: Fields, given: int | None) -> Captions:
    """The captions that a stage in closed form sums up.

    Args:
        config: of the run.
        stage: name of the stage.
        fields: the columns that it reads.
        given: how many; None: they are counted.

    Raises:
        ConfigError: they cannot be counted, and none are given.
    """
    settings = config.stages[stage]
    assert isinstance(settings, FitConfig)
    sets = train_sets(config, stage)
    apart = bool(fields.visual) and any(isinstance(each, TextSet) for each in sets)
    try:
        datasets = open_datasets(sets)
        # pictures that features will stand in for have none to count
        read = of_texts(replace(fields, visual=None), sets, datasets)
        matrices = Matrices(datasets, read, rows=settings.batch)
        counts = [matrices.captions(block) for block in matrices.blocks]
        plain = [n for n, block in zip(counts, matrices.blocks, strict=True) if isinstance(sets[block.source], TextSet)]
    except (CcrError, OSError) as error:
        if given is None:
            raise ConfigError(
                f"{config.name}: stage '{stage}' takes as long as there are captions to sum up, which cannot be counted"
                f" ({error}): make the columns first, or say how many with --captions, for example --captions 145000"
            ) from error
        note = (
            f"stage '{stage}': its columns are not there, so that a block of {settings.batch} rows is planned with one"
            " caption a row; with five, its rows take five times the room"
        )
        if apart:
            note += (
                "; captions of data.texts have sums of their own, which are planned, and take as long as if they had"
                " pictures"
            )
        return Captions(given, min(settings.batch, given), -(-given // settings.batch), note, apart)
    total, block = sum(counts), max(counts, default=0)
    if not total:
        raise ConfigError(f"{config.name}: stage '{stage}': the training columns have no vector to sum up")
    texts = sum(plain) if apart else 0
    if given is None:
        return Captions(total, block, len(counts), apart=apart, texts=texts)
    return Captions(given, min(block, given), -(-given // block), apart=apart, texts=texts * given // total)


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
