"""A training run from claim to selected weights: its stages, and what comes between steps (validation, checkpoints,
stopping).

What a run needs is opened in `prepared.py`; where it starts is decided in `resume.py`. The steps themselves are in
`step/stage.py`; a strategy decides how they are spread over processes, and a method what is optimised.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ccr_dist.config import FitConfig, RunConfig
from ccr_dist.errors import OutOfMemoryError
from ccr_dist.methods.base import Method
from ccr_dist.train.cached_features import require_encoders
from ccr_dist.train.prepared import PreparedRun, claim, prepare_run
from ccr_dist.train.record.speed import memory_bytes
from ccr_dist.train.recorders import Recorders, recording
from ccr_dist.train.resume import (
    BuiltModel,
    StartingPoint,
    complete_at,
    find_start,
    next_stage_model,
    starting_model,
)
from ccr_dist.train.selected import best_weights
from ccr_dist.train.state import checkpoint
from ccr_dist.train.step.fit import FitStage, forget
from ccr_dist.train.step.stage import StageRun
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.validation import blank, total, validate
from ccr_dist.train.watch import memory
from ccr_dist.train.watch.guards import samples
from ccr_dist.train.watch.signals import Stopped


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training run ended.

    Attributes:
        step: steps that the run has done.
        stopped: what asked it to stop; None: the run is complete.
        resumed_at: the step that it resumed from; None: it began.
    """

    step: int
    stopped: str | None
    resumed_at: int | None


def train_run(config: RunConfig, strategy: Strategy) -> TrainingOutcome:
    """Train a run to its end, or to a stop request. Collective.

    All ranks raise alike, except for errors of a single rank's disk or memory.

    Args:
        config: of the run.
        strategy: the processes that the launcher started.

    Raises:
        ConfigError: the config cannot be trained, or the folder holds another run.
        DataError, DataBudgetError: a dataset is missing, incomplete, or has too many broken samples.
        CheckpointError: there is no checkpoint left to resume from.
        StorageError, NonFiniteError, OutOfMemoryError: a step or a save failed.
        Stopped: the run was asked to stop before there was anything to save.
    """
    run = prepare_run(config, strategy)
    claim(run)
    start = find_start(run)
    complete = complete_at(run, start)
    if complete is not None:
        return TrainingOutcome(complete, None, complete)
    with recording(run, start.progress().step) as recorders:
        return Training(run, start, recorders).run()


@dataclass
class _Reported:
    """Counts that the log has reported since this start, so that only changes are reported."""

    truncated: int = 0
    substituted: int = 0


