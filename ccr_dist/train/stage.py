"""One training stage: optimisers, the step itself, and the guards around it. What comes between steps (validation, checkpoints) is the
loop's.

A step is a pure function of (weights, optimiser state, seed, step): batch, pairings and random state are computed from the step number,
so a run that
was killed and resumed ends with the same bits as one that was not (same world and strategy).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import RunConfig
from ..data.loader import Batch, Fields, make_loader
from ..data.order import Order
from ..data.table import Dataset
from ..errors import DataBudgetError, NonFiniteError
from . import checkpoint
from .assemble import seed_all
from .context import Context
from .optimizer import clip_each, make_optimizer, rate, set_rate
from .run import RunFolder
from .signals import StopRequest
from .strategy import Step, Strategy


@dataclass
class Progress:
    """What a run has done so far; with weights and optimiser state it is all a resume needs."""

    step: int = 0
    stage: str = ""
    stage_step: int = 0
    substituted: int = 0
    best: dict[str, Any] | None = None


class StageRun:
    """A stage on this rank.

    Args:
        name: of the stage, in the config and in the method.
        step: backbone and method; which of their parameters are trained is set here.
        order, datasets, fields: what the stage reads.
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
    ) -> None:
        self.name, self.config, self.strategy, self.folder, self.stop = name, config, strategy, folder, stop
        self.settings, self.method = config.stages[name], step.method
        self._source = order, datasets, fields
        prefixes = tuple(self.method.trainable(name))
        for parameter_name, parameter in step.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(prefixes))
        self.trained = {n: p for n, p in step.named_parameters() if p.requires_grad}
        self._entangled = {f"aux.{key}.{n}": p for key in self.method.entangled for n, p in self.method.aux[key].named_parameters()}
        self.trained |= self._entangled
        self._inner = make_optimizer(self.settings, self.trained, strategy.device)
        self._optimizer = strategy.optimizer(self._inner)
        self._auxiliary = {
            key: torch.optim.Adam(network.parameters(), lr=self.method.auxiliary_lr(key), betas=(0.9, 0.999))
            for key, network in self.method.aux.items()
        }
        self.wrapped = strategy.wrap(step)

    # State.

    def optimizer_state(self) -> dict[str, Tensor]:
        return checkpoint.optimizer_tensors(self._inner, self.trained)

    def auxiliary_state(self) -> dict[str, Tensor]:
        """`<network>/weights/<name>` and `<network>/optimizer/<name>/<state>`."""
        tensors: dict[str, Tensor] = {}
        for key, network in self.method.aux.items():
            names = dict(network.named_parameters())
            states = checkpoint.optimizer_tensors(self._auxiliary[key], names)
            tensors |= {f"{key}/weights/{n}": p for n, p in names.items()} | {f"{key}/optimizer/{n}": v for n, v in states.items()}
        return tensors

    def restore(self, state: checkpoint.State) -> None:
        """Optimisers, auxiliary networks and loss scale of a checkpoint of this stage (weights are restored by the loop)."""
        checkpoint.restore_optimizer(self._inner, self.trained, state.optimizer)
        for key, network in self.method.aux.items():
            names = dict(network.named_parameters())
            weights, states = (
                {n.removeprefix(prefix): v for n, v in state.auxiliary.items() if n.startswith(prefix)}
                for prefix in (f"{key}/weights/", f"{key}/optimizer/")
            )
            checkpoint.restore_weights(names, weights, f"auxiliary network {key}")
            checkpoint.restore_optimizer(self._auxiliary[key], names, states)
        if self.strategy.scaler is not None and state.values.get("scaler"):
            self.strategy.scaler.load_state_dict(state.values["scaler"])

    # Steps.

    def steps(self, done: Progress) -> Iterator[dict[str, Any]]:
        """Do what is left of the stage; after each step, advance `done` and yield the step's numbers. `stopping`:
        some rank was asked to stop.
        """
        waiting = time.perf_counter()
        for batch in self._batches(done.stage_step):
            begun = time.perf_counter()
            self.wrapped.train()
            values = self._step(done, batch)
            now = time.perf_counter()
            yield {**values, "data_s": begun - waiting, "step_s": now - begun, "samples_per_s": self.settings.batch / (now - waiting)}
            waiting = time.perf_counter()

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
        return iter(loader)

    def _step(self, done: Progress, batch: Batch) -> dict[str, Any]:
        strategy, settings, seed = self.strategy, self.settings, self.config.seed
        batch = batch.to(strategy.device)
        context = Context(seed=seed, step=done.step, rows=len(batch), device=strategy.device)
        # Dropout masks differ between ranks, and a resumed run draws the same ones.
        seed_all(seed, "step", done.step, strategy.rank)
        learning_rate = rate(settings, done.stage_step)
        set_rate(self._optimizer, learning_rate)
        self._optimizer.zero_grad(set_to_none=True)
        with strategy.autocast():
            outputs = self.wrapped("outputs", self.name, batch)
            extra = self._auxiliary_step(batch, outputs, context)
            losses = self.method.losses(self.name, batch, outputs, context)
        strategy.backward(torch.stack(list(losses.values())).sum())
        for parameter in self._entangled.values():  # they are outside the wrapper, which averages
            if parameter.grad is not None:
                parameter.grad /= strategy.world
        strategy.sum_gradients(self._entangled.values())
        # Of a language that this batch lacks: zero, as in flat partitions, so that moments fade alike.
        for parameter in self.trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = strategy.clip(self.trained.values(), settings.clip_norm if settings.clip == "global" else None)
        if settings.clip == "tensor" and settings.clip_norm is not None:
            clip_each(self.trained.values(), settings.clip_norm)
        self._trace(done.step, batch)
        # One small collective carries all that ranks have to agree on.
        report = [*losses.values(), *extra.values(), len(batch.substituted), self.stop.seen()]
        sums = strategy.sum(
            torch.stack([torch.as_tensor(v, dtype=torch.float64, device=strategy.device).detach() for v in report])
        ).tolist()
        terms = dict(zip([*losses, *extra], sums[:-2], strict=True))
        total = sum(terms[name] for name in losses)
        values = {"stage": self.name, "lang": batch.lang, "loss": total, "lr": learning_rate, "grad_norm": float(norm), **terms}
        self._check_finite(done, values)
        self._optimizer.step()
        done.step, done.stage_step = done.step + 1, done.stage_step + 1
        self._count_substituted(done, batch, int(sums[-2]))
        return {**values, "stopping": sums[-1] > 0}

    def _auxiliary_step(self, batch: Batch, outputs: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
        """Step the auxiliary networks (a discriminator) first, on detached outputs; they are replicated, so their gradients are summed."""
        if not self._auxiliary:
            return {}
        losses = self.method.auxiliary_losses(self.name, batch, {key: value.detach() for key, value in outputs.items()}, context)
        for key, loss in losses.items():
            loss.backward()
            self.strategy.sum_gradients(self.method.aux[key].parameters())
            self._auxiliary[key].step()
            self._auxiliary[key].zero_grad(set_to_none=True)
        return {f"aux_{key}": loss for key, loss in losses.items()}

    # Guards.

    def _check_finite(self, done: Progress, values: dict[str, Any]) -> None:
        scaled = self.strategy.scaler is not None  # fp16: an infinite gradient norm is how the loss scale is found
        if not math.isfinite(values["loss"]) or not (scaled or math.isfinite(values["grad_norm"])):
            shown = {key: value for key, value in values.items() if isinstance(value, float)}
            raise NonFiniteError(
                f"step {done.step} of {self.folder.path}: loss or gradient norm is not finite: {shown}. The last "
                "checkpoint is intact; a lower lr, bf16 instead of fp16, or clip_norm are the usual remedies"
            )

    def _count_substituted(self, done: Progress, batch: Batch, everywhere: int) -> None:
        if everywhere == 0:
            return
        lists = self.strategy.all(batch.substituted)
        done.substituted += everywhere
        if self.strategy.main:
            for entry in (entry for entries in lists for entry in entries):
                self.folder.append("substituted.jsonl", {"step": done.step, **entry})
        if done.substituted > self.config.runtime.bad_samples:
            raise DataBudgetError(
                f"{done.substituted} broken samples were substituted, runtime.bad_samples allows {self.config.runtime.bad_samples}; "
                f"they are listed in {self.folder.path / 'substituted.jsonl'}; `ccr-dist shards verify` checks the whole dataset"
            )

    def _trace(self, step: int, batch: Batch) -> None:
        """For audits and tests: which samples this rank saw, and rank 0's reduced gradients (clipped as the optimiser sees them)."""
        if self.config.runtime.trace == "off":
            return
        line = {"step": step, "k": batch.k, "lang": batch.lang, "slots": batch.slots.tolist(), "items": batch.items}
        self.folder.append(f"trace/rank{self.strategy.rank}.jsonl", line)
        if self.config.runtime.trace == "gradients" and self.strategy.main:
            gradients = {n: p.grad.detach().cpu().contiguous() for n, p in self.trained.items() if p.grad is not None}
            save_file(gradients, self.folder.path / "trace" / f"gradients-{step:08d}.safetensors")
