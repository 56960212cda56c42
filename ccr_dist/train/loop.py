"""A training run from claim to selected weights: resuming, the stages, and what comes between steps (validation,
checkpoints, stopping).

The steps themselves are in `stage.py`; how they are spread over processes is the strategy's affair, and what is
optimised the method's.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ccr_dist.config import ENGLISH, RunConfig
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.storage.store import differences, digest_json
from ccr_dist.data.stream.loader import content_digests, sources
from ccr_dist.data.stream.order import Order, mix
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.train.assemble import build_method, check_columns, open_datasets, train_sets, training_texts
from ccr_dist.train.cached_features import all_fields, of_another_rule
from ccr_dist.train.record.phases import Phases
from ccr_dist.train.record.profiler import Window
from ccr_dist.train.record.telemetry import Telemetry
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.state.run_folder import RunFolder, identity, otherwise
from ccr_dist.train.step.ema import selected
from ccr_dist.train.step.stage import StageRun
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.validation import blank, selection_queries, total, validate
from ccr_dist.train.watch import memory
from ccr_dist.train.watch.guards import samples
from ccr_dist.train.watch.signals import Stopped, StopRequest
from ccr_dist.train.watch.watchdog import Watchdog


@dataclass(frozen=True)
class Outcome:
    """How `Training.run` ended: `stopped` names the stop request, None when the run is complete; `resumed_at` None:
    from the beginning.
    """

    step: int
    stopped: str | None
    resumed_at: int | None


class Training:
    """One run on this rank. Build it on every rank, call `run` once.

    Raises (all ranks alike, except for what a single rank's disk or memory says): ConfigError, DataError,
    DataBudgetError, StorageError, NonFiniteError, CheckpointError, OutOfMemoryError; Stopped from the constructor
    alone.
    """

    def __init__(self, config: RunConfig, strategy: Strategy) -> None:
        self.config, self.strategy = config, strategy
        if strategy.in_shards and strategy.name != "fsdp2":
            raise ConfigError(
                f"{config.name}: runtime.checkpoint: sharded is written by fsdp2 only, and this is {strategy.name};"
                " leave it out here (any strategy resumes from it)"
            )
        check_columns(config)
        selection_queries(config)
        self.folder = RunFolder(config.folder)
        self.total = sum(stage.steps for stage in config.stages.values())
        self.phases = Phases(strategy.device)
        self.stop = StopRequest(self.folder.path)
        self._unless_stopped(self._open)

        def claim() -> None:
            self.folder.lock()
            if config.init_from is not None:
                known = (self.folder.identity() or {}).get("weights", {}).get("init_from")
                self.identity["weights"]["init_from"] = known or selected_digest(RunFolder(Path(config.init_from)))
            self.folder.claim(config, self.identity)
            self.folder.clear()

        self._on_main(claim)

    def _open(self) -> None:
        """Datasets and orders, and the identity that the run has by them."""
        self.fields, self.stand_ins = all_fields(self.config, self.config.method.training_stages(), self.folder)
        self.data = {name: open_datasets(train_sets(self.config, name)) for name in self.fields}
        self.orders = {name: self._order(name) for name in self.fields}
        digests: dict[str, str] = {}
        for name, fields in self.fields.items():
            digests |= content_digests(self.data[name], fields, self.orders[name].languages)
        orders = {name: order.digest for name, order in self.orders.items()}
        self.identity = identity(self.config, digests, orders, world=self.strategy.world)
        visuals = [(self.data[name], fields.visual) for name, fields in self.fields.items() if fields.visual]
        if any(dataset.column(visual).kind == "image" for datasets, visual in visuals for dataset in datasets):
            self.identity["pictures"] = VERSION
        self.stand_ins += of_another_rule(self.folder.identity(), self.identity) + otherwise(self.folder.identity())

    def _unless_stopped(self, action: Callable[[], None]) -> None:
        """What this rank does alone, before there is anything to save. Raises Stopped on all ranks where one was asked
        to stop.
        """
        self.strategy.together(lambda: self.stop.unless(action))
        self.stop.leave(self.strategy)

    def run(self) -> Outcome:
        state, passed = self._find_checkpoint()
        done = RunProgress(**state.values["progress"]) if state else RunProgress()
        resumed_at = done.step if state else None
        complete = self._complete(state, done, passed)
        if complete is not None:
            return Outcome(complete, None, complete)
        title = f"{self.config.name}-s{self.config.seed}"

        def open_log() -> None:
            self.log = Telemetry(
                self.folder.path,
                active=self.strategy.main,
                resumed_step=done.step,
                total_steps=self.total,
                title=title,
                config=self.config,
            )

        self.strategy.together(open_log)
        self._truncated = self._substituted = 0
        beside = self.strategy.beside() if self.strategy.in_shards else None
        self.writer = checkpoint.Writer(self.folder.checkpoints, beside, self.folder.require_held)
        profile = self.config.runtime.profile if self.strategy.main else None
        self.profiler = Window(profile, self.folder.path / "profile", self.strategy.device)
        try:
            with self._guarded():
                stopped = self._train(done, state, passed)
            self.log.say(self._ended(done, stopped))
        finally:
            self.profiler.close()
            self.writer.close()
            self.log.close()
        return Outcome(done.step, stopped, resumed_at)

    def _complete(self, state: checkpoint.State | None, done: RunProgress, passed: list[str]) -> int | None:
        """The step at which the run is complete, with weights that are those of its last step; None: there is something
        to do.

        CheckpointError where what the run has done is lost: another beginning would be another run under its name.
        """
        found: list[int | None] = []

        def look() -> None:
            path = self.folder.path / "model.safetensors"
            try:
                facts = self.folder.published()
            except CheckpointError:
                facts = None  # it is made again of the selected checkpoint
            rebuilt = state is None or (self.folder.path / "method.json").exists()
            if facts and facts.get("step") == self.total and rebuilt and (state is None or done.step == self.total):
                self.folder.settle_best(facts["best"])
                return found.append(self.total)
            if state is None and (passed or path.exists() or (self.folder.path / "best.json").exists()):
                why = "\n  ".join(passed) if passed else f"{self.folder.checkpoints} has no checkpoint"
                raise CheckpointError(
                    f"{self.folder.path} has been trained, but there is nothing left to go on from:\n  {why}\nBring a"
                    " checkpoint back from a copy; or, to train the run again from its beginning, delete that folder"
                )
            if state is not None and done.step >= self.total and facts == {} and done.best:
                chosen = checkpoint.folder_of(self.folder.checkpoints, done.best["step"])
                if wrong := checkpoint.problem(chosen):
                    print(
                        f"{path}: it carries no digest (an earlier version wrote it), and cannot be made again:"
                        f" {wrong}",
                        file=sys.stderr,
                    )
                    return found.append(done.step)
            found.append(None)

        self._on_main(look)
        return self.strategy.agree(found[0] if found else None)

    def _ended(self, done: RunProgress, stopped: str | None) -> str:
        if stopped:
            return f"stopped by {stopped} " + (
                f"at step {done.step}, saved" if done.step else "before its first step; nothing to save"
            )
        best = f"{done.best['metric']} {done.best['value']:.2f} at step {done.best['step']}" if done.best else ""
        skipped = (
            f"; {done.skipped} of {done.step} steps were not made, since they were not finite (skipped.jsonl)"
            if done.skipped
            else ""
        )
        return f"complete; best validation {best}{skipped}"

    def _train(self, done: RunProgress, state: checkpoint.State | None, passed: list[str]) -> str | None:
        """From the build to the selected weights. Returns what stopped it before, with everything saved."""
        try:
            with self.watchdog.loading("building the model"):
                self.phases.enter("build")
                self._unless_stopped(lambda: self._begin(state))
            self._introduce(done, passed, resumed=state is not None)
            self._stages(done, state)
        except Stopped as request:
            self._written()
            return str(request)
        self._written()
        self._on_main(lambda: self._publish(done))
        return None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Watched for silence; and errors that mean that memory ran out say where, and what to change."""
        self.watchdog = Watchdog(
            self.phases, silence_s=self.config.runtime.hang, rank=self.strategy.rank, run=self.folder.path
        )
        self.stage: StageRun | None = None
        try:
            with self.watchdog:
                yield
        except Exception as error:
            if not memory.ran_out(error):
                raise
            known: dict[str, Any] = {}
            if self.stage is not None:
                engine = self.stage.engine
                known = {"strategy": engine.name, "held": engine.held(), "cut": not self.stage.method.rows_interact}
            raise memory.report(error, self.phases, self.config, self.strategy, **known) from error

    def _begin(self, state: checkpoint.State | None) -> None:
        """The method as the run goes on from `state`, or as it begins: with the weights of `init_from`, or its own
        start.
        """
        if state is not None:
            self._build(state.weights, str(self.folder.checkpoints))
        elif self.config.init_from is None:
            self._build(None, "")
        else:
            source = RunFolder(Path(self.config.init_from))
            known = (self.folder.identity() or {}).get("weights", {}).get("init_from")
            if known not in (None, selected_digest(source)):
                raise ConfigError(
                    f"{source.path}: other weights are selected there than when this run began, so that it would begin"
                    f" anew from another start; use another `name` or `seed`, or delete {self.folder.path}"
                )
            self._build(*best_weights(source))
            if changed := differences(source.method_state() or {}, self.method.state()):
                raise ConfigError(
                    f"{source.path}: its weights mean something else in this run (other rows of the word table, or"
                    f" another encoder): {'; '.join(changed[:3])[:300]}. Train on the same texts, or begin without"
                    " init_from"
                )

    def _build(self, weights: Mapping[str, Tensor] | None, where: str) -> None:
        """The method with the weights to go on from, on the device."""
        config, known = self.config, self.folder.method_state()
        self.method = build_method(config, texts=None if known is not None else training_texts(config), state=known)
        self.method.gradient_checkpointing = config.runtime.gradient_checkpointing
        self.method.backbone.slices = not self.strategy.shards_weights
        self.step = Step(self.method).to(self.strategy.device)
        self.method.aux.to(self.strategy.device)
        trained = [prefix for name in config.stages for prefix in self.method.trainable(name)]
        self.kept = {n: p for n, p in self.step.named_parameters() if n.startswith(("net.", *trained))}
        if weights is not None:
            checkpoint.restore_weights(self.kept, weights, where)

    def _introduce(self, done: RunProgress, passed: list[str], *, resumed: bool) -> None:
        facts = self.strategy.facts

        def record() -> None:
            self.folder.keep_method_state(self.method.state())
            self.folder.settle_best(done.best)
            self.folder.started({"step": done.step, "resumed": resumed, "steps": self.total, **facts})

        self._on_main(record)  # a stage under a sharded strategy is built from what was just kept
        for message in [*passed, *self.stand_ins]:
            self.log.say(message)
        what = f"resuming at step {done.step} of {self.total}" if resumed else f"{self.total} steps"
        self.log.say(
            f"{facts['strategy']} on {facts['world']} process(es), {facts['device']}, {facts['precision']}; {what}"
        )

    def _stages(self, done: RunProgress, state: checkpoint.State | None) -> None:
        """All stages that are left. Raises Stopped when there was a request, and what there is to save was given to the
        writer.
        """
        names, said = list(self.config.stages), set[str]()
        for name in names[names.index(done.stage) if done.stage else 0 :]:
            if done.stage != name:
                if done.stage:
                    self._start_from_best(done)
                done.stage, done.stage_step, state = name, 0, None
            self.stage = StageRun(
                name, config=self.config, step=self.step, strategy=self.strategy, folder=self.folder, stop=self.stop,
                order=self.orders[name], datasets=self.data[name], fields=self.fields[name], state=state,
                phases=self.phases, tell=self.log.event, check=self.log.check,
            )  # fmt: skip
            for text in self.stage.advice:
                if text not in said:
                    self.log.say(text)
                    said.add(text)
            self._steps(self.stage, done)

    def _record_shards(self, done: RunProgress, stage: StageRun) -> None:
        """What every rank holds after a first step, for whoever doubts that a strategy is what it says."""
        held = self.strategy.all(stage.engine.held())
        self.log.event(done.step, "held", {"stage": stage.name, "strategy": stage.engine.name, "bytes": held})

    def _steps(self, stage: StageRun, done: RunProgress) -> None:
        """The steps of a stage, validated and saved as the config says."""
        recorded = False
        if done.unvalidated:
            self._between(done, stage, stopping=False)
        for values in stage.steps(done):
            if not recorded:
                recorded = True
                self._record_shards(done, stage)
            stopping, logged = values.pop("stopping"), values.pop("logged")
            self.log.step(done.step, values, keep=logged)
            self.profiler.step()
            self._between(done, stage, stopping=stopping)

    def _between(self, done: RunProgress, stage: StageRun, *, stopping: bool) -> None:
        """Validation and checkpoint, where they are due. Raises Stopped when asked to; a validation that is cut short
        is made up for.
        """
        every, last = stage.settings.validate_every, done.stage_step == stage.settings.steps
        improved = False
        try:
            done.unvalidated = last or bool(every and done.stage_step % every == 0)
            if done.unvalidated:
                improved = self._validate(done, stage)
                done.unvalidated = False
            elif stopping:
                self.stop.leave(self.strategy)
        except Stopped:
            self._save(done, stage)
            raise
        if last or improved or done.step % self.config.runtime.checkpoint_every == 0:
            self._save(done, stage)

    def _validate(self, done: RunProgress, stage: StageRun) -> bool:
        self._tell_truncated(done)
        if done.substituted > self._substituted:
            self._substituted = done.substituted
            drawn, listed = samples(self.config, done), self.folder.path / "substituted.jsonl"
            self.log.say(
                f"step {done.step}: {done.substituted} of {drawn} samples so far were broken, and others stood in"
                f" ({listed})"
            )

        def before(what: str) -> None:
            self.phases.heard()
            self.stop.leave(self.strategy)

        with self.phases.during("validation"), stage.ema.in_place() if stage.ema else nullcontext():
            value, lines = validate(
                self.config, self.method, stage.engine, self.strategy, before=before, alive=self.phases.heard
            )
        improved = done.best is None or value > done.best["value"]
        self.log.event(done.step, "validation", lines)
        left_out = blank({key.split("/")[0]: int(n) for key, n in lines.items() if key.endswith("/captions_blank")})
        best = " (best so far)" if improved else ""
        self.log.say(f"step {done.step}: validation {self.config.select} {value:.2f}{best}{left_out}")
        if improved:
            done.best = {"step": done.step, "stage": done.stage, "metric": self.config.select, "value": value}
        return improved

    def _tell_truncated(self, done: RunProgress) -> None:
        """Texts that lost their ends since this start of the run, wherever there are new ones."""
        texts = total(self.strategy, self.method.truncated)
        if texts > self._truncated:
            self._truncated = texts
            self.log.event(done.step, "truncated", {"texts": texts})
            self.log.say(
                f"step {done.step}: {texts} texts were longer than the model reads, and cut (in training and validation"
                " so far)"
            )

    def _save(self, done: RunProgress, stage: StageRun) -> None:
        """Copies the state to the CPU of those who write it while training goes on: rank 0, or all. Waits for the save
        before.
        """
        begun = time.perf_counter()
        self.phases.enter("checkpoint")
        self._written()
        scaler = self.strategy.scaler
        values = {
            "step": done.step,
            "progress": vars(done),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        values |= {"run": self.digest, "made_by": {"strategy": self.strategy.name, "world": self.strategy.world}}
        weights, optimizer, auxiliary = (
            stage.engine.weights(self.kept),
            stage.engine.optimizer_state(),
            stage.auxiliary_state(),
        )
        state = checkpoint.State(copy.deepcopy(values), weights, optimizer, auxiliary)
        best = copy.deepcopy(done.best)

        def committed() -> None:
            if best:
                self.folder.keep_best(best)
            self._prune(best)

        if self.strategy.main or self.strategy.in_shards:
            self.writer.write(state, committed if self.strategy.main else lambda: None)
        self.log.event(done.step, "checkpoint", {"stall_s": time.perf_counter() - begun})

    def _written(self) -> None:
        """The last save and the log are on disk, or every rank raises why they are not."""

        def settle() -> None:
            self.writer.wait()
            self.log.settle()

        self.strategy.together(settle)

    def _publish(self, done: RunProgress) -> None:
        """RUN/model.safetensors: the selected weights, for everything that comes after training."""
        assert done.best is not None
        weights, _ = best_weights(self.folder, done.best)
        self.folder.require_held()
        facts = {"step": done.step, "best": done.best, "skipped": done.skipped, "substituted": done.substituted}
        checkpoint.publish(weights, self.folder.path / "model.safetensors", facts)
        self._prune(done.best)  # a start that ended between its last save and here has left that to this one

    def _prune(self, best: Mapping[str, Any] | None) -> None:
        """Not at a start: the newest checkpoint may be damaged then, and an older one the last that is healthy."""
        checkpoint.prune(self.folder.checkpoints, keep=self.config.runtime.keep, best=best["step"] if best else None)

    def _find_checkpoint(self) -> tuple[checkpoint.State | None, list[str]]:
        """The newest healthy checkpoint, chosen by rank 0 and checked by every rank."""
        found: list[tuple[Path | None, list[str], str]] = []

        def look() -> None:
            digest = self.folder.digest
            found.append((*checkpoint.newest(self.folder.checkpoints, digest), digest))

        self._on_main(look)
        path, passed, self.digest = self.strategy.agree(found[0] if found else None)
        if path is None:
            return None, passed
        state: list[checkpoint.State] = []
        self.strategy.together(lambda: state.append(checkpoint.load(path, self.strategy)))
        return state[0], passed

    def _start_from_best(self, done: RunProgress) -> None:
        """A later stage starts from the best checkpoint of the stage before it, not from its last."""
        self._written()
        earlier = done.best["step"] if done.best and done.best["stage"] == done.stage else done.step
        if self.strategy.replicated and earlier == done.step and not self.config.stages[done.stage].ema:
            return
        path = checkpoint.folder_of(self.folder.checkpoints, earlier)
        state = checkpoint.load(path)
        if self.strategy.replicated:
            checkpoint.restore_weights(self.kept, selected(state), str(path))
        else:  # what a sharded stage has made of the modules is not undone: they are built anew
            self._build(selected(state), str(path))
        for key, network in self.method.aux.items():
            own = checkpoint.below(f"{key}/weights/", state.auxiliary)
            checkpoint.restore_weights(dict(network.named_parameters()), own, f"{path}: auxiliary network {key}")
        if earlier != done.step:
            self.log.say(f"next stage starts from step {earlier}, the best of stage {done.stage}")

    def _order(self, name: str) -> Order:
        fields, runtime = self.fields[name], self.config.runtime
        languages = tuple(fields.targets) or (ENGLISH,)
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


def selected_digest(folder: RunFolder) -> str:
    """Of the files of a run's selected checkpoint, as its state records them. CheckpointError when there is none."""
    best = folder.best()
    if best is None:
        raise CheckpointError(f"{folder.path} has no selected checkpoint (best.json); train that run first")
    return digest_json(checkpoint.state_of(checkpoint.folder_of(folder.checkpoints, best["step"]))[0]["sha256"])


def best_weights(folder: RunFolder, best: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], str]:
    """Weights of a run's selected checkpoint (`best`; None: what best.json says), and its path.

    Raises CheckpointError naming the folder when there is none.
    """
    best = best or folder.best()
    if best is None:
        raise CheckpointError(f"{folder.path} has no selected checkpoint (best.json); train that run first")
    path = checkpoint.folder_of(folder.checkpoints, best["step"])
    return selected(checkpoint.load(path)), str(path)
