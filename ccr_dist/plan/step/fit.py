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

from ccr_dist.config import FitConfig, RunConfig
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.stream.matrices import Matrices
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import CcrError, ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.weightless import without_weights
from ccr_dist.plan.step.fake_rank import built, conversions, fake_rows, feature_width, picture_width
from ccr_dist.plan.step.meter import Meter
from ccr_dist.plan.step.operators import Kind
from ccr_dist.train.inputs import fields_for, train_sets
from ccr_dist.train.step.fit import add_up

ON_DEVICE = ("begin", "block", "next", "add", "sums")  # phases on a rank's device; "solve" is on the CPU


@dataclass(frozen=True)
class Captions:
    """What a stage in closed form sums up.

    Attributes:
        total: captions of all blocks.
        block: of the largest block.
        blocks: number of blocks.
        note: what was assumed, a sentence; None: they were counted.
    """

    total: int
    block: int
    blocks: int
    note: str | None = None


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
        operators: by phase, how often each kind is called: "begin" once, "block" a block, "add" a block, "solve" once.
        highest: most bytes beside weights at once, by phase: begin, block, next (another one beside the sums of the
            first), add (both), sums (the same, with what was saved), solve.
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
            sums, drawn, found = _followed(method, stage, widths, counted.block, meter)
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
    method: Method, stage: str, widths: dict[str, int], rows: int, meter: Meter
) -> tuple[tuple[int, ...], int, int]:
    """The stage as `FitStage` runs it. Bytes of sums, of drawn captions, and of what was found."""
    lang = next(iter(method.languages), "en")

    def block() -> dict[str, Tensor]:
        return method.statistics(stage, lang, {k: fake_rows(method, (rows, width)) for k, width in widths.items()})

    meter.enter("begin")
    drawn = 0
    if number := method.drawn(stage):
        query = fake_rows(method, (number, widths["query"]))
        drawn = _bytes(query)
        method.begin(stage, query)
        del query
    meter.enter("block")
    fresh: dict[str, Tensor] = {}
    add_up(fresh, block())
    meter.enter("next")
    more = block()
    meter.enter("add")
    add_up(fresh, more)
    meter.enter("sums")
    saved = fresh
    fresh = more
    add_up(fresh, block())
    del fresh, more
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
    try:
        datasets = [Dataset.open(each.path) for each in train_sets(config, stage)]
        # pictures that features will stand in for have none to count
        matrices = Matrices(datasets, replace(fields, visual=None), rows=settings.batch)
        counts = [matrices.captions(block) for block in matrices.blocks]
    except (CcrError, OSError) as error:
        if given is None:
            raise ConfigError(
                f"{config.name}: stage '{stage}' takes as long as there are captions to sum up, which cannot be counted"
                f" ({error}): make the columns first, or say how many with --captions, for example --captions 145000"
            ) from error
        block = min(settings.batch, given)
        return Captions(
            given, block, -(-given // block),
            f"stage '{stage}': its columns are not there, so that a block of {settings.batch} rows is planned with one"
            " caption a row; with five, its rows take five times the room",
        )  # fmt: skip
    total, block = sum(counts), max(counts, default=0)
    if not total:
        raise ConfigError(f"{config.name}: stage '{stage}': the training columns have no vector to sum up")
    if given is None:
        return Captions(total, block, len(counts))
    return Captions(given, min(block, given), -(-given // block))


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
