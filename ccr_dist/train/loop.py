"""The training loop: stages of steps, validation, checkpoints, stopping. What is optimised is the method's affair; how it is spread is the strategy's.

A step is a pure function of (weights, optimiser state, seed, step): batch, pairings and random state are computed from the step number, so a run that
was killed and resumed ends with the same bits as one that was not (same world and strategy).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import RunConfig, StageConfig
from ..data.loader import Batch, content_digests, make_loader, sources
from ..data.order import Order, mix
from ..data.store import staged
from ..data.table import Dataset
from ..errors import CheckpointError, DataBudgetError, NonFiniteError
from ..methods import base
from . import checkpoint
from .assemble import build_method, check_columns, fields_for, open_datasets, seed_all, train_sets, training_texts
from .context import Context
from .optimizer import adamw, rate
from .run import RunFolder, identity
from .signals import StopRequest
from .strategy import Step, Strategy
from .telemetry import Telemetry
from .measure import validate


@dataclass
class Progress:
    """What a run has done so far; with weights and optimiser state it is all a resume needs."""

    step: int = 0
    stage: str = ""
    stage_step: int = 0
    substituted: int = 0
    best: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """How `Training.run` ended: `stopped` names the stop request, None when the run is complete."""

    step: int
    best: dict[str, Any] | None
    stopped: str | None
    resumed_at: int | None


class Training:
    """One run on this rank. Build it on every rank, call `run` once.

    Raises (all ranks alike): ConfigError, DataError, DataBudgetError, StorageError, NonFiniteError, CheckpointError.
    """

    def __init__(self, config: RunConfig, strategy: Strategy) -> None:
        self.config, self.strategy = config, strategy
        check_columns(config)
        self.kind = base.get(config.method.name)
        self.stages = self.kind.stages(config.method)
        self.folder = RunFolder(config.folder)
        self.data = {name: open_datasets(train_sets(config, name)) for name in self.stages}
        self.orders = {name: self._order(name) for name in self.stages}
        self.total = sum(stage.steps for stage in config.stages.values())
        digests: dict[str, str] = {}
        for name, stage in self.stages.items():
            digests |= content_digests(self.data[name], fields_for(config, stage), self.orders[name].languages)
        plan = identity(config, digests, {name: order.digest for name, order in self.orders.items()})
        error = self._try(lambda: (self.folder.lock(), self.folder.claim(config, plan))) if strategy.main else None
        self._raise_together(error)

    def run(self) -> Outcome:
        strategy, config = self.strategy, self.config
        state, passed = self._find_checkpoint()
        done = Progress(**state.values["progress"]) if state else Progress()
        if done.step >= self.total and (self.folder.path / "model.safetensors").exists():
            return Outcome(done.step, done.best, None, done.step)
        known = self.folder.method_state()
        self.method = build_method(config, texts=None if known is not None else training_texts(config), state=known)
        self.method.gradient_checkpointing = config.runtime.gradient_checkpointing
        self.step = Step(self.method)
        self.method.aux.to(strategy.device)
        self.step.to(strategy.device)
        trained = [prefix for name in self.stages for prefix in self.method.trainable(name)]
        self.kept = {n: p for n, p in self.step.named_parameters() if n.startswith(("net.", *trained))}
        facts = {"step": done.step, "resumed": state is not None, "steps": self.total, **strategy.facts}
        if strategy.main:
            self.folder.keep_method_state(self.method.state())
            self.folder.started(facts)
        self.log = Telemetry(
            self.folder.path, active=strategy.main, resumed_step=done.step, total_steps=self.total, title=f"{config.name}-s{config.seed}"
        )
        for message in passed:
            self.log.say(message)
        self.log.say(
            f"{facts['strategy']} on {strategy.world} process(es), {facts['device']}, {facts['precision']}; "
            + (f"resuming at step {done.step} of {self.total}" if state else f"{self.total} steps")
        )
        self.stop = StopRequest(self.folder.path)
        if state:
            checkpoint.restore_weights(self.kept, state.weights, str(self.folder.checkpoints))
        elif config.init_from:
            self._init_from(config.init_from)
        resumed_at = done.step if state else None
        try:
            stopped = None
            for name, stage in config.stages.items():
                if list(config.stages).index(name) < (list(config.stages).index(done.stage) if done.stage else 0):
                    continue
                if done.stage != name:
                    self._start_from_best(done)
                    done.stage, done.stage_step = name, 0
                    state = None
                stopped = self._stage(name, stage, done, state)
                if stopped:
                    break
            if stopped is None:
                self._raise_together(self._try(self._publish) if strategy.main else None)
            self.log.say(f"stopped by {stopped} at step {done.step}, saved" if stopped else f"complete; best {_shown(done.best)}")
        finally:
            self.log.close()
        return Outcome(done.step, done.best, stopped, resumed_at)

    def _stage(self, name: str, stage: StageConfig, done: Progress, state: checkpoint.State | None) -> str | None:
        """Run what is left of a stage. Returns the reason when a stop was asked for."""
        strategy, runtime = self.strategy, self.config.runtime
        prefixes = tuple(self.method.trainable(name))
        for parameter_name, parameter in self.step.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(prefixes))
        trained = {n: p for n, p in self.step.named_parameters() if p.requires_grad}
        inner = adamw(stage, trained, strategy.device)
        auxiliary = {
            key: torch.optim.Adam(network.parameters(), lr=self.method.auxiliary_lr(key), betas=(0.9, 0.999))
            for key, network in self.method.aux.items()
        }
        if state:
            checkpoint.restore_optimizer(inner, trained, state.optimizer)
            self._restore_auxiliary(auxiliary, state.auxiliary)
            if strategy.accelerator.scaler is not None and state.values.get("scaler"):
                strategy.accelerator.scaler.load_state_dict(state.values["scaler"])
        optimizer = strategy.optimizer(inner)
        wrapped = strategy.wrap(self.step)
        wrapped.train()
        waiting = time.perf_counter()
        for batch in self._batches(name, done.stage_step, stage.steps):
            begun = time.perf_counter()
            values = self._step(name, stage, done, batch, wrapped, trained, optimizer, auxiliary)
            now = time.perf_counter()
            values |= {"data_s": begun - waiting, "step_s": now - begun, "samples_per_s": stage.batch / (now - waiting)}
            waiting = now
            last = done.stage_step == stage.steps
            stopping = bool(values.pop("stopping"))
            self.log.step(done.step, values, keep=done.step % runtime.log_every == 0 or last)
            improved = False
            if last or (stage.validate_every and done.stage_step % stage.validate_every == 0):
                improved = self._validate(done, wrapped)
            if last or stopping or improved or done.step % runtime.checkpoint_every == 0:
                self._save(done, trained, inner, auxiliary)
            if stopping and not last:
                return strategy.agree(self.stop.reason) or "another rank's request"
        return None

    def _step(
        self,
        name: str,
        stage: StageConfig,
        done: Progress,
        batch: Batch,
        wrapped: nn.Module,
        trained: dict[str, nn.Parameter],
        optimizer: Any,
        auxiliary: dict[str, torch.optim.Adam],
    ) -> dict[str, Any]:
        strategy = self.strategy
        batch = batch.to(strategy.device)
        context = Context(seed=self.config.seed, step=done.step, rows=len(batch.items), device=strategy.device)
        # One part a rank and step: dropout masks differ between ranks, and a resumed run draws the same ones.
        seed_all(self.config.seed, "step", done.step, strategy.rank)
        learning_rate = rate(stage, done.stage_step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        with strategy.autocast():
            outputs = wrapped("outputs", name, batch)
            extra = self._auxiliary_step(name, batch, outputs, context, auxiliary)
            losses = self.method.losses(name, batch, outputs, context)
        total = torch.stack(list(losses.values())).sum()
        strategy.backward(total)
        norm = strategy.clip(trained.values(), None if strategy.accelerator.scaler else stage.clip_norm)
        self._trace(done.step, batch, trained)
        # One small collective carries all that ranks have to agree on.
        shares = [*losses.values(), *extra.values()]
        report = [*(share.detach().double() for share in shares), float(len(batch.substituted)), float(self.stop.seen())]
        sums = strategy.sum(torch.stack([torch.as_tensor(v, dtype=torch.float64, device=strategy.device) for v in report])).tolist()
        values = dict(zip([*losses, *extra], sums[:-2], strict=True))
        values = {
            "stage": name,
            "lang": batch.lang,
            "loss": sum(values[key] for key in losses),
            "lr": learning_rate,
            "grad_norm": float(norm),
            **values,
        }
        self._check_finite(done, values)
        optimizer.step()
        done.step, done.stage_step = done.step + 1, done.stage_step + 1
        self._count_substituted(done, batch, int(sums[-2]))
        return {**values, "stopping": sums[-1] > 0}

    def _auxiliary_step(
        self, name: str, batch: Batch, outputs: dict[str, Tensor], context: Context, auxiliary: dict[str, torch.optim.Adam]
    ) -> dict[str, Tensor]:
        """Step the auxiliary networks (a discriminator) first, on detached outputs; they are replicated, so their gradients are summed."""
        if not auxiliary:
            return {}
        losses = self.method.auxiliary_losses(name, batch, {key: value.detach() for key, value in outputs.items()}, context)
        for key, loss in losses.items():
            auxiliary[key].zero_grad(set_to_none=True)
            loss.backward()
            self.strategy.sum_gradients(self.method.aux[key].parameters())
            auxiliary[key].step()
        return {f"aux_{key}": loss for key, loss in losses.items()}

    def _check_finite(self, done: Progress, values: dict[str, Any]) -> None:
        scaled = self.strategy.accelerator.scaler is not None  # fp16: an infinite gradient norm is how the loss scale is found
        if not math.isfinite(values["loss"]) or not (scaled or math.isfinite(values["grad_norm"])):
            shown = {key: value for key, value in values.items() if isinstance(value, float)}
            raise NonFiniteError(
                f"step {done.step} of {self.folder.path}: loss or gradient norm is not finite: {shown}. The last checkpoint is intact; a lower lr, "
                "bf16 instead of fp16, or clip_norm are the usual remedies"
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

    def _validate(self, done: Progress, wrapped: nn.Module) -> bool:
        value, lines = validate(self.config, self.method, wrapped, self.strategy)
        wrapped.train()
        improved = done.best is None or value > done.best["value"]
        self.log.event(done.step, "validation", lines)
        self.log.say(f"step {done.step}: validation {self.config.select} {value:.2f}" + (" (best so far)" if improved else ""))
        if improved:
            done.best = {"step": done.step, "stage": done.stage, "metric": self.config.select, "value": value}
        return improved

    def _save(
        self,
        done: Progress,
        trained: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        auxiliary: dict[str, torch.optim.Adam],
    ) -> None:
        def save() -> None:
            aux: dict[str, Tensor] = {}
            for key, network in self.method.aux.items():
                aux |= {f"{key}/weights/{n}": p for n, p in network.named_parameters()}
                aux |= {
                    f"{key}/optimizer/{n}": v
                    for n, v in checkpoint.optimizer_tensors(auxiliary[key], dict(network.named_parameters())).items()
                }
            scaler = self.strategy.accelerator.scaler
            values = {"step": done.step, "progress": vars(done), "scaler": scaler.state_dict() if scaler is not None else None}
            states = checkpoint.optimizer_tensors(optimizer, trained)
            checkpoint.save(self.folder.checkpoints, checkpoint.State(values, dict(self.kept), states, aux))
            if done.best:
                self.folder.keep_best(done.best)
            checkpoint.prune(self.folder.checkpoints, keep=self.config.runtime.keep, best=done.best["step"] if done.best else None)

        begun = time.perf_counter()
        self._raise_together(self._try(save) if self.strategy.main else None)
        self.log.event(done.step, "checkpoint", {"stall_s": time.perf_counter() - begun})

    def _publish(self) -> None:
        """RUN/model.safetensors: the selected weights, for everything that comes after training."""
        weights, _ = best_weights(self.folder)
        target = self.folder.path / "model.safetensors"
        with staged(target) as tmp:
            save_file(weights, tmp)
            tmp.replace(target)

    def _find_checkpoint(self) -> tuple[checkpoint.State | None, list[str]]:
        """The newest healthy checkpoint, chosen by rank 0 and checked by every rank."""
        found = checkpoint.newest(self.folder.checkpoints) if self.strategy.main else None
        path, passed = self.strategy.agree(found)
        if path is None:
            return None, passed
        state: list[checkpoint.State] = []
        self._raise_together(self._try(lambda: state.append(checkpoint.load(path))))
        return state[0], passed

    def _start_from_best(self, done: Progress) -> None:
        """A later stage starts from the best checkpoint of the stage before it, not from its last."""
        if done.best and done.best["stage"] == done.stage and done.best["step"] != done.step:
            best = checkpoint.load(checkpoint.folder_of(self.folder.checkpoints, done.best["step"]))
            checkpoint.restore_weights(self.kept, best.weights, f"best checkpoint of stage {done.stage}")
            self.log.say(f"next stage starts from step {done.best['step']}, the best of stage {done.stage}")

    def _init_from(self, run: str) -> None:
        weights, where = best_weights(RunFolder(Path(run)))
        checkpoint.restore_weights(self.kept, weights, where)
        self.log.say(f"weights from {where}")

    def _restore_auxiliary(self, auxiliary: dict[str, torch.optim.Adam], tensors: dict[str, Tensor]) -> None:
        for key, network in self.method.aux.items():
            names = dict(network.named_parameters())
            parts = {
                kind: {n.removeprefix(f"{key}/{kind}/"): v for n, v in tensors.items() if n.startswith(f"{key}/{kind}/")}
                for kind in ("weights", "optimizer")
            }
            checkpoint.restore_weights(names, parts["weights"], f"auxiliary network {key}")
            checkpoint.restore_optimizer(auxiliary[key], names, parts["optimizer"])

    def _order(self, name: str) -> Order:
        stage, fields = self.config.stages[name], fields_for(self.config, self.stages[name])
        languages = tuple(fields.targets) or ("en",)
        weights = [entry.weight for entry in train_sets(self.config, name)]
        return Order(
            sources(self.data[name], weights, fields, languages),
            batch=stage.batch,
            seed=mix(self.config.seed, "order", name),
            languages={lang: 1.0 for lang in languages},
            lanes=self.config.runtime.lanes,
            window_rows=self.config.runtime.window_rows,
        )

    def _batches(self, name: str, first: int, last: int) -> Iterator[Batch]:
        datasets: list[Dataset] = self.data[name]
        fields = fields_for(self.config, self.stages[name])
        transform = self.method.backbone.image_transform()
        return iter(
            make_loader(
                self.orders[name], datasets, fields, world=self.strategy.world, rank=self.strategy.rank, first=first, last=last,
                workers=self.config.runtime.workers, transform=transform, pin_memory=self.strategy.device.type == "cuda",
            )
        )  # fmt: skip

    def _trace(self, step: int, batch: Batch, trained: dict[str, nn.Parameter]) -> None:
        """For audits and tests: which samples this rank saw, and rank 0's reduced gradients."""
        if self.config.runtime.trace == "off":
            return
        folder = self.folder.path / "trace"
        folder.mkdir(exist_ok=True)
        with (folder / f"rank{self.strategy.rank}.jsonl").open("a", encoding="utf-8") as file:
            line = {"step": step, "k": batch.k, "lang": batch.lang, "slots": [int(s) for s in batch.slots], "items": list(batch.items)}
            file.write(json.dumps(line) + "\n")
        if self.config.runtime.trace == "gradients" and self.strategy.main:
            gradients = {n: p.grad.detach().cpu().contiguous() for n, p in trained.items() if p.grad is not None}
            save_file(gradients, folder / f"gradients-{step:08d}.safetensors")

    @staticmethod
    def _try(action: Any) -> Exception | None:
        try:
            action()
        except Exception as error:
            return error
        return None

    def _raise_together(self, error: Exception | None) -> None:
        """One rank's error is every rank's: nobody may wait in a collective for a rank that is gone."""
        errors = [e for e in self.strategy.all(error) if e is not None]
        if error is not None:
            raise error
        if errors:
            raise errors[0]


def best_weights(folder: RunFolder) -> tuple[dict[str, Tensor], str]:
    """Weights of a run's selected checkpoint, and its path. Raises CheckpointError naming the folder when there is none."""
    best = folder.best()
    if best is None:
        raise CheckpointError(f"{folder.path} has no selected checkpoint (best.json); train that run first")
    path = checkpoint.folder_of(folder.checkpoints, best["step"])
    return checkpoint.load(path).weights, str(path)


def _shown(best: dict[str, Any] | None) -> str:
    return f"{best['metric']} {best['value']:.2f} at step {best['step']}" if best else "none (no validation ran)"
