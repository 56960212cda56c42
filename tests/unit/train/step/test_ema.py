"""The moving average of the weights: its formula, and that it is what is validated, published and gone on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ccr_dist.config import RunConfig
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.methods.dasd.method import Dasd
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands, loop
from ccr_dist.train.state import checkpoint
from ccr_dist.train.step.ema import Ema
from tests import toy
from tests.nearness import close

pytestmark = pytest.mark.long

AVERAGED = (
    "stages.cla.ema=0.5",
    "stages.cma.ema=0.5",
    "runtime.checkpoint_every=1",
    "runtime.keep=20",
    "stages.cla.validate_every=2",
)


def train(path: Path, *overrides: str, strategy: str | None = None) -> RunConfig:
    config = load_config(path, overrides)
    assert commands.train([config], test=False, world=None, spread=strategy) == 0
    return config


def saved(config: RunConfig, step: int) -> checkpoint.State:
    return checkpoint.load(checkpoint.folder_of(config.folder / "checkpoints", step))


def average(state: checkpoint.State) -> dict[str, torch.Tensor]:
    return {name.removeprefix("ema/"): value for name, value in state.auxiliary.items() if name.startswith("ema/")}


def validations(config: RunConfig) -> list[dict[str, Any]]:
    lines = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == "validation"]


def test_the_next_stage_starts_from_the_average(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last step of the stage is its best."""
    started: dict[str, Any] = {}
    next_stage_model = loop.next_stage_model

    def noted(*given: Any) -> Any:
        model, step = next_stage_model(*given)
        started.update(step=step, weights={name: each.detach().clone() for name, each in model.kept.items()})
        return model, step

    monkeypatch.setattr(loop, "next_stage_model", noted)
    config = train(toy.dasd(folder, name="from-average"), "stages.cla.ema=0.5", "runtime.keep=20")
    state = saved(config, started["step"])
    assert started["step"] == 6 and average(state)
    assert all(torch.equal(started["weights"][name], value) for name, value in average(state).items())
    assert not all(torch.equal(state.weights[name], value) for name, value in average(state).items())


def test_the_average_is_that_of_the_formula_and_published_and_restored(folder: Path) -> None:
    config = train(toy.dasd(folder, name="averaged"), *AVERAGED)
    plain = train(
        toy.dasd(folder, name="plain"), "runtime.checkpoint_every=1", "runtime.keep=20", "stages.cla.validate_every=2"
    )
    states = {step: saved(config, step) for step in range(1, 11)}
    assert average(states[1]).keys() == states[1].weights.keys()
    for name, value in average(states[2]).items():
        one, two = states[1].weights[name].double(), states[2].weights[name].double()
        expected = average(states[1])[name].double()
        decay = 2 / 11  # min(0.5, (1 + k) / (10 + k)) of k = 1
        close(value, (decay * expected + (1 - decay) * two).float())
        assert torch.equal(states[2].weights[name], saved(plain, 2).weights[name]), "training does not see it"
        assert not torch.equal(one, two) or torch.equal(value, average(states[1])[name])
    last = average(states[6])
    for name, value in average(states[5]).items():
        decay = 6 / 15
        close(last[name], decay * value + (1 - decay) * states[6].weights[name])
    best = json.loads((config.folder / "best.json").read_text())["step"]
    published = load_file(config.folder / "model.safetensors")
    assert all(torch.equal(published[name], value) for name, value in average(states[best]).items())
    assert [line["mR"] for line in validations(config)] != [line["mR"] for line in validations(plain)], (
        "the average is what is validated"
    )

    # the next stage starts from what was selected
    chosen = max((line for line in validations(config) if line["step"] <= 6), key=lambda line: line["mR"])["step"]
    decay, start, first = 1 / 10, average(states[chosen]), average(states[7])
    for name, value in first.items():
        close(value, decay * start[name] + (1 - decay) * states[7].weights[name])


@pytest.mark.parametrize("step", [3, 8])
def test_a_resumed_run_goes_on_with_the_same_bits(folder: Path, step: int) -> None:
    calm = train(toy.dasd(folder, name="averaged"), *AVERAGED)
    hurt = train(toy.dasd(folder, name=f"hurt-{step}"), *AVERAGED)
    for path in (hurt.folder / "checkpoints").iterdir():
        if int(path.name[5:]) > step:
            path.rename(hurt.folder / path.name)
    (hurt.folder / "model.safetensors").unlink()
    train(toy.dasd(folder, name=f"hurt-{step}"), *AVERAGED)
    for name in ("weights", "optimizer", "auxiliary"):
        file = Path("checkpoints") / "step-00000010" / f"{name}.safetensors"
        assert (hurt.folder / file).read_bytes() == (calm.folder / file).read_bytes()
    assert (hurt.folder / "model.safetensors").read_bytes() == (calm.folder / "model.safetensors").read_bytes()
    assert [line["mR"] for line in validations(hurt)] == [line["mR"] for line in validations(calm)]


def test_shards_are_averaged_like_the_whole(folder: Path) -> None:
    """FSDP2 keeps what it gathered for a validation: weights of the average must not leak into the next step."""
    calm = train(toy.dasd(folder, name="averaged"), *AVERAGED)
    sharded = train(toy.dasd(folder, name="sharded"), *AVERAGED, strategy="fsdp2")
    for step in (3, 7, 10):
        one, other = saved(calm, step), saved(sharded, step)
        for mine, theirs in ((one.weights, other.weights), (average(one), average(other))):
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                close(theirs[name], value)


@pytest.mark.parametrize("strategy", [None, "fsdp2"])
def test_an_average_starts_from_weights_within_their_limits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, strategy: str | None
) -> None:
    def limits(self: Dasd, stage: str) -> dict[str, tuple[float, float]]:
        return {f"net.{name}": (-1e-3, 1e-3) for name, _ in self.net.named_parameters()}

    monkeypatch.setattr(Dasd, "limits", limits)
    config = train(toy.dasd(folder, name=f"bounded-{strategy}"), *AVERAGED, strategy=strategy)
    assert all(value.abs().max() <= 1e-3 * (1 + 1e-6) for value in average(saved(config, 1)).values())


def test_what_cannot_be_averaged_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"stages\.cla\.ema needs the weights between steps, which zero2 keeps in partitions"
    ):
        train(toy.dasd(folder, name="zero"), *AVERAGED, strategy="zero2")
    torch.distributed.destroy_process_group()  # the command would have ended


def test_an_average_of_other_parameters_is_refused(folder: Path) -> None:
    class Engine:
        name, trained = "single", {"net.a": torch.nn.Parameter(torch.ones(2))}

    ema = Ema(Engine(), 0.9)
    with pytest.raises(CheckpointError, match=r"other parameters.*net\.a"):
        ema.restore({"ema/net.b": torch.ones(2)})
