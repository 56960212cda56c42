"""Checkpoints: exact round trip, damage is noticed and passed over, pruning keeps what is needed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from ccr_dist.errors import CheckpointError, StorageError
from ccr_dist.train import checkpoint
from ccr_dist.train.checkpoint import State


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


def test_saving_over_a_damaged_checkpoint_heals_it_and_over_a_good_one_changes_nothing(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(5))
    (folder / "weights.safetensors").write_bytes(b"")
    checkpoint.save(tmp_path, state(5))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    checkpoint.save(tmp_path, state(5))
    assert checkpoint.problem(folder) is None
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_optimiser_state_goes_by_parameter_name() -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    first = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    first.step()
    second = torch.optim.AdamW([twin.bias, twin.weight], lr=0.1)  # another order: only names count
    tensors = checkpoint.optimizer_tensors(first, dict(model.named_parameters()))
    assert {"weight/exp_avg", "weight/exp_avg_sq", "weight/step", "bias/exp_avg"} <= tensors.keys()
    checkpoint.restore_optimizer(second, dict(twin.named_parameters()), tensors)
    checkpoint.restore_weights(dict(twin.named_parameters()), dict(model.named_parameters()), "twin")
    for module, optimizer in ((model, first), (twin, second)):
        module.zero_grad()
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


def test_weights_that_do_not_fit_are_named() -> None:
    own = {"net.a": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"missing \['net.a'\], unknown \['net.b'\]"):
        checkpoint.restore_weights(own, {"net.b": torch.zeros(2)}, "somewhere")
    with pytest.raises(CheckpointError, match=r"net.a is \(3,\), the model has \(2,\)"):
        checkpoint.restore_weights(own, {"net.a": torch.zeros(3)}, "somewhere")
