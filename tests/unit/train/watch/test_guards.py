"""What may go wrong in a run: steps that are not finite, losses that stand out, no memory, silence, requests to
stop.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ccr_dist import errors
from ccr_dist.config import RunConfig, RuntimeConfig
from ccr_dist.errors import ConfigError, NonFiniteError, OutOfMemoryError
from ccr_dist.methods.dasd.method import Dasd
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands, loop, prepared, resume
from ccr_dist.train.record.phases import Phases
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.step import stage
from ccr_dist.train.strategies.strategy import Strategy
from ccr_dist.train.watch import guards, memory
from ccr_dist.train.watch.guards import Guards, bound
from tests import toy

pytestmark = pytest.mark.long


def train(path: Path, *overrides: str, code: int = 0) -> RunConfig:
    config = load_config(path, overrides)
    assert commands.train([config], test=False, world=None) == code
    return config


def log(config: RunConfig, event: str | None = None) -> list[dict[str, Any]]:
    """Lines of one kind of event, or of steps."""
    lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == event]


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(config.folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int, factor: float = float("nan")) -> None:
    """Multiplies the main loss of these steps."""
    losses = Dasd.losses

    def poisoned(self: Any, stage: str, batch: Any, outputs: Any, ctx: Any) -> dict[str, torch.Tensor]:
        found = losses(self, stage, batch, outputs, ctx)
        return {name: term * factor for name, term in found.items()} if ctx.step in steps else found

    monkeypatch.setattr(Dasd, "losses", poisoned)


# Steps that are not finite.


def test_a_step_that_is_not_finite_changes_nothing_and_leaves_what_it_takes_to_make_it_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 3)
    config = train(
        toy.dasd(folder, name="poisoned"), "runtime.checkpoint_every=1", "runtime.keep=20", "runtime.trace=samples"
    )
    before, after = (checkpoint.load(checkpoint.folder_of(config.folder / "checkpoints", step)) for step in (3, 4))
    assert same(before.weights, after.weights) and same(before.optimizer, after.optimizer)
    assert after.values["progress"]["skipped"] == 1

    record = json.loads((config.folder / "nonfinite" / "step-00000003.json").read_text(), parse_constant=pytest.fail)
    seen = [json.loads(line) for line in (config.folder / "trace" / "rank0.jsonl").read_text().splitlines()][3]
    assert (record["k"], record["seed"], record["lang"]) == (seen["k"], 0, "es")
    assert record["ranks"] == [{"slots": seen["slots"], "items": seen["items"]}]
    assert record["values"]["loss"] == record["values"]["grad_norm"] == "nan"
    norms = record["gradient_norms"]
    assert norms.keys() == {key.rpartition("/")[0] for key in after.optimizer} and "nan" in norms.values()


def test_only_the_gradients_to_blame_are_called_not_finite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although clipping spreads a norm that is not finite to all of them."""
    outputs = Dasd.outputs

    def one(self: Any, stage: str, batch: Any) -> dict[str, torch.Tensor]:
        if batch.k == 2:
            self.front_end.linear.bias.register_hook(lambda gradient: gradient * float("inf"))
        return outputs(self, stage, batch)

    monkeypatch.setattr(Dasd, "outputs", one)
    with pytest.raises(
        NonFiniteError, match=r"1 of \d+ gradients are not finite, the first that of net\.front_end\.linear\.bias"
    ):
        train(toy.dasd(folder, name="blamed"), "runtime.skipped_steps=0")


def test_past_the_budget_the_run_ends_with_its_own_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 1, 2, 3)
    with pytest.raises(
        NonFiniteError, match=r"step 3 of .*3 such steps, runtime\.skipped_steps allows 2.*last checkpoint is intact"
    ) as caught:
        train(toy.dasd(folder, name="budget"), "runtime.skipped_steps=2")
    assert caught.value.exit_code == 7
    run = folder / "runs" / "budget-s0"
    assert sorted(path.name for path in (run / "nonfinite").iterdir()) == [f"step-{k:08d}.json" for k in (1, 2, 3)]


