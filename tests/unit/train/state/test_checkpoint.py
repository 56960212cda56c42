"""Checkpoints: exact round trip, damage is noticed and passed over, pruning keeps what is needed."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ccr_dist.config import StageConfig
from ccr_dist.errors import CheckpointError, StorageError
from ccr_dist.train.optimizers.optimizer import make_optimizer
from ccr_dist.train.processes import Processes, Ranks
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.checkpoint import State
from ccr_dist.train.strategies.replicated import Single


def state(step: int) -> State:
    weights = {"net.a": torch.full((3, 2), float(step)), "net.b": torch.arange(4.0)}
    return State({"step": step, "progress": {"step": step}}, weights, {"net.a/exp_avg": torch.ones(3, 2)}, {})


def test_round_trip(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(5))
    back = checkpoint.load(folder)
    assert back.values["progress"] == {"step": 5}
    assert all(torch.equal(back.weights[name], value) for name, value in state(5).weights.items())
    assert torch.equal(back.optimizer["net.a/exp_avg"], torch.ones(3, 2))


@pytest.mark.parametrize("damage", ["truncated", "missing file", "other bytes", "no state", "torn state"])
def test_damaged_checkpoints_are_passed_over_with_a_message(tmp_path: Path, damage: str) -> None:
    good, bad = checkpoint.save(tmp_path, state(5)), checkpoint.save(tmp_path, state(9))
    victim = bad / ("state.json" if "state" in damage else "weights.safetensors")
    content = victim.read_bytes()
    if damage in ("missing file", "no state"):
        victim.unlink()
    elif damage == "other bytes":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        victim.write_bytes(content[: len(content) // 2])
    found, passed = checkpoint.newest(tmp_path)
    assert found == good
    assert len(passed) == 1 and str(bad) in passed[0]
    with pytest.raises(CheckpointError, match="step-00000009"):
        checkpoint.load(bad)


def test_every_rank_looks_at_its_share_of_the_shards(tmp_path: Path) -> None:
    """Of files that nobody reads alone; whole tensors are checked by everybody."""
    whole, sharded = (
        checkpoint.save(tmp_path / "whole", state(5)),
        checkpoint.save(tmp_path / "sharded", state(5), Ranks()),
    )
    for folder in (whole, sharded):
        victim = next(path for path in folder.rglob("*.safetensors") if "optimizer" in str(path))
        victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert [bool(checkpoint.problem(whole, Ranks(rank, 2))) for rank in (0, 1)] == [True, True]
    assert [bool(checkpoint.problem(sharded, Ranks(rank, 2))) for rank in (0, 1)] == [True, False]
    assert checkpoint.problem(sharded) is not None


def test_what_killed_processes_left_is_deleted(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(5))
    for name in (".step-00000009.77.tmp", ".step-00000003.gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"torn")
    checkpoint.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_saving_over_a_damaged_checkpoint_heals_it_and_over_a_good_one_changes_nothing(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(5))
    (folder / "weights.safetensors").write_bytes(b"")
    checkpoint.save(tmp_path, state(5))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    checkpoint.save(tmp_path, state(5))
    assert checkpoint.problem(folder) is None
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, state(5))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match=r"step-00000009.*make room"):
            checkpoint.save(tmp_path, state(9))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert checkpoint.newest(tmp_path)[1] == []


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        checkpoint.save(tmp_path, state(step))
    checkpoint.prune(tmp_path, keep=2, best=2)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]


def engine(model: nn.Module) -> Single:
    settings = StageConfig(steps=9, batch=4, lr=0.1)
    processes = Processes(threads=1, world=None, group=False, timeout=60)
    named = dict(model.named_parameters())
    return Single(processes, model, named, lambda p: make_optimizer(settings, p, torch.device("cpu")), settings)


def test_optimiser_state_goes_by_parameter_name() -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    first = engine(model)
    first.backward(model(torch.randn(4, 3)).sum())
    first.update(0.1)
    tensors = first.optimizer_state()
    assert {"weight/exp_avg", "weight/exp_avg_sq", "weight/step", "bias/exp_avg"} <= tensors.keys()
    checkpoint.restore_weights(dict(twin.named_parameters()), first.weights(first.trained), "twin")
    second = engine(twin)
    second.restore(dict(reversed(tensors.items())))  # another order: only names count
    for each in (first, second):
        each.backward(each.step(torch.ones(1, 3)).sum())
        each.update(0.1)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    trained = engine(model)
    trained.backward(model(torch.randn(4, 3)).sum())
    trained.update(0.1)
    weights, state = trained.weights(trained.trained), trained.optimizer_state()
    trained.backward(model(torch.full((1, 3), torch.inf)).sum())
    assert not math.isfinite(trained.update(0.1))
    for before, after in ((weights, trained.weights(trained.trained)), (state, trained.optimizer_state())):
        assert all(torch.equal(before[name], after[name]) for name in before)
    trained.backward(model(torch.ones(1, 3)).sum())
    assert trained.update(0.1) > 0 and not torch.equal(weights["bias"], model.bias), "and the next step is one again"


def test_the_writer_tells_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, told = checkpoint.Writer(tmp_path), []
    writer.write(state(3), lambda: told.append(checkpoint.steps(tmp_path)))
    writer.wait()
    assert told == [[3]], "called when the folder is there"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        writer.write(state(4), lambda: told.append("never"))
        with pytest.raises(StorageError, match="step-00000004"):
            writer.wait()
    writer.write(state(5), lambda: None)
    writer.close()
    assert checkpoint.steps(tmp_path) == [3, 5] and len(told) == 1


def test_weights_that_do_not_fit_are_named() -> None:
    own = {"net.a": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"missing \['net.a'\], unknown \['net.b'\]"):
        checkpoint.restore_weights(own, {"net.b": torch.zeros(2)}, "somewhere")
    with pytest.raises(CheckpointError, match=r"net.a is \(3,\), the model has \(2,\)"):
        checkpoint.restore_weights(own, {"net.a": torch.zeros(3)}, "somewhere")
