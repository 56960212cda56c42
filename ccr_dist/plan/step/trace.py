"""What a step of a stage holds and computes on one rank, found without weights and without computing it.

The run's method is built of fake tensors (shapes and types, no memory), and the step's own code runs on them: `Step`,
the losses with the features of all ranks, the backward, gradient caching, the update. A dispatch mode sees every
operator: what it computes, what it reads and writes, and how long its results live (`meter.py`).

Only what touches a fake tensor is fake. Texts, token ids and masks are real, so that tokenisers and packing, which ask
what is in them, work as in a run. Kernels are those of a CPU: fake tensors of a GPU know no autocast and no backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import RunConfig, StageConfig
from ccr_dist.losses.context import Context
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.weightless import without_weights
from ccr_dist.plan.step.fake_rank import (
    FakeStrategy,
    batch_of,
    built,
    conversions,
    fake_processes,
    largest_rows,
    settings_of,
)
from ccr_dist.plan.step.meter import Live, Meter
from ccr_dist.plan.step.operators import Call, Kind
from ccr_dist.plan.step.opinion import Opinion
from ccr_dist.train.assemble import fields_for
from ccr_dist.train.optimizers.optimizer import make_optimizer, rate
from ccr_dist.train.step.auxiliary import AuxiliaryNetworks
from ccr_dist.train.step.passes import Passes
from ccr_dist.train.strategies.fsdp2 import blocks
from ccr_dist.train.strategies.replicated import Single
from ccr_dist.train.strategies.strategy import Step

PHASES = ("forward", "losses", "backward", "update")

__all__ = ["Live", "Trace", "trace"]


@dataclass(frozen=True)
class Trace:
    """A step of one stage on one rank: the one that has most rows.

    Attributes:
        stage: name of the stage.
        world: number of ranks.
        rows: rows of the global batch on this rank.
        micro_batches: forwards of parts of them (1: the batch is not cut).
        precision: fp32, bf16 or fp16.
        checkpointing: whether activations inside blocks are computed again.
        frozen: ELEMENTS of frozen parameters and of buffers.
        trained: ELEMENTS of trained parameters.
        frozen_bytes, trained_bytes: their bytes.
        flops: by phase (forward, losses, backward, update), two a multiplication with addition, of all micro-batches.
        moved: bytes that the same operators read and write, by phase.
        kernels: how many operators were called, by phase.
        operators: the same operators by what they compute, by phase: how often each kind is called.
        sent: collectives of the losses and of auxiliary networks, by phase: how often each.
        activations: bytes of activations and losses at the step's highest moment with whole gradients.
        workspace: bytes of temporaries there.
        gathered: most bytes of features gathered from all ranks at once.
        moments: the moments that may be highest, whatever share of the gradients a strategy keeps.
        tensors: elements of each trained parameter, in the order of the model.
        frozen_tensors: elements of each frozen parameter, likewise.
        blocks: bytes of each frozen block, as fsdp2 gathers them one by one.
        block_runs: how often each of them runs forward, and backward.
        groups: elements of trained parameters in each group of the optimiser.
        whole: bytes of `frozen_bytes` that no strategy cuts: buffers, scalars, copies outside of the step.
        shared: bytes of weights in the step that something outside of it holds, too; fsdp2 cuts only the step's.
        opened: whether some block of `blocks` runs in the forward.
        used: bytes of the step's parameters that it computes with.
        auxiliary: bytes of networks with optimisers of their own, once (their weights).
        average: bytes of a moving average of the weights, whole.
        lazy: bytes of embedding tables whose rows are updated lazily, part of `trained_bytes`.
        opinion: bytes of the same step's peak on one process that holds everything, by torch's MemTracker; None: it
            was not asked.
        notes: what could not be known, a sentence each.
    """

    stage: str
    world: int
    rows: int
    micro_batches: int
    precision: str
    checkpointing: bool
    frozen: int
    trained: int
    frozen_bytes: int
    trained_bytes: int
    flops: dict[str, float]
    moved: dict[str, float]
    kernels: dict[str, int]
    operators: dict[str, dict[Kind, int]]
    sent: dict[str, dict[Call, int]]
    activations: int
    workspace: int
    gathered: int
    moments: tuple[Live, ...] = ()
    tensors: tuple[int, ...] = ()
    frozen_tensors: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    block_runs: tuple[tuple[int, int], ...] = ()
    groups: tuple[int, ...] = ()
    whole: int = 0
    shared: int = 0
    opened: bool = False
    used: int = 0
    auxiliary: int = 0
    average: int = 0
    opinion: int | None = None
    notes: tuple[str, ...] = ()


def trace(
    config: RunConfig,
    stage: str,
    *,
    world: int,
    precision: str | None = None,
    checkpointing: bool | None = None,
    micro_batch: int | None = None,
    tokens: int | None = None,
    texts: Sequence[str] | None = None,
    opinion: bool = False,
) -> Trace:
    """Trace a step of a stage.

    Args:
        config: of the run. Weights that it names need not be there, as long as their architecture is known.
        stage: name of a stage of steps.
        world: number of ranks; the global batch is the config's.
        precision: None: the config's.
        checkpointing: None: the config's.
        micro_batch: rows of a part of the rank's batch; None: the config's; 0: the batch is not cut.
        tokens: positions of a caption, without a prompt; None: as many as the text tower takes.
        opinion: ask torch's MemTracker, too (`opinion.py`); takes about as long again.
        texts: captions for methods that are sized by their vocabulary; None: the training captions, where needed.

    Returns:
        The trace.

    Raises:
        ConfigError: there is no such stage, the architecture of a model is not known without its weights, or the
            step calls something whose FLOPs cannot be counted.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    settings = settings_of(config, stage)
    config = _as_asked(config, precision, checkpointing, micro_batch)
    with fake_processes(world), conversions(), without_weights():
        method = built(config, FakeTensorMode(allow_non_fake_inputs=True), texts)
        return _traced(config, stage, settings, method, world, tokens, opinion)