def test_a_short_run_may_not_be_made_of_steps_that_were_not_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten such steps are allowed in a run, which is all of this one."""
    poison(monkeypatch, 1, 2, 3, 5)
    with pytest.raises(
        NonFiniteError, match=r"step 3 of .*3 such steps, runtime\.skipped_fraction=0\.2 of 10 steps allows 2"
    ):
        train(toy.dasd(folder, name="short"))
    train(toy.dasd(folder, name="told"), "runtime.skipped_fraction=0.5")
    assert "complete" in (said := capsys.readouterr().err) and "4 of 10 steps were skipped" in said


def test_an_auxiliary_network_is_not_stepped_by_a_gradient_that_is_not_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Dasd.auxiliary_losses

    def poisoned(self: Any, stage: str, batch: Any, outputs: Any, ctx: Any) -> dict[str, torch.Tensor]:
        found = losses(self, stage, batch, outputs, ctx)
        return {name: loss * float("nan") for name, loss in found.items()} if ctx.step == 3 else found

    monkeypatch.setattr(Dasd, "auxiliary_losses", poisoned)
    config = train(toy.dasd(folder, name="opponent"), "runtime.checkpoint_every=1", "runtime.keep=20")
    before, after = (checkpoint.load(checkpoint.folder_of(config.folder / "checkpoints", step)) for step in (3, 4))
    assert before.auxiliary and same(before.auxiliary, after.auxiliary)
    assert after.values["progress"]["skipped"] == 1, "it is counted, although the other networks were stepped"


# Losses that stand out.


def spikes(tmp_path: Path, losses: list[tuple[str, float]]) -> list[int]:
    """The steps at which these losses of (language, value) were told of."""
    told: list[int] = []
    strategy = Strategy(RuntimeConfig(threads=1))
    guard = Guards(
        SimpleNamespace(runtime=RuntimeConfig()),
        strategy,
        RunFolder(tmp_path),
        lambda step, name, values: told.append(step),
    )
    for step, (lang, loss) in enumerate(losses):
        guard.spike(RunProgress(step=step), SimpleNamespace(lang=lang, k=step, items=["x"]), loss)
    return told


def test_a_loss_above_the_median_by_some_deviations_is_a_spike(tmp_path: Path) -> None:
    calm = [2 + 0.02 * (step * 7 % 11 - 5) for step in range(44)]  # 1.9 to 2.1, median 2, median deviation 0.06
    assert bound(deque(calm[:15])) == float("inf") and bound(deque(calm)) == pytest.approx(2 + 8 * 0.06)
    assert bound(deque([5.0] * 20)) == pytest.approx(5 + 8 * 0.05), "losses that do not vary"
    assert spikes(tmp_path, [("de", loss) for loss in [*calm, 2.47, 2.6, 2.0, float("nan")]]) == [45]
    other = [("cs", 9.0)] * 20
    mixed = [
        pair for pairs in zip([("de", loss) for loss in calm], itertools.cycle(other), strict=False) for pair in pairs
    ]
    assert spikes(tmp_path, mixed) == [], "languages differ in their losses"
    falling = [("de", 10 * 0.9**step) for step in range(60)]
    assert spikes(tmp_path, falling) == []


def test_a_spike_is_logged_with_its_items_and_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "LEAST", 4)
    path = toy.dasd(folder, name="quiet", cla=10)
    calm = train(path, "stages.cla.lr=1e-5")
    assert log(calm, "spike") == []
    item = log(calm)[0]
    assert item["step"] == 1
    monkeypatch.setattr(guards, "bound", lambda losses: -1.0 if len(losses) == 7 else float("inf"))
    told = train(path, "stages.cla.lr=1e-5", "name=spiking", "runtime.trace=samples")
    (line, *_) = log(told, "spike")
    traced = [json.loads(line) for line in (told.folder / "trace" / "rank0.jsonl").read_text().splitlines()]
    assert line["items"] == traced[7]["items"] and line["k"] == traced[7]["k"] and line["loss"] == log(told)[7]["loss"]
    assert same(weights(calm), weights(told))


# Memory.


def test_errors_that_mean_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert memory.ran_out(caught.value)
    assert memory.ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) and memory.ran_out(
        MemoryError()
    )
    assert not memory.ran_out(RuntimeError("size mismatch")) and not memory.ran_out(ConfigError("out of memory"))


def test_running_out_of_memory_names_phase_batch_and_what_to_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(self: Any, *rest: Any) -> Any:
        return torch.empty(2**50)

    monkeypatch.setattr(Dasd, "losses", greedy)
    with pytest.raises(OutOfMemoryError) as caught:
        train(toy.dasd(folder, name="greedy"))
    text, code = str(caught.value), caught.value.exit_code
    assert code == 10 and "rank 0 ran out of memory in losses at step 0" in text and "can't allocate memory" in text
    assert "rows 10" in text and "lang es" in text and "target_text up to" in text and "optimizer" in text
    keys = [line.split(":")[0].strip(" -") for line in text.splitlines() if line.startswith("  - ")]
    assert keys[:4] == [
        "runtime.contrastive=tiled",
        "runtime.micro_batch=5",
        "runtime.gradient_checkpointing=true",
        "runtime.precision=bf16",
    ]
    assert any("zero2 or fsdp2" in key for key in keys)


def test_advice_leaves_out_what_is_on_already_or_cannot_help(folder: Path) -> None:
    config = load_config(
        toy.dasd(folder, name="advice"),
        [
            "runtime.precision=bf16",
            "runtime.gradient_checkpointing=true",
            "data.source_feature=f",
            "data.visual=feature.x",
        ],
    )
    asked: dict[str, Any] = {"strategy": "fsdp2", "world": 8, "rows": 1, "cut": True, "heavy": False}
    assert memory.advice("forward", config, **asked) == []
    assert "micro_batch=4" in memory.advice("forward", config, **{**asked, "rows": 8})[0]
    assert memory.advice("forward", config, **{**asked, "rows": 8, "cut": False}) == []
    assert (
        "zero2 or fsdp2:"
        in memory.advice("forward", config, **{**asked, "rows": 8, "strategy": "ddp", "heavy": True})[0]
    )
    assert "eval_batch=64" in memory.advice("validation", config, **asked)[0]
    assert "several processes" in memory.advice("update", config, **{**asked, "strategy": "single", "world": 1})[0]


# Silence.


def test_a_hang_limit_must_be_less_than_the_collectives_timeout() -> None:
    with pytest.raises(ValueError, match="must be less than timeout"):
        RuntimeConfig(hang=1800)


def test_a_process_without_a_sign_of_life_ends_with_its_stacks(tmp_path: Path) -> None:
    """Stuck in C, too: a sleep that no signal ends."""
    code = f"""
