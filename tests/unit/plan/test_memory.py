"""Parts of a rank's memory, by hand: 1,000 trained and 4,000 frozen elements, of which two blocks have 1,500 each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.memory import PARTS, disagreement, memory
from ccr_dist.plan.step.meter import Live
from ccr_dist.plan.step.trace import Trace

T, F = 4_000, 16_000  # bytes
FORWARD = Live("forward", activations=50_000)
BACKWARD = Live("backward", activations=20_000, workspace=1_000, gradients=3_000)
REDUCE = Live("reduce", gradients=T)
UPDATE = Live("update", gradients=T, workspace=10)


def traced(world: int = 2, *moments: Live, **changes: Any) -> Trace:
    made = Trace(
        stage="cma", world=world, rows=8, micro_batches=1, precision="fp32", checkpointing=False, frozen=F // 4,
        trained=T // 4, frozen_bytes=F, trained_bytes=T, flops={}, moved={}, kernels={}, operators={}, sent={},
        activations=0, workspace=0, gathered=0, moments=moments or (FORWARD, BACKWARD, REDUCE, UPDATE),
        tensors=(600, 400), frozen_tensors=(1_500, 1_500, 1_000), blocks=(6_000, 6_000), groups=(1_000,),
    )  # fmt: skip
    return replace(made, **changes)


def test_every_part_is_there_and_the_highest_moment_counts() -> None:
    parts = memory(traced(1), strategy="single")
    assert tuple(parts) == PARTS
    assert parts["activations"] == 50_000 and parts["gradients"] == 0
    assert (parts["frozen"], parts["trained"], parts["optimizer"]) == (F, T, 2 * T)


def test_without_activations_the_gradients_are_the_peak() -> None:
    parts = memory(traced(1, REDUCE, UPDATE), strategy="single")
    assert (parts["gradients"], parts["workspace"]) == (T, 10)


def test_ddp_has_buckets_beside_the_gradients() -> None:
    assert memory(traced(2, REDUCE), strategy="ddp", world=2)["gradients"] == 2 * T
    assert memory(traced(2, FORWARD), strategy="ddp")["gradients"] == T


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_zero_keeps_a_copy_and_two_moments_of_its_part(strategy: str) -> None:
    parts = memory(traced(4, FORWARD), strategy=strategy)
    assert (parts["frozen"], parts["trained"], parts["optimizer"]) == (F, T, 3 * T // 4)


def test_a_gpu_takes_zeros_buckets_whole_and_a_cpu_what_is_written() -> None:
    whole = memory(traced(2, REDUCE), strategy="zero2")["workspace"]
    touched = memory(traced(2, REDUCE), strategy="zero2", touched=True)["workspace"]
    assert whole > 2 * 4 * 25_000_000 > touched


def test_fsdp2_cuts_weights_and_gathers_all_but_blocks() -> None:
    forward = memory(traced(2, FORWARD), strategy="fsdp2")
    assert forward["trained"] == T // 2 + T  # its shard, and the gathered group
    assert forward["frozen"] == F // 2 + 4_000
    assert forward["optimizer"] == T
    update = memory(traced(2, UPDATE), strategy="fsdp2", touched=True)
    assert sum(update.values()) < sum(forward.values())


def test_fsdp2_keeps_what_it_gathered_into_until_the_next_block() -> None:
    opening, later = (
        memory(traced(2, Live(phase, activations=50_000)), strategy="fsdp2") for phase in ("opening", "forward")
    )
    assert opening["workspace"] - later["workspace"] == (T + 4_000) - 2 * 6_000


def test_weights_that_something_else_holds_are_whole_under_fsdp2() -> None:
    plain, more = (memory(traced(2, UPDATE, shared=size), strategy="fsdp2") for size in (0, 700))
    assert more["frozen"] - plain["frozen"] == 700


def test_zero3_gathers_what_a_step_computes_with() -> None:
    plain, more = (memory(traced(2, FORWARD, used=size), strategy="zero3") for size in (0, 5_000))
    assert more["workspace"] - plain["workspace"] == 5_000


def test_what_no_strategy_cuts_stays_whole() -> None:
    more = memory(traced(2, UPDATE, whole=8_000), strategy="fsdp2")["frozen"]
    assert more >= 8_000 + (F - 8_000) // 2


def test_networks_with_optimisers_of_their_own_are_replicated() -> None:
    plain, more = (memory(traced(2, UPDATE, auxiliary=size), strategy="fsdp2") for size in (0, 500))
    assert sum(more.values()) - sum(plain.values()) == 3 * 500


def test_offload_leaves_states_and_weights_to_the_host() -> None:
    here, away = (memory(traced(2, UPDATE), strategy=name) for name in ("zero3", "zero3_offload"))
    assert here["optimizer"] > 0 == away["optimizer"]
    assert away["frozen"] == 0


def test_process_and_fragmentation_are_added() -> None:
    plain = memory(traced(1), strategy="single")
    parts = memory(traced(1), strategy="single", process=7, fragmentation=0.1)
    assert parts["process"] == 7
    assert parts["fragmentation"] == pytest.approx(0.1 * sum(plain.values()), abs=1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"strategy": "zero4"}, "strategy 'zero4': expected one of single, ddp"),
        ({"strategy": "single"}, "of one process, and 2 are planned"),
        ({"strategy": "ddp", "world": 8}, "was traced for world 2, and 8 is planned"),
        ({"strategy": "ddp", "precision": "bf16"}, "was traced for precision fp32"),
        ({"strategy": "ddp", "optimizer": "sgd"}, "optimizer 'sgd': expected one of adamw"),
    ],
)
def test_what_cannot_be_planned_is_said(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        memory(traced(2), **asked)


def test_two_opinions_that_differ_are_shown() -> None:
    peak = sum(memory(traced(1), strategy="single").values())
    assert disagreement(traced(1)) is None
    assert disagreement(traced(1, opinion=int(1.05 * peak))) is None
    assert "20% more than" in str(disagreement(traced(1, opinion=int(1.2 * peak))))
