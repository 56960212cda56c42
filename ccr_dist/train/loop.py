"""A training run from claim to selected weights: resuming, the stages, and what comes between steps (validation, checkpoints, stopping).

The steps themselves are in `stage.py`; how they are spread over processes is the strategy's affair, and what is optimised the method's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..config import RunConfig
from ..data.loader import content_digests, sources
from ..data.order import Order, mix
from ..data.store import staged, sync_folder
from ..errors import CheckpointError
from ..methods import base
from . import checkpoint
from .assemble import build_method, check_columns, fields_for, open_datasets, train_sets, training_texts
from .measure import selection_queries, total, validate
from .run import RunFolder, identity
from .signals import StopRequest
from .stage import Progress, StageRun
from .strategy import Step, Strategy
from .telemetry import Telemetry


@dataclass(frozen=True)
class Outcome:
    """How `Training.run` ended: `stopped` names the stop request, None when the run is complete; `resumed_at` None: from the beginning."""

    step: int
    stopped: str | None
    resumed_at: int | None


class Training:
    """One run on this rank. Build it on every rank, call `run` once.

    Raises (all ranks alike, except for what a single rank's disk says): ConfigError, DataError, DataBudgetError, StorageError,
    NonFiniteError, CheckpointError.
    """

    def __init__(self, config: RunConfig, strategy: Strategy) -> None:
        self.config, self.strategy = config, strategy
        check_columns(config)
        selection_queries(config)
        stages = base.get(config.method.name).stages(config.method)
        self.folder = RunFolder(config.folder)
        self.fields = {name: fields_for(config, stage) for name, stage in stages.items()}
        self.data = {name: open_datasets(train_sets(config, name)) for name in stages}
        self.orders = {name: self._order(name) for name in stages}
        self.total = sum(stage.steps for stage in config.stages.values())
        digests: dict[str, str] = {}
        for name in stages:
            digests |= content_digests(self.data[name], self.fields[name], self.orders[name].languages)
        plan = identity(config, digests, {name: order.digest for name, order in self.orders.items()})

        def claim() -> None:
            self.folder.lock()
            self.folder.claim(config, plan)

        self._on_main(claim)

    def run(self) -> Outcome:
        state, passed = self._find_checkpoint()
        done = Progress(**state.values["progress"]) if state else Progress()
        resumed_at = done.step if state else None
        if done.step >= self.total and (self.folder.path / "model.safetensors").exists():
            return Outcome(done.step, None, resumed_at)
        self._build(state)
        title = f"{self.config.name}-s{self.config.seed}"
        self.log = Telemetry(self.folder.path, active=self.strategy.main, resumed_step=done.step, total_steps=self.total, title=title)
        self._truncated = 0
        self._introduce(done, passed, resumed=state is not None)
        self.stop = StopRequest(self.folder.path)
        try:
            stopped = self._stages(done, state)
            if stopped is None:
                self._on_main(self._publish)
            best = f"{done.best['metric']} {done.best['value']:.2f} at step {done.best['step']}" if done.best else ""
            self.log.say(f"stopped by {stopped} at step {done.step}, saved" if stopped else f"complete; best validation {best}")
        finally:
            self.log.close()
        return Outcome(done.step, stopped, resumed_at)

    def _build(self, state: checkpoint.State | None) -> None:
        """The method with the weights to go on from, on the device."""
        config, known = self.config, self.folder.method_state()
        self.method = build_method(config, texts=None if known is not None else training_texts(config), state=known)
        self.method.gradient_checkpointing = config.runtime.gradient_checkpointing
        self.step = Step(self.method).to(self.strategy.device)
        self.method.aux.to(self.strategy.device)
        trained = [prefix for name in config.stages for prefix in self.method.trainable(name)]
        self.kept = {n: p for n, p in self.step.named_parameters() if n.startswith(("net.", *trained))}
        if state:
            checkpoint.restore_weights(self.kept, state.weights, str(self.folder.checkpoints))
        elif config.init_from:
            weights, where = best_weights(RunFolder(Path(config.init_from)))
            checkpoint.restore_weights(self.kept, weights, where)

    def _introduce(self, done: Progress, passed: list[str], *, resumed: bool) -> None:
        facts = self.strategy.facts
        if self.strategy.main:
            self.folder.keep_method_state(self.method.state())
            self.folder.started({"step": done.step, "resumed": resumed, "steps": self.total, **facts})
        for message in passed:
            self.log.say(message)
        what = f"resuming at step {done.step} of {self.total}" if resumed else f"{self.total} steps"
        self.log.say(f"{facts['strategy']} on {facts['world']} process(es), {facts['device']}, {facts['precision']}; {what}")

    def _stages(self, done: Progress, state: checkpoint.State | None) -> str | None:
        """All stages that are left. Returns the reason when a stop was asked for."""
        names = list(self.config.stages)
        for name in names[names.index(done.stage) if done.stage else 0 :]:
            if done.stage != name:
                self._start_from_best(done)
                done.stage, done.stage_step, state = name, 0, None
            stage = StageRun(
                name, config=self.config, step=self.step, strategy=self.strategy, folder=self.folder, stop=self.stop,
                order=self.orders[name], datasets=self.data[name], fields=self.fields[name],
            )  # fmt: skip
            if state:
                stage.restore(state)
            if self._steps(stage, done):
                return self.strategy.agree(self.stop.reason) or "a request to another process"
        return None

    def _steps(self, stage: StageRun, done: Progress) -> bool:
        """The steps of a stage, validated and saved as the config says. True when it was stopped before its end."""
        runtime, settings = self.config.runtime, stage.settings
        for values in stage.steps(done):
            stopping, last = values.pop("stopping"), done.stage_step == settings.steps
            self.log.step(done.step, values, keep=done.step % runtime.log_every == 0 or last)
            improved = False
            if last or (settings.validate_every and done.stage_step % settings.validate_every == 0):
                improved = self._validate(done, stage)
            if last or stopping or improved or done.step % runtime.checkpoint_every == 0:
                self._save(done, stage)
            if stopping and not last:
                return True
        return False

    def _validate(self, done: Progress, stage: StageRun) -> bool:
        self._tell_truncated(done)
        value, lines = validate(self.config, self.method, stage.wrapped, self.strategy)
        improved = done.best is None or value > done.best["value"]
        self.log.event(done.step, "validation", lines)
        self.log.say(f"step {done.step}: validation {self.config.select} {value:.2f}" + (" (best so far)" if improved else ""))
        if improved:
            done.best = {"step": done.step, "stage": done.stage, "metric": self.config.select, "value": value}
        return improved

    def _tell_truncated(self, done: Progress) -> None:
        """Texts that lost their ends since this start of the run, wherever there are new ones."""
        texts = total(self.strategy, self.method.truncated)
        if texts > self._truncated:
            self._truncated = texts
            self.log.event(done.step, "truncated", {"texts": texts})
            self.log.say(f"step {done.step}: {texts} texts were longer than the model reads, and cut (in training and validation so far)")

    def _save(self, done: Progress, stage: StageRun) -> None:
        def save() -> None:
            scaler = self.strategy.scaler
            values = {"step": done.step, "progress": vars(done), "scaler": scaler.state_dict() if scaler is not None else None}
            state = checkpoint.State(values, dict(self.kept), stage.optimizer_state(), stage.auxiliary_state())
            checkpoint.save(self.folder.checkpoints, state)
            if done.best:
                self.folder.keep_best(done.best)
            checkpoint.prune(self.folder.checkpoints, keep=self.config.runtime.keep, best=done.best["step"] if done.best else None)

        begun = time.perf_counter()
        self._on_main(save)
        self.log.event(done.step, "checkpoint", {"stall_s": time.perf_counter() - begun})

    def _publish(self) -> None:
        """RUN/model.safetensors: the selected weights, for everything that comes after training."""
        weights, _ = best_weights(self.folder)
        target = self.folder.path / "model.safetensors"
        with staged(target) as tmp:
            save_file(weights, tmp)
            tmp.replace(target)
            sync_folder(target.parent)

    def _find_checkpoint(self) -> tuple[checkpoint.State | None, list[str]]:
        """The newest healthy checkpoint, chosen by rank 0 and checked by every rank."""
        path, passed = self.strategy.agree(checkpoint.newest(self.folder.checkpoints) if self.strategy.main else None)
        if path is None:
            return None, passed
        state: list[checkpoint.State] = []
        self.strategy.together(lambda: state.append(checkpoint.load(path)))
        return state[0], passed

    def _start_from_best(self, done: Progress) -> None:
        """A later stage starts from the best checkpoint of the stage before it, not from its last."""
        if done.best and done.best["stage"] == done.stage and done.best["step"] != done.step:
            best = checkpoint.load(checkpoint.folder_of(self.folder.checkpoints, done.best["step"]))
            checkpoint.restore_weights(self.kept, best.weights, f"best checkpoint of stage {done.stage}")
            self.log.say(f"next stage starts from step {done.best['step']}, the best of stage {done.stage}")

    def _order(self, name: str) -> Order:
        fields, runtime = self.fields[name], self.config.runtime
        languages = tuple(fields.targets) or (base.ENGLISH,)
        weights = [entry.weight for entry in train_sets(self.config, name)]
        return Order(
            sources(self.data[name], weights, fields, languages),
            batch=self.config.stages[name].batch,
            seed=mix(self.config.seed, "order", name),
            languages={lang: 1.0 for lang in languages},
            lanes=runtime.lanes,
            window_rows=runtime.window_rows,
        )

    def _on_main(self, action: Callable[[], Any]) -> None:
        """Rank 0 acts; if that fails, all ranks raise its error."""
        self.strategy.together(action if self.strategy.main else lambda: None)


def best_weights(folder: RunFolder) -> tuple[dict[str, Tensor], str]:
    """Weights of a run's selected checkpoint, and its path. Raises CheckpointError naming the folder when there is none."""
    best = folder.best()
    if best is None:
        raise CheckpointError(f"{folder.path} has no selected checkpoint (best.json); train that run first")
    path = checkpoint.folder_of(folder.checkpoints, best["step"])
    return checkpoint.load(path).weights, str(path)