import ctypes, time, torch
from pathlib import Path
from ccr_dist.train.record.phases import Phases
from ccr_dist.train.watch.watchdog import Watchdog
phases = Phases(torch.device("cpu"))
with Watchdog(phases, silence_s=1.0, rank=3, run=Path({str(tmp_path)!r})):
    for step in range(8):
        phases.begin(step, measured=False)
        time.sleep(0.2)
    phases.enter("backward")
    ctypes.CDLL(None).sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == errors.HangError.exit_code == 9
    record = (tmp_path / "hang" / "rank-3.txt").read_text()
    for said in (done.stderr, record):
        assert "rank 3" in said and "step 7, backward, for 1 s" in said and 'File "<string>", line 12' in said


# Requests to stop.


def stop_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, call: int = 1) -> None:
    """A signal while this function is called for the n-th time; it would go on for a minute."""
    original, calls = getattr(owner, name), itertools.count(1)

    def slow(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGUSR1)
            threading.Event().wait(0 if owner is loop and name == "validate" else 60)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize(
    "where", [(prepared, "open_datasets"), (resume, "build_method"), (stage, "make_loader")], ids=lambda where: where[1]
)
def test_a_stop_before_the_first_step_is_honoured_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: tuple[Any, str]
) -> None:
    owner, name = where
    if name == "make_loader":  # the first batch takes long, not the making of the loader
        make = owner.make_loader
        monkeypatch.setattr(owner, "make_loader", lambda *args, **options: Slow(make(*args, **options)))
    else:
        stop_in(monkeypatch, owner, name)
    config = train(toy.dasd(folder, name=f"stop-{name}"), code=75)
    assert "stopped by SIGUSR1" in capsys.readouterr().err
    assert not list((config.folder / "checkpoints").glob("step-*"))


class Slow:
    """A loader whose first batch does not come before the signal."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGUSR1)
        threading.Event().wait(60)
        yield from self.batches


@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_stop_during_a_validation_saves_and_the_validation_is_made_up_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: int
) -> None:
    """In the middle of a stage, at the end of the first one, and at the very end."""
    options = ("stages.cla.validate_every=3", "runtime.checkpoint_every=100")
    calm = train(toy.dasd(folder, name="calm-validation", cla=6, cma=4), *options, "stages.cma.validate_every=2")
    path = toy.dasd(folder, name=f"cut-{call}", cla=6, cma=4)
    with monkeypatch.context() as patched:
        stop_in(patched, loop, "validate", call=call)
        cut = train(path, *options, "stages.cma.validate_every=2", code=75)
    step = {1: 3, 2: 6, 4: 10}[call]
    assert f"stopped by SIGUSR1 at step {step}, saved" in capsys.readouterr().err
    assert checkpoint.steps(cut.folder / "checkpoints")[-1] == step
    assert [line["step"] for line in log(cut, "validation")] == [3, 6, 8, 10][: call - 1]
    train(path, *options, "stages.cma.validate_every=2")
    assert f"resuming at step {step} of 10" in capsys.readouterr().err
    assert log(cut, "validation") == log(calm, "validation")
    assert (cut.folder / "best.json").read_text() == (calm.folder / "best.json").read_text() and same(
        weights(cut), weights(calm)
    )


def test_an_evaluation_is_stopped_without_a_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train(toy.dasd(folder, name="measured"))
    (config.folder / "stop").touch()
    assert commands.evaluate([config], split="test", again=False, world=None) == 75
    assert "stopped by file" in capsys.readouterr().err and not (config.folder / "results").exists()
    (config.folder / "stop").unlink()
    assert commands.evaluate([config], split="test", again=False, world=None) == 0


def test_phases_know_what_is_at_hand_and_how_long_it_took() -> None:
    phases, heard = Phases(torch.device("cpu")), []
    phases.heard = lambda: heard.append(phases.name)
    phases.begin(7, measured=True)
    phases.enter("forward")
    assert str(phases) == "step 7, forward, for 0 s"
    spent = phases.seconds()
    assert (
        spent.keys() == {"data", "agree", "forward", "losses", "backward", "update"}
        and spent["data"] > 0 < spent["forward"]
    )
    assert spent["losses"] == 0
    with phases.during("validation"):
        assert phases.name == "validation"
    assert heard == ["data", "forward", "validation", "forward"]