def _as_asked(
    config: RunConfig, precision: str | None, checkpointing: bool | None, micro_batch: int | None
) -> RunConfig:
    changed: dict[str, Any] = {}
    if precision is not None:
        changed["precision"] = precision
    if checkpointing is not None:
        changed["gradient_checkpointing"] = checkpointing
    if micro_batch is not None:
        changed["micro_batch"] = micro_batch or None
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=changed)})


def _traced(
    config: RunConfig,
    stage: str,
    settings: StageConfig,
    method: Method,
    world: int,
    tokens: int | None,
    opinion: bool,
) -> Trace:
    runtime, step = config.runtime, Step(method)
    strategy = FakeStrategy(world, runtime.precision)
    prefixes = tuple(method.trainable(stage))
    for name, parameter in step.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    trained = {name: p for name, p in step.named_parameters() if p.requires_grad}
    entangled = {f"aux.{key}.{n}": p for key in method.entangled for n, p in method.aux[key].named_parameters()}
    dense = settings.model_copy(update={"lazy_tables": False})
    engine = Single(
        strategy, step, trained | entangled, lambda some: make_optimizer(dense, some, strategy.device), dense
    )
    auxiliary = AuxiliaryNetworks(stage, method, strategy, dense)
    counts = largest_rows(settings.batch, world)
    fields = fields_for(config, config.method.training_stages()[stage])
    batch = batch_of(config, method, fields, stage, counts[0], tokens)
    context = Context(
        seed=config.seed, step=0, rows=counts[0], loss=runtime.contrastive, scope=settings.negatives, counts=counts
    )
    passes = Passes(stage, config, method, strategy, engine, auxiliary)
    for each in (engine, *auxiliary.engines.values()):
        _first_update(each.trained.values(), each.optimizer)
    meter = Meter(f"{config.name}: method {config.method.name!r}, stage '{stage}'")
    meter.watch(engine.trained.values())
    for number, block in enumerate(blocks(step)):
        block.register_forward_pre_hook(meter.first_block)
        block.register_forward_hook(partial(meter.block_ran, number))
    engine.train()
    outside = _outside(step, method)
    other = Opinion([step, *method.aux.values(), engine.optimizer, *outside, *batch.tensors()]) if opinion else None
    with other or nullcontext(), meter:
        kept = passes.run(batch, context, step=0, enter=meter.enter)
        meter.enter("reduce")
        strategy.sum_gradients(entangled.values())
        meter.enter("update")
        engine.update(rate(settings, 0))
        meter.enter("end")
        del kept
    frozen = [p for p in step.parameters() if not p.requires_grad]
    held = sum(map(_bytes, batch.tensors()))
    counted = {phase: meter.operators.sums(phase) for phase in PHASES}
    moments = tuple(live.with_batch(held) for live in meter.moments())
    highest = max(moments, key=lambda live: live.beside + live.gradients)
    owned = sum(p.numel() for p in trained.values())
    fixed = [*_unique(step.buffers()), *outside, *(p for p in frozen if p.ndim == 0)]
    return Trace(
        stage=stage,
        world=world,
        rows=counts[0],
        micro_batches=max(1, passes.cut(context)),
        precision=runtime.precision,
        checkpointing=runtime.gradient_checkpointing,
        frozen=sum(each.numel() for each in [*frozen, *_unique(step.buffers()), *outside]),
        trained=owned,
        frozen_bytes=sum(map(_bytes, [*frozen, *_unique(step.buffers()), *outside])),
        trained_bytes=sum(map(_bytes, trained.values())),
        flops={phase: found[0] for phase, found in counted.items()},
        moved={phase: found[1] for phase, found in counted.items()},
        kernels={phase: found[2] for phase, found in counted.items()},
        operators=meter.operators.frozen(),
        sent=meter.operators.sent(),
        activations=highest.activations + highest.loss,
        workspace=highest.workspace,
        gathered=meter.gathered,
        moments=moments,
        tensors=tuple(p.numel() for p in trained.values()),
        frozen_tensors=tuple(p.numel() for p in frozen),
        blocks=tuple(sum(map(_bytes, _unique(block.parameters()))) for block in blocks(step)),
        block_runs=tuple((meter.runs[n][0], meter.runs[n][1]) for n in range(len(blocks(step)))),
        groups=tuple(sum(p.numel() for p in group["params"]) for group in engine.optimizer.param_groups),
        whole=sum(map(_bytes, fixed)),
        shared=_shared(step, method),
        opened=meter.opened,
        used=sum(_bytes(p) for p in step.parameters() if p.untyped_storage()._cdata in meter.touched),
        auxiliary=sum(_bytes(p) for network in method.aux.values() for p in network.parameters()),
        average=sum(map(_bytes, trained.values())) if settings.ema else 0,
        opinion=other.peak if other else None,
        notes=_notes(config, settings),
    )


