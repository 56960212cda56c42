"""One training stage: builds its engine and runs its steps.

The loop handles what happens between steps (validation, checkpoints); `guards.py` handles what may go wrong in one.

A step is a pure function of (weights, optimiser state, seed, step): batch, pairings and random state are computed from
the step number, so a run that was killed and resumed ends with the same bits as one that was not (same world and
strategy).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ccr_dist.config import RunConfig, StageConfig
from ccr_dist.data.stream.loader import Batch, Fields, make_loader, on_device
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.losses.context import Context
from ccr_dist.models import tensorfile
from ccr_dist.train.optimizers.optimizer import rate
from ccr_dist.train.record.phases import Phases
from ccr_dist.train.record.speed import Speed, groups_of
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.step.auxiliary import AuxiliaryNetworks
from ccr_dist.train.step.compiled import compile_blocks
from ccr_dist.train.step.ema import Ema
from ccr_dist.train.step.passes import Passes
from ccr_dist.train.step.report import StepReport
from ccr_dist.train.step.stage_checks import beyond_limits, check_stage, stage_advice
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.watch import memory
from ccr_dist.train.watch.guards import Guards, Tell
from ccr_dist.train.watch.signals import StopRequest


class StageRun:
    """A stage on this rank.

    Args:
        name: Name of the stage, in the config and in the method.
        config: The run config.
        step: Backbone and method. `requires_grad` of their parameters is set here.
        strategy: The strategy of the run.
        folder: The run folder.
        stop: Knows whether the run was asked to stop.
        order: Which samples make up each batch.
        datasets: The datasets that `order` refers to.
        fields: The columns to read.
        state: A checkpoint of this stage to resume from; its weights are already in `step`.
        phases: Records what this rank is doing.
        tell: Receives events for the log.
        check: Called after each step; an error that it raises on one rank is raised on all.

    Raises:
        ConfigError: The stage cannot be trained in this way under this strategy.
        CheckpointError: `state` does not fit the model.
    """

    def __init__(
        self,
        name: str,
        *,
        config: RunConfig,
        step: Step,
        strategy: Strategy,
        folder: RunFolder,
        stop: StopRequest,
        order: Order,
        datasets: Sequence[Dataset],
        fields: Fields,
        state: checkpoint.State | None = None,
        phases: Phases | None = None,
        tell: Tell = lambda step, name, values: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.config, self.strategy, self.folder, self.stop = name, config, strategy, folder, stop
        settings, self.method = config.stages[name], step.method
        assert isinstance(settings, StageConfig), f"stage {name} is in closed form"
        self.settings = settings
        self._source = order, datasets, fields
        self._check_log = check
        self.phases = phases or Phases(strategy.device)
        self._speed = Speed(strategy, self.phases, config.runtime)
        self._guards = Guards(config, strategy, folder, tell)
        check_stage(config, name, self.method, strategy)
        prefixes = tuple(self.method.trainable(name))
        for parameter_name, parameter in step.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(prefixes))
        trained = {n: p for n, p in step.named_parameters() if p.requires_grad}
        self._entangled = {
            f"aux.{key}.{n}": p for key in self.method.entangled for n, p in self.method.aux[key].named_parameters()
        }
        self.advice = stage_advice(config, name, step, strategy)
        if config.runtime.compile:
            compile_blocks(step, strategy.name)
        self.engine = strategy.engine(step, trained | self._entangled, self.settings)
        if state:
            self.engine.restore(state.optimizer)
        self._auxiliary = AuxiliaryNetworks(name, self.method, strategy, self.settings)
        for part in (self.engine, self._auxiliary):
            part.reuse_copies()  # a save is on disk before the next one is made (`Training._save`)
        self._limits = {n: ends for n, ends in self.method.limits(name).items() if n in self.engine.trained}
        self.advice += beyond_limits(self._limits, state.weights if state else {})
        self.engine.bound(self._limits)
        # starts as the weights within their limits
        self.ema = Ema(self.engine, self.settings.ema) if self.settings.ema else None
        self._groups = groups_of(list(self.engine.trained))
        if state:
            self._restore_rest(state)

    # State.

    def snapshot(
        self, kept: Mapping[str, nn.Parameter]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Weights by the names of `kept`, state of the optimiser, and the rest, for a checkpoint. Collective."""
        return self.engine.weights(kept), self.engine.optimizer_state(), self.auxiliary_state()

    def auxiliary_state(self) -> dict[str, Tensor]:
        """`ema/<name>` and `AuxiliaryNetworks.state`, for a checkpoint. Collective."""
        return (self.ema.state() if self.ema else {}) | self._auxiliary.state()

    def _restore_rest(self, state: checkpoint.State) -> None:
        self._auxiliary.restore(state.auxiliary)
        if self.ema:
            self.ema.restore(state.auxiliary)
        if self.strategy.scaler is not None and state.values.get("scaler"):
            self.strategy.scaler.load_state_dict(state.values["scaler"])

    # Steps.

    def steps(self, done: RunProgress) -> Iterator[StepReport]:
        """Run the remaining steps of the stage. Collective.

        Args:
            done: Progress of the run; advanced by every step.

        Yields:
            A report after each step.

        Raises:
            Stopped: On all ranks, if the run was asked to stop while it waited for the first batch.
            NonFiniteError: Too many steps had a loss or gradient that is not finite.
            DataBudgetError: Too many broken rows were replaced.
        """
        every, last = self.config.runtime.log_every, self.settings.steps
        batches = self._batches(done.stage_step)
        while True:
            logged = (done.step + 1) % every == 0 or done.stage_step + 1 == last
            waiting = time.perf_counter()
            self.phases.begin(done.step, measured=logged)
            batch = self._next(batches)
            if batch is None:
                return
            begun = time.perf_counter()
            self.engine.train()
            report = self._step(done, batch, logged)
            now = time.perf_counter()
            yield replace(
                report,
                data_s=begun - waiting,
                step_s=now - begun,
                samples_per_s=self.settings.batch / (now - waiting),
            )

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch, or None at the end. An error of one rank is raised on all: the others would wait for it."""
        batch, error = None, None
        try:
            batch = next(batches, None)
        except Exception as caught:
            error = caught
        self._agree(error)
        return batch

    def _agree(self, error: Exception | None) -> None:
        """Raise an error of any rank on all ranks. Collective."""

        def fail() -> None:
            if error is not None:
                raise error

        if self.strategy.any(error is not None):
            self.strategy.together(fail)

    def _batches(self, first: int) -> Iterator[Batch]:
        order, datasets, fields = self._source
        strategy = self.strategy
        loader = make_loader(
            order,
            datasets,
            fields,
            world=strategy.world,
            rank=strategy.rank,
            first=first,
            last=self.settings.steps,
            workers=self.config.runtime.workers,
            transform=self.method.image_transform(),
            pin_memory=strategy.device.type == "cuda",
        )

        def warm_up() -> tuple[list[Batch], Iterator[Batch]]:  # workers start, shards are opened: it may take long
            batches = iter(loader)
            return list(itertools.islice(batches, 1)), batches

        warm = self.stop.unless(warm_up)
        self.stop.leave(strategy)
        assert warm is not None
        batches = itertools.chain(*warm)
        del warm  # it would keep the first batch for as long as the stage lasts
        yield from on_device(batches, strategy.device)

    def _step(self, done: RunProgress, batch: Batch, logged: bool) -> StepReport:
        strategy, settings, phases = self.strategy, self.settings, self.phases
        phases.batch = memory.sizes(batch)
        phases.enter("agree")
        self._speed.begin()
        loss, scope = self.config.runtime.contrastive, settings.negatives
        context = Context(
            seed=self.config.seed, step=done.step, rows=len(batch), device=strategy.device, loss=loss, scope=scope
        )
        passes = Passes(self.name, self.config, self.method, strategy, self.engine, self._auxiliary)
        losses, extra = passes.run(
            batch, context, step=done.step, enter=phases.enter, counting=self._speed.counting(batch.lang)
        )
        self._sum_entangled(not passes.cut(context))
        phases.enter("update")
        trouble = self._trouble(lambda: self._trace(done.step, batch))
        norms = self.engine.norms(self._groups) if logged else {}
        learning_rate = rate(settings, done.stage_step)
        norm = self.engine.update(learning_rate)
        if math.isfinite(norm):
            self.engine.bound(self._limits)
            if self.ema:
                self.ema.update(done.stage_step)
        phases.enter("agree")
        # One small collective carries all that ranks have to agree on.
        trouble = trouble or self._trouble(self._check_log)
        mine = [*losses.values(), *extra.values(), len(batch.substituted), self.stop.seen(), trouble is not None]
        numbers = [torch.as_tensor(n, dtype=torch.float64, device=strategy.device).detach() for n in mine]
        *sums, substituted, stopping, troubled = strategy.sum(torch.stack(numbers)).tolist()
        terms = dict(zip([*losses, *extra], sums, strict=True))
        total = sum(terms[name] for name in losses)
        report = StepReport(self.name, batch.lang, total, learning_rate, norm, terms, logged, stopping=stopping > 0)
        self._guards.finite(done, batch, report.numbers(), self.engine.refused, scaled=strategy.scaler is not None)
        done.step, done.stage_step = done.step + 1, done.stage_step + 1
        self._guards.substituted(done, batch, int(substituted))
        self._guards.spike(done, batch, total)
        if logged:
            report = replace(report, norms=norms, speed=self._speed.of_step(batch.lang))
        if troubled:
            self._agree(trouble)
        return report

    def _trouble(self, action: Callable[[], None]) -> Exception | None:
        """The error that `action` raises, kept until all ranks can raise it together."""
        try:
            action()
        except Exception as error:
            return error
        return None

    def _sum_entangled(self, scaled: bool) -> None:
        """Sum the gradients of entangled networks, which no wrapper reduces.

        Args:
            scaled: Whether `Engine.backward` multiplied their gradients by the world size (not with cached outputs).
        """
        for parameter in self._entangled.values():
            if parameter.grad is not None and scaled:
                parameter.grad /= self.strategy.world
        self.strategy.sum_gradients(self._entangled.values())

    def _trace(self, step: int, batch: Batch) -> None:
        """Record this rank's samples and the reduced gradients before clipping, for audits and tests."""
        if self.config.runtime.trace == "off":
            return
        line = {"step": step, "k": batch.k, "lang": batch.lang, "slots": batch.slots.tolist(), "items": batch.items}
        self.folder.append(f"trace/rank{self.strategy.rank}.jsonl", line)
        if self.config.runtime.trace == "gradients":
            gradients = self.engine.gradients()
            if self.strategy.main:
                kept = {name: value.detach().cpu().contiguous() for name, value in gradients.items()}
                tensorfile.write(self.folder.path / "trace" / f"gradients-{step:08d}.safetensors", kept)
