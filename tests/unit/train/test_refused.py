"""Runs that a strategy cannot carry out are refused before their first step, and what is hardly meant is told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import loop
from ccr_dist.train.strategies.strategy import Strategy
from tests import tiny, toy

NRCCR = {"name": "nrccr", "train_from": 1, "max_tokens": 20, "text_width": 24, "image_width": 32, "dim": 32, "heads": 2}


def train(path: Path, *overrides: str, strategy: str = "single") -> None:
    """In one process, which says that it is another strategy."""
    config = load_config(path, overrides)
    made = Strategy(config.runtime)
    made.name = strategy
    loop.train_run(config, made)


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_running_statistics_under_strategies_that_throw_a_forwards_parameters_away(
    tmp_path: Path, strategy: str
) -> None:
    method = {**NRCCR, "encoder": tiny.tiny_encoder(tmp_path / "encoder", toy.ALL_TEXTS)}
    data = {"back_translations": {"es": "caption.en.toy"}}
    path = toy.config(tmp_path, method, {"train": {"steps": 2, "batch": 10, "lr": 1e-4}}, data=data)
    with pytest.raises(ConfigError, match=rf"running statistics.*{strategy} throws away.*use ddp, zero1 or zero2"):
        train(path, strategy=strategy)


def test_blocks_that_share_tensors_under_a_strategy_that_keeps_parts(tmp_path: Path) -> None:
    stage = {"steps": 1, "batch": 10, "lr": 1e-4}
    frontend = {"embeddings": tiny.tiny_frontend_folder(tmp_path / "mbert", toy.ALL_TEXTS)}
    path = toy.config(tmp_path, {"name": "lora", "frontend": frontend, "stages": ["cla"]}, {"cla": stage})
    with pytest.raises(ConfigError, match=r"lora computes with variants.*zero3 keeps parts only.*fsdp2"):
        train(path, strategy="zero3")


def test_shards_of_a_strategy_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.checkpoint: sharded is written by fsdp2 only, and this is single"):
        train(toy.dasd(tmp_path), "runtime.checkpoint=sharded")
    assert not (tmp_path / "runs" / "dasd-s0" / "config.yaml").exists()


def test_advice_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(toy.dasd(tmp_path, cla=1, cma=1), "runtime.micro_batch=10")
    assert capsys.readouterr().err.count("runtime.micro_batch=10 has no effect: no rank has more than 10 rows") == 1, (
        "of two stages"
    )
