"""One training stage: the step itself. What comes between steps (validation, checkpoints) is the loop's; what may go
wrong, `guards.py`'s.

A step is a pure function of (weights, optimiser state, seed, step): batch, pairings and random state are computed from
the step number, so a run that was killed and resumed ends with the same bits as one that was not (same world and
strategy).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import RunConfig
from ccr_dist.data.stream.loader import Batch, Fields, make_loader, on_device
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError
from ccr_dist.losses.context import Context
from ccr_dist.methods.seeding import seed_all
from ccr_dist.models import tensorfile
from ccr_dist.train.optimizers.optimizer import rate
from ccr_dist.train.record.phases import Phases
from ccr_dist.train.record.speed import Speed, groups_of
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.step.compiled import compile_blocks
from ccr_dist.train.step.ema import Ema
from ccr_dist.train.step.micro_batches import CachedOutputs, rounds
from ccr_dist.train.strategies.advice import advice
from ccr_dist.train.strategies.replicated import Single
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.watch import memory
from ccr_dist.train.watch.guards import Guards, Tell
from ccr_dist.train.watch.signals import StopRequest


@dataclass(frozen=True)
class StepReport:
    """What a step was, the same on every rank.

    Attributes:
        stage: its name.
        lang: target language of the batch.
        loss: of the global batch, the sum of the method's terms.
        lr: learning rate.
        grad_norm: norm of the whole gradient before clipping.
        terms: of the method and its auxiliary networks, by name.
        logged: the numbers are for the log, and `norms` and `speed` were measured.
        stopping: some rank was asked to stop.
        norms: norm of the gradient by group of parameters, before clipping.
        speed: numbers of `record/speed.py`.
        data_s: seconds of waiting for the batch.
        step_s: seconds of the step.
        samples_per_s: of the global batch, waiting included.
    """

    stage: str
    lang: str
    loss: float
    lr: float
    grad_norm: float
    terms: Mapping[str, float]
    logged: bool
    stopping: bool
    norms: Mapping[str, float] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    data_s: float = 0.0
    step_s: float = 0.0
    samples_per_s: float = 0.0

    def numbers(self) -> dict[str, Any]:
        """What the step computed, without times."""
        facts = {"stage": self.stage, "lang": self.lang}
        return {**facts, "loss": self.loss, "lr": self.lr, "grad_norm": self.grad_norm, **self.terms}

    def values(self) -> dict[str, Any]:
        """A line of the log."""
        values = self.numbers()
        if self.logged:
            values |= {"norms": dict(self.norms), "speed": dict(self.speed)}
        return values | {"data_s": self.data_s, "step_s": self.step_s, "samples_per_s": self.samples_per_s}


class StageRun:
    """A stage on this rank.

    Args:
        name: of the stage, in the config and in the method.
        step: backbone and method; which of their parameters are trained is set here.
        state: a checkpoint of this stage to resume from; its weights are in `step` already.
        order, datasets, fields: what the stage reads.
        phases: records what this rank is doing.
        tell: takes events for the log.
        check: called after each step; raises what went wrong with them on this rank. It is raised on all ranks.

    Raises:
        ConfigError: the method cannot be trained in this way under this strategy.
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
        self.settings, self.method = config.stages[name], step.method
        self._source = order, datasets, fields
        self._check_log = check
        self.phases = phases or Phases(strategy.device)
        self._speed = Speed(strategy, self.phases, config.runtime)
        self._guards = Guards(config, strategy, folder, tell)
        self._check(config)
        prefixes = tuple(self.method.trainable(name))
        for parameter_name, parameter in step.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(prefixes))
        trained = {n: p for n, p in step.named_parameters() if p.requires_grad}
        self._entangled = {
            f"aux.{key}.{n}": p for key in self.method.entangled for n, p in self.method.aux[key].named_parameters()
        }
        self.advice = self._advice(step)
        if config.runtime.compile:
            compile_blocks(step, strategy.name)
        self.engine = strategy.engine(step, trained | self._entangled, self.settings)
        if state:
            self.engine.restore(state.optimizer)
        self._auxiliary = {
            key: Single(strategy, network, dict(network.named_parameters()), self._adam(key), self.settings)
            for key, network in self.method.aux.items()
        }
        for engine in (self.engine, *self._auxiliary.values()):
            engine.reuse_copies()  # a save is on disk before the next one is made (`Training._save`)
        self._limits = {n: ends for n, ends in self.method.limits(name).items() if n in self.engine.trained}
        self.advice += _beyond(self._limits, state.weights if state else {})
        self.engine.bound(self._limits)
        # starts as the weights within their limits
        self.ema = Ema(self.engine, self.settings.ema) if self.settings.ema else None
        self._groups = groups_of(list(self.engine.trained))
        if state:
            self._restore_rest(state)

    def _check(self, config: RunConfig) -> None:
        if self.method.entangled and not self.strategy.replicated:
            raise ConfigError(
                f"{config.name}: the main optimiser has {', '.join(self.method.entangled)}, too, in this variant of"
                f" {config.method.name}; {self.strategy.name} has it over the wrapped step alone: use ddp"
            )
        if self.settings.ema and self.strategy.name.startswith("zero"):
            raise ConfigError(
                f"{config.name}: stages.{self.name}.ema needs the weights between steps, which {self.strategy.name}"
                " keeps in partitions; use ddp or fsdp2, or leave it out"
            )
        if self.method.keeps_statistics and self.strategy.shards_weights:
            raise ConfigError(
                f"{config.name}: this variant of {config.method.name} keeps running statistics (batch normalisation),"
                f" which are written in a forward, and {self.strategy.name} throws away a forward's parameters: use"
                " ddp, zero1 or zero2, or normalise by layer"
            )
        if config.runtime.micro_batch and self.settings.negatives == "local":
            raise ConfigError(
                f"{config.name}: runtime.micro_batch needs stages.{self.name}.negatives: global; leave one of them out"
            )
        if config.runtime.micro_batch and self.method.rows_interact:
            raise ConfigError(
                f"{config.name}: runtime.micro_batch cuts batches, but rows of a batch meet inside this variant of"
                f" {config.method.name} (batch normalisation); leave it out, or choose another normalisation"
            )

    def _advice(self, step: Step) -> list[str]:
        """What is said about this stage under this strategy before its first step."""
        sizes = {True: 0, False: 0}
        for parameter in step.parameters():
            sizes[parameter.requires_grad] += parameter.numel() * parameter.element_size()
        return advice(
            self.strategy.name,
            world=self.strategy.world,
            trained=sizes[True],
            frozen=sizes[False],
            rows=math.ceil(self.settings.batch / self.strategy.world),
            runtime=self.config.runtime,
            offload=self.strategy.offload,
            gpu=self.strategy.device.type == "cuda",
            recomputes=self.method.recomputes,
        )

    def _adam(self, key: str) -> Any:
        return lambda parameters: torch.optim.Adam(
            parameters.values(), lr=self.method.auxiliary_lr(key), betas=(0.9, 0.999)
        )

    # State.

    def auxiliary_state(self) -> dict[str, Tensor]:
        """`<network>/weights/<name>`, `<network>/optimizer/<name>/<state>` and `ema/<name>`, for a checkpoint
        (`Engine.kept`).
        """
        tensors = self.ema.state() if self.ema else {}
        for key, engine in self._auxiliary.items():
            weights, states = engine.weights(engine.trained), engine.optimizer_state()
            tensors |= {f"{key}/weights/{n}": p for n, p in weights.items()} | {
                f"{key}/optimizer/{n}": v for n, v in states.items()
            }
        return tensors

    def _restore_rest(self, state: checkpoint.State) -> None:
        for key, engine in self._auxiliary.items():
            weights = checkpoint.below(f"{key}/weights/", state.auxiliary)
            checkpoint.restore_weights(engine.trained, weights, f"auxiliary network {key}")
            engine.restore(checkpoint.below(f"{key}/optimizer/", state.auxiliary))
        if self.ema:
            self.ema.restore(state.auxiliary)
        if self.strategy.scaler is not None and state.values.get("scaler"):
            self.strategy.scaler.load_state_dict(state.values["scaler"])

    # Steps.

    def steps(self, done: RunProgress) -> Iterator[StepReport]:
        """Do what is left of the stage. Collective.

        Args:
            done: progress of the run; advanced by every step.

        Yields:
            A report after each step.

        Raises:
            Stopped: on all ranks, when the run was asked to stop while it waited for the first batch.
            NonFiniteError, DataBudgetError: a limit of `guards.py` was exceeded.
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
        """One rank that cannot read its rows ends all: the others would wait for it in the step."""
        batch, error = None, None
        try:
            batch = next(batches, None)
        except Exception as caught:
            error = caught
        self._agree(error)
        return batch

    def _agree(self, error: Exception | None) -> None:
        """Raise on every rank what went wrong on one of them. Collective."""

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
        yield from on_device(itertools.chain(*warm), strategy.device)

    def _step(self, done: RunProgress, batch: Batch, logged: bool) -> StepReport:
        strategy, settings, phases, size = self.strategy, self.settings, self.phases, self.config.runtime.micro_batch
        phases.batch = memory.sizes(batch)
        phases.enter("agree")
        self._speed.begin()
        loss, scope = self.config.runtime.contrastive, settings.negatives
        context = Context(
            seed=self.config.seed, step=done.step, rows=len(batch), device=strategy.device, loss=loss, scope=scope
        )

        def forward(part: Batch, number: int) -> dict[str, Tensor]:
            # Dropout masks differ between ranks and parts, and a resumed run draws the same ones.
            seed_all(self.config.seed, "step", done.step, strategy.rank, *([number] if number else []))
            with strategy.autocast():
                return self.engine("outputs", self.name, part)

        most = rounds(context.counts, size) if size else 1
        phases.enter("forward")
        cached = None
        if size and most > 1:
            cached = CachedOutputs(
                self.engine, forward, batch, size=size, rounds=most, shared=self.method.shared_outputs
            )
        with self._speed.counting(batch.lang):
            outputs = cached.outputs if cached else forward(batch, 0)
            phases.enter("losses")
            with strategy.autocast():
                extra = self._auxiliary_step(batch, outputs, context)
                losses = self.method.losses(self.name, batch, outputs, context)
            share = torch.stack(list(losses.values())).sum()
            phases.enter("backward")
            if cached:
                cached.backward(share)
            else:
                self.engine.backward(share)
        self._sum_entangled(cached is None)
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
        """What goes wrong in `action`, to be raised when all ranks are ready for it."""
        try:
            action()
        except Exception as error:
            return error
        return None

    def _sum_entangled(self, scaled: bool) -> None:
        """They are outside the wrapper, which averages; their gradient was multiplied by the world size (not where
        outputs were cached).
        """
        for parameter in self._entangled.values():
            if parameter.grad is not None and scaled:
                parameter.grad /= self.strategy.world
        self.strategy.sum_gradients(self._entangled.values())

    def _auxiliary_step(self, batch: Batch, outputs: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
        """Step the auxiliary networks (a discriminator) first, on detached outputs; they are replicated, so their
        gradients are summed.
        """
        if not self._auxiliary:
            return {}
        losses = self.method.auxiliary_losses(
            self.name, batch, {key: value.detach() for key, value in outputs.items()}, context
        )
        for key, loss in losses.items():
            optimizer = self._auxiliary[key].optimizer
            loss.backward()
            parameters = list(self.method.aux[key].parameters())
            self.strategy.sum_gradients(parameters)
            if torch.isfinite(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {f"aux_{key}": loss for key, loss in losses.items()}

    def _trace(self, step: int, batch: Batch) -> None:
        """For audits and tests: which samples this rank saw, and the reduced gradients, before clipping."""
        if self.config.runtime.trace == "off":
            return
        line = {"step": step, "k": batch.k, "lang": batch.lang, "slots": batch.slots.tolist(), "items": batch.items}
        self.folder.append(f"trace/rank{self.strategy.rank}.jsonl", line)
        if self.config.runtime.trace == "gradients":
            gradients = self.engine.gradients()
            if self.strategy.main:
                kept = {name: value.detach().cpu().contiguous() for name, value in gradients.items()}
                tensorfile.write(self.folder.path / "trace" / f"gradients-{step:08d}.safetensors", kept)


def _beyond(limits: Mapping[str, tuple[float, float]], weights: Mapping[str, Tensor]) -> list[str]:
    """A line about each parameter that a checkpoint of an earlier version, which did not put them back, has outside its
    limits.
    """
    values = ((name, low, high, weights[name]) for name, (low, high) in limits.items() if name in weights)
    return [
        f"{name} is {value.flatten()[0]:.4f} in the checkpoint: an earlier version let it leave its limits ({low:g} to"
        f" {high:.4f}) and did not train it there; from here on it is put back and learns, so the run's numbers are of"
        " both"
        for name, low, high, value in values
        if not torch.equal(value, value.clamp(low, high))
    ]