def _first_update(parameters: Iterable[nn.Parameter], optimizer: Any) -> None:
    """Makes the state that an optimiser keeps from step to step; it is the strategy's, not the step's."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _outside(step: Step, method: Method) -> list[Tensor]:
    """What the method holds beside the step and its auxiliary networks, such as a teacher; every rank has it whole."""
    inside = {id(each) for module in (step, method.aux) for each in [*module.parameters(), *module.buffers()]}
    modules = [each for each in vars(method).values() if isinstance(each, nn.Module)]
    found = _unique(each for module in modules for each in [*module.parameters(), *module.buffers()])
    return [each for each in found if id(each) not in inside]


def _shared(step: Step, method: Method) -> int:
    """Bytes of the step's parameters that modules outside of it hold, too."""
    inside, own = {id(parameter) for parameter in step.parameters()}, set(map(id, step.modules()))
    held = [each for each in vars(method).values() if isinstance(each, nn.Module)]
    others = [module for each in held for module in each.modules() if id(module) not in own]
    found = [p for module in others for p in module.parameters(recurse=False) if id(p) in inside]
    return sum(map(_bytes, _unique(found)))


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(each): each for each in tensors}.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _notes(config: RunConfig, settings: StageConfig) -> tuple[str, ...]:
    notes = []
    if settings.lazy_tables:
        notes.append("lazy_tables: rows of embedding tables are planned as whole tables, which is more than they take")
    if config.runtime.compile:
        notes.append("runtime.compile is planned as if blocks were not compiled, whose temporaries are fewer")
    if config.runtime.cached_features and config.data.visual == "image":
        notes.append("columns of cached features that would stand in for pictures or captions are not looked for")
    return tuple(notes)