class Training:
    """The stages of a run on this rank, from the build of the model to the selected weights.

    Args:
        run: prepared and claimed.
        start: where this start of the run begins.
        recorders: open.
    """

    def __init__(self, prepared: PreparedRun, start: StartingPoint, recorders: Recorders) -> None:
        self.prepared, self.start, self.recorders = prepared, start, recorders
        self.config, self.strategy, self.folder = prepared.config, prepared.strategy, prepared.folder
        self.log, self.phases = recorders.log, recorders.phases
        self.done = start.progress()
        self._reported = _Reported()

    def run(self) -> TrainingOutcome:
        """Train. Call it once, on every rank.

        Raises:
            CcrError: as `train_run`.
        """
        resumed_at = self.done.step if self.start.state else None
        with self._memory_errors(None), self.recorders.watchdog:
            stopped = self._train()
        self.log.say(self._ended(stopped))
        return TrainingOutcome(self.done.step, stopped, resumed_at)

    def _ended(self, stopped: str | None) -> str:
        done = self.done
        if stopped and not done.step:
            return f"stopped by {stopped} before its first step; nothing to save"
        if stopped:
            return f"stopped by {stopped} at step {done.step}, saved"
        text = "complete; best validation"
        if done.best:
            text += f" {done.best['metric']} {done.best['value']:.2f} at step {done.best['step']}"
        if done.skipped:
            text += f"; {done.skipped} of {done.step} steps were skipped: gradients not finite (skipped.jsonl)"
        return text

    def _train(self) -> str | None:
        """From the build to the selected weights. Returns what stopped it before, with everything saved."""
        try:
            model = self._build()
            self._require_encoders(model)
            self._introduce(model)
            self._stages(model)
        except Stopped as request:
            self._written()
            return str(request)
        self._written()
        self.prepared.on_main(self._publish)
        return None

    def _build(self) -> BuiltModel:
        built: list[BuiltModel] = []
        with self.recorders.watchdog.loading("building the model"):
            self.phases.enter("build")
            self.prepared.unless_stopped(lambda: built.append(starting_model(self.prepared, self.start)))
        [model] = built
        return model

    @contextmanager
    def _memory_errors(self, stage: StageRun | None) -> Iterator[None]:
        """An error that means that memory ran out says where, and what to change."""
        try:
            yield
        except OutOfMemoryError:
            raise
        except Exception as error:
            if not memory.ran_out(error):
                raise
            known: dict[str, Any] = {}
            if stage is not None:
                engine, cut = stage.engine, not stage.method.rows_interact
                known = {"strategy": engine.name, "held": engine.held(), "cut": cut}
            raise memory.report(error, self.phases, self.config, self.strategy, **known) from error

    def _introduce(self, model: BuiltModel) -> None:
        facts, done, steps = self.strategy.facts, self.done, self.prepared.total_steps
        resumed = self.start.state is not None

        def record() -> None:
            self.folder.keep_method_state(model.method.state())
            self.folder.settle_best(done.best)
            self.folder.started({"step": done.step, "resumed": resumed, "steps": steps, **facts})

        self.prepared.on_main(record)  # a stage under a sharded strategy is built from what was just kept
        for message in [*self.start.passed, *self.prepared.notes]:
            self.log.say(message)
        what = f"resuming at step {done.step} of {steps}" if resumed else f"{steps} steps"
        self.log.say(
            f"{facts['strategy']} on {facts['world']} process(es), {facts['device']}, {facts['precision']}; {what}"
        )

    def _require_encoders(self, model: BuiltModel) -> None:
        """Collective, since only some ranks may see a column that was replaced."""
        run = self.prepared

        def check() -> None:
            for name, fields in run.fields.items():
                require_encoders(model.method, fields, run.datasets[name])

        if self.start.state is None:
            self.strategy.together(check)

    def _stages(self, model: BuiltModel) -> None:
        """All stages that are left. Raises Stopped after a stop request, when the writer has what is to be saved."""
        done, state = self.done, self.start.state
        names, said = list(self.config.stages), set[str]()
        first = names.index(done.stage) if done.stage else 0
        for name in names[first:]:
            if done.stage != name:
                if done.stage:
                    model = self._start_from_best(model)
                done.stage, done.stage_step, state = name, 0, None
            if isinstance(self.config.stages[name], FitConfig):
                self._fit(model, name)
                continue
            stage = self._stage(name, model, state)
            for text in stage.advice:
                if text not in said:
                    self.log.say(text)
                    said.add(text)
            with self._memory_errors(stage):
                self._steps(model, stage)

    def _stage(self, name: str, model: BuiltModel, state: checkpoint.State | None) -> StageRun:
        run = self.prepared
        return StageRun(
            name, config=self.config, step=model.step, strategy=self.strategy, folder=self.folder, stop=run.stop,
            order=run.orders[name], datasets=run.datasets[name], fields=run.fields[name], state=state,
            phases=self.phases, tell=self.log.event, check=self.log.check,
        )  # fmt: skip

    def _fit(self, model: BuiltModel, name: str) -> None:
        """A stage in closed form, which is validated while it is solved. Raises Stopped after a stop request."""
        done, run = self.done, self.prepared
        if done.stage_step:
            run.on_main(lambda: forget(run.folder))  # a start that ended behind its save has left that to this one
            return
        stage = FitStage(
            name, config=self.config, step=model.step, strategy=self.strategy, folder=self.folder, stop=run.stop,
            datasets=run.datasets[name], fields=run.fields[name], alive=self.phases.heard,
        )  # fmt: skip
        with self._memory_errors(None), self.phases.during("sums"):
            value, lines, tried = stage.run(lambda: self._measured(model.method, model.step))
        done.step, done.stage_step = done.step + 1, 1
        self.log.event(done.step, "solutions", {"tried": tried, "captions": stage.captions})
        counts = ", ".join(f"{lang} {number}" for lang, number in stage.captions.items())
        self.log.say(f"stage {name}: summed up captions ({counts}), and kept the best of {len(tried)} solution(s)")
        self._report_validation(model, value, lines)
        self._save(model, stage)
        self._written()
        run.on_main(lambda: forget(run.folder))

    def _start_from_best(self, model: BuiltModel) -> BuiltModel:
        """A later stage starts from the best checkpoint of the stage before it, not from its last."""
        self._written()
        model, step = next_stage_model(self.prepared, model, self.done)
        if step != self.done.step:
            self.log.say(f"next stage starts from step {step}, the best of stage {self.done.stage}")
        return model

    def _record_shards(self, stage: StageRun) -> None:
        """What every rank holds after a first step: evidence of what the strategy really does."""
        engine, held = stage.engine, self.strategy.all(stage.engine.held())
        about = {"stage": stage.name, "strategy": engine.name, "regathered": engine.regathered()}
        self.log.event(self.done.step, "held", {**about, "bytes": held})

    def _record_memory(self, stage: StageRun) -> None:
        """The most that every rank has held by the end of a stage's steps, before they are validated."""
        most = self.strategy.all(memory_bytes(self.strategy.device))
        self.log.event(self.done.step, "memory", {"stage": stage.name, "bytes": most})

    def _steps(self, model: BuiltModel, stage: StageRun) -> None:
        """The steps of a stage, validated and saved as the config says."""
        done, recorded = self.done, False
        if done.unvalidated:
            self._between(model, stage, stopping=False)
        for report in stage.steps(done):
            if not recorded:
                recorded = True
                self._record_shards(stage)
            self.log.step(done.step, report.values(), keep=report.logged)
            self.recorders.profiler.step()
            if done.stage_step == stage.settings.steps:
                self._record_memory(stage)
            self._between(model, stage, stopping=report.stopping)

    def _between(self, model: BuiltModel, stage: StageRun, *, stopping: bool) -> None:
        """Validation and checkpoint, where they are due.

        Raises:
            Stopped: after a stop request. A validation that it interrupts is made at the next start.
        """
        done, every = self.done, stage.settings.validate_every
        last = done.stage_step == stage.settings.steps
        improved = False
        try:
            done.unvalidated = last or bool(every and done.stage_step % every == 0)
            if done.unvalidated:
                improved = self._validate(model, stage)
                done.unvalidated = False
            elif stopping:
                self.prepared.stop.leave(self.strategy)
        except Stopped:
            self._save(model, stage)
            raise
        if last or improved or done.step % self.config.runtime.checkpoint_every == 0:
            self._save(model, stage)

    def _validate(self, model: BuiltModel, stage: StageRun) -> bool:
        """Validate, and report. Returns whether this is the best step so far."""
        with stage.ema.in_place() if stage.ema else nullcontext():
            value, lines = self._measured(model.method, stage.engine)
        return self._report_validation(model, value, lines)

    def _measured(self, method: Method, wrapped: Engine | Step) -> tuple[float, dict[str, Any]]:
        """Value and log lines of the weights on validation. Raises Stopped."""

        def before(what: str) -> None:
            self.phases.heard()
            self.prepared.stop.leave(self.strategy)

        with self.phases.during("validation"):
            return validate(self.config, method, wrapped, self.strategy, before=before, alive=self.phases.heard)

    def _report_validation(self, model: BuiltModel, value: float, lines: dict[str, Any]) -> bool:
        done = self.done
        self._report_truncated(model)
        self._report_substituted()
        improved = done.best is None or value > done.best["value"]
        self.log.event(done.step, "validation", lines)
        left_out = blank({key.split("/")[0]: int(n) for key, n in lines.items() if key.endswith("/captions_blank")})
        best = " (best so far)" if improved else ""
        self.log.say(f"step {done.step}: validation {self.config.select} {value:.2f}{best}{left_out}")
        if improved:
            done.best = {"step": done.step, "stage": done.stage, "metric": self.config.select, "value": value}
        return improved

    def _report_truncated(self, model: BuiltModel) -> None:
        """Texts that were truncated since this start of the run, when there are new ones. Collective."""
        texts = total(self.strategy, model.method.truncated)
        if texts > self._reported.truncated:
            self._reported.truncated = texts
            self.log.event(self.done.step, "truncated", {"texts": texts})
            self.log.say(
                f"step {self.done.step}: {texts} texts were longer than the model reads, and cut (in training and"
                " validation so far)"
            )

    def _report_substituted(self) -> None:
        """Broken samples, when there are new ones."""
        done = self.done
        if done.substituted > self._reported.substituted:
            self._reported.substituted = done.substituted
            drawn, listed = samples(self.config, done), self.folder.path / "substituted.jsonl"
            self.log.say(
                f"step {done.step}: {done.substituted} of {drawn} samples so far were broken, and others stood in"
                f" ({listed})"
            )

    def _save(self, model: BuiltModel, stage: StageRun | FitStage) -> None:
        """Copy the state to the CPU of the ranks that write it (rank 0, or all) and let the writer save it while
        training continues. Waits for the save before.
        """
        begun = time.perf_counter()
        done, scaler = self.done, self.strategy.scaler
        self.phases.enter("checkpoint")
        self._written()
        values = {
            "step": done.step,
            "progress": vars(done),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "run": self.start.digest,
            "made_by": {"strategy": self.strategy.name, "world": self.strategy.world},
        }
        weights, optimizer, auxiliary = stage.snapshot(model.kept)
        state = checkpoint.State(copy.deepcopy(values), weights, optimizer, auxiliary)
        best = copy.deepcopy(done.best)

        def committed() -> None:
            if best:
                self.folder.keep_best(best)
            self._prune(best)

        if self.strategy.main or self.strategy.in_shards:
            self.recorders.writer.write(state, committed if self.strategy.main else lambda: None)
        self.log.event(done.step, "checkpoint", {"stall_s": time.perf_counter() - begun})

    def _written(self) -> None:
        """The last save and the log are on disk, or every rank raises why they are not. Collective."""

        def settle() -> None:
            self.recorders.writer.wait()
            self.log.settle()

        self.strategy.together(settle)

    def _publish(self) -> None:
        """RUN/model.safetensors: the selected weights, for everything that comes after training."""
        done = self.done
        assert done.best is not None
        weights, _ = best_weights(self.folder, done.best)
        self.folder.require_held()
        facts = {"step": done.step, "best": done.best, "skipped": done.skipped, "substituted": done.substituted}
        checkpoint.publish(weights, self.folder.path / "model.safetensors", facts)
        self._prune(done.best)  # a start that ended between its last save and here has left that to this one

    def _prune(self, best: Mapping[str, Any] | None) -> None:
        """Not at a start: the newest checkpoint may be damaged then, and an older one the last that is healthy."""
        checkpoint.prune(self.folder.checkpoints, keep=self.config.runtime.keep, best=best["step"] if best else None)
