"""Where a run starts: at its beginning, at a checkpoint, or at the best checkpoint of the stage before.

Nothing but a checkpoint is needed to resume: order and random state are functions of the step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ccr_dist.data.storage.store import differences
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method
from ccr_dist.train.assemble import training_texts
from ccr_dist.train.prepared import PreparedRun
from ccr_dist.train.selected import Source
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.step.ema import selected
from ccr_dist.train.strategies.strategy import Step


@dataclass(frozen=True)
class StartingPoint:
    """Where this start of a run begins.

    Attributes:
        state: the checkpoint to resume from; None: the run begins.
        passed: a message for each newer checkpoint that cannot be used.
        digest: of the run's identity.
    """

    state: checkpoint.State | None
    passed: tuple[str, ...]
    digest: str

    def progress(self) -> RunProgress:
        """What was done up to here."""
        return RunProgress(**self.state.values["progress"]) if self.state else RunProgress()


@dataclass(frozen=True)
class BuiltModel:
    """Backbone and method on the device.

    Attributes:
        method: with its backbone.
        step: the module that a strategy wraps.
        kept: the parameters that a checkpoint holds, by name.
    """

    method: Method
    step: Step
    kept: Mapping[str, nn.Parameter]


def find_start(run: PreparedRun) -> StartingPoint:
    """The newest healthy checkpoint of a run, chosen by rank 0 and checked by every rank. Collective."""
    found: list[tuple[Path | None, list[str], str]] = []

    def look() -> None:
        digest = run.folder.digest
        found.append((*checkpoint.newest(run.folder.checkpoints, digest), digest))

    run.on_main(look)
    path, passed, digest = run.strategy.agree(found[0] if found else None)
    if path is None:
        return StartingPoint(None, tuple(passed), digest)
    states: list[checkpoint.State] = []
    run.strategy.together(lambda: states.append(checkpoint.load(path, run.strategy)))
    return StartingPoint(states[0], tuple(passed), digest)


def complete_at(run: PreparedRun, start: StartingPoint) -> int | None:
    """The step at which the run is complete, with the published weights of its last step; None: there is work left.

    Collective.

    Raises:
        CheckpointError: what the run has done is lost. A new beginning would be another run under its name.
    """
    found: list[int | None] = []
    run.on_main(lambda: found.append(_complete_at(run, start)))
    return run.strategy.agree(found[0] if found else None)


def _complete_at(run: PreparedRun, start: StartingPoint) -> int | None:
    folder, state, done = run.folder, start.state, start.progress()
    path = folder.path / "model.safetensors"
    try:
        facts = folder.published()
    except CheckpointError:
        facts = None  # it is made again from the selected checkpoint
    rebuilt = state is None or (folder.path / "method.json").exists()
    last = state is None or done.step == run.total_steps
    if facts and facts.get("step") == run.total_steps and rebuilt and last:
        folder.settle_best(facts["best"])
        return run.total_steps
    if state is None:
        if start.passed or path.exists() or (folder.path / "best.json").exists():
            why = "\n  ".join(start.passed) or f"{folder.checkpoints} has no checkpoint"
            raise CheckpointError(
                f"{folder.path} has been trained, but there is no checkpoint left to resume from:\n  {why}\nRestore a"
                " checkpoint from a copy; or, to train the run again from its beginning, delete that folder"
            )
        return None
    if done.step >= run.total_steps and facts == {} and done.best:
        chosen = checkpoint.folder_of(folder.checkpoints, done.best["step"])
        if wrong := checkpoint.problem(chosen):
            print(
                f"{path}: it has no digest (an earlier version wrote it), and cannot be made again: {wrong}",
                file=sys.stderr,
            )
            return done.step
    return None


def build_model(run: PreparedRun, weights: Mapping[str, Tensor] | None, where: str) -> BuiltModel:
    """Backbone and method with these weights, on the device.

    Args:
        run: prepared and claimed.
        weights: by parameter name; None: the start that the seed fixes.
        where: the weights come from, for messages.

    Raises:
        CheckpointError: the weights do not fit the model.
    """
    config, known = run.config, run.folder.method_state()
    method = build_method(config, texts=None if known is not None else training_texts(config), state=known)
    method.gradient_checkpointing = config.runtime.gradient_checkpointing
    method.backbone.slices = not run.strategy.shards_weights
    step = Step(method).to(run.strategy.device)
    method.aux.to(run.strategy.device)
    trained = [prefix for name in config.stages for prefix in method.trainable(name)]
    kept = {name: p for name, p in step.named_parameters() if name.startswith(("net.", *trained))}
    if weights is not None:
        checkpoint.restore_weights(kept, weights, where)
    return BuiltModel(method, step, kept)


def starting_model(run: PreparedRun, start: StartingPoint) -> BuiltModel:
    """The model at the starting point: of a checkpoint, with the weights of `init_from`, or with its own start.

    Raises:
        ConfigError: the weights of `init_from` are not those that the run began with, or mean something else here.
    """
    if start.state is not None:
        return build_model(run, start.state.weights, str(run.folder.checkpoints))
    if run.config.init_from is None:
        return build_model(run, None, "")
    source = Source(Path(run.config.init_from))
    if source.is_other_than(run.folder.started_from()):
        raise ConfigError(
            f"{source.path}: other weights are selected there than when this run began, so that it would begin"
            f" again from another start; use another `name` or `seed`, or delete {run.folder.path}"
        )
    model = build_model(run, None, "")
    own = model.method.starts_from(source.method_options())
    if changed := differences(source.method_state(), model.method.state()):
        raise ConfigError(
            f"{source.path}: its weights mean something else in this run (other rows of the word table, or"
            f" another encoder): {'; '.join(changed[:3])[:300]}. Train on the same texts, or begin without"
            " init_from"
        )
    weights, where = source.weights(model.kept.keys())
    replaced = {name: p for name, p in model.kept.items() if name in weights or not name.startswith(own)}
    checkpoint.restore_weights(replaced, weights, where)
    return model


def next_stage_model(run: PreparedRun, model: BuiltModel, done: RunProgress) -> tuple[BuiltModel, int]:
    """The model that the next stage starts from: the best of the stage that has ended, not its last.

    Every checkpoint that was begun must be on disk.

    Args:
        run: prepared and claimed.
        model: as the stage left it. Under a strategy with replicated weights it is reused.
        done: progress at the end of the stage.

    Returns:
        The model, and the step of the checkpoint that it comes from.
    """
    step = done.best["step"] if done.best and done.best["stage"] == done.stage else done.step
    replicated = run.strategy.replicated
    if replicated and step == done.step and not run.config.stages[done.stage].ema:
        return model, step
    path = checkpoint.folder_of(run.folder.checkpoints, step)
    state = checkpoint.load(path)
    if replicated:
        checkpoint.restore_weights(model.kept, selected(state), str(path))
    else:  # a sharded stage has replaced parts of the modules, which is not undone: they are built again
        model = build_model(run, selected(state), str(path))
    for key, network in model.method.aux.items():
        own = checkpoint.below(f"{key}/weights/", state.auxiliary)
        checkpoint.restore_weights(dict(network.named_parameters()), own, f"{path}: auxiliary network {key}")
    return model, step
