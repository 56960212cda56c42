"""What is said of a strategy before the first step, and by what numbers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from ccr_dist.config import RuntimeConfig
from ccr_dist.methods import registry
from ccr_dist.methods.base import Method
from ccr_dist.train.strategies.advice import advice, held
from ccr_dist.train.strategies.choose import NAMES

MB = 1_000_000


def told(
    strategy: str, *, micro_batch: int | None = None, gradient_checkpointing: bool = False, **changes: Any
) -> list[str]:
    runtime = RuntimeConfig(micro_batch=micro_batch, gradient_checkpointing=gradient_checkpointing)
    situation = {
        "world": 4,
        "trained": 500 * MB,
        "frozen": 100 * MB,
        "rows": 64,
        "offload": False,
        "gpu": True,
        "recomputes": True,
    }
    return advice(strategy, **{**situation, **changes}, runtime=runtime)


@pytest.mark.parametrize("strategy", ["single", *NAMES])
def test_nothing_is_said_of_what_makes_sense(strategy: str) -> None:
    assert told(strategy) == []
    assert told(strategy, gradient_checkpointing=True) == []


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "fsdp2"])
def test_one_process_has_nothing_to_shard(strategy: str) -> None:
    (text,) = told(strategy, world=1)
    assert text.startswith(f"{strategy} shards nothing on one process")


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_a_tiny_trainable_share_is_told_with_what_is_saved(strategy: str) -> None:
    (text,) = told(strategy, trained=4 * MB, frozen=600 * MB)
    saved = {"zero1": 4 + 4 * (1 - 1 / 4) * 2 - 4 / 4, "zero2": 4 + (4 * (1 - 1 / 4)) * 3 - 4 / 4}[strategy]
    assert (
        f"{strategy} saves each rank {saved:.1f} MB of the 620 MB that ddp would keep" in text
        and "600 MB are frozen" in text
    )
    assert told("zero3", trained=4 * MB, frozen=600 * MB) == told("fsdp2", trained=4 * MB, frozen=600 * MB) == []


def test_options_without_an_effect() -> None:
    (text,) = told("ddp", micro_batch=64)
    assert text == "runtime.micro_batch=64 has no effect: no rank has more than 64 rows of a batch"
    assert told("ddp", micro_batch=63) == []
    (text,) = told("zero3", offload=True, gpu=False)
    assert text.startswith("offload to the CPU has no effect on a CPU")
    (text,) = told("ddp", gradient_checkpointing=True, recomputes=False)
    assert text.startswith("runtime.gradient_checkpointing has no effect")


@pytest.mark.parametrize(("strategy", "offload"), [("zero3", True), ("zero3", False), ("fsdp2", False)])
def test_gathering_for_every_part_of_a_batch_is_told_with_its_volume(strategy: str, offload: bool) -> None:
    (text,) = told(strategy, micro_batch=20, offload=offload)
    assert "makes 4 parts of a rank's 64 rows" in text and "up to 7,200 MB a rank and step" in text
    assert ("come from the CPU" in text) == offload
    assert told("zero2", micro_batch=20) == told("ddp", micro_batch=20) == []


def test_what_ranks_keep_adds_up() -> None:
    """Sharded parts of all ranks make the whole; nothing of ddp is sharded."""
    trained, frozen, world = 40.0, 60.0, 5
    for strategy in ("zero1", "zero2", "zero3", "fsdp2"):
        rank = held(strategy, trained, frozen, world)
        assert world * rank["optimizer"] == pytest.approx(2 * trained)
        assert rank["parameters"] == pytest.approx(
            (trained + frozen) / (world if strategy in ("zero3", "fsdp2") else 1)
        )
    assert held("ddp", trained, frozen, world) == held("ddp", trained, frozen, 1)


@pytest.mark.parametrize("name", registry.names())
def test_methods_that_ignore_gradient_checkpointing_say_so(name: str) -> None:
    kind = registry.method(name)
    if kind.Options.model_construct(name=name).training_stages():
        heeds = any(
            "self.gradient_checkpointing" in inspect.getsource(each)
            for each in kind.__mro__[: kind.__mro__.index(Method)]
        )
        assert kind.recomputes == heeds
