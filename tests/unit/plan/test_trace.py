"""A step on fake tensors, beside the same step computed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ccr_dist.config import RunConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError
from ccr_dist.losses.context import Context
from ccr_dist.methods.build import build_method
from ccr_dist.methods.run_config import from_dict, load_config
from ccr_dist.models.backbones.weightless import without_weights
from ccr_dist.plan.cost.memory import disagreement, memory
from ccr_dist.plan.step.fake_rank import batch_of, fake_processes, largest_rows
from ccr_dist.plan.step.meter import Meter
from ccr_dist.plan.step.trace import Trace, trace
from ccr_dist.train.assemble import fields_for
from ccr_dist.train.optimizers.optimizer import make_optimizer
from ccr_dist.train.record.flops import on_cpu
from ccr_dist.train.strategies.replicated import Single
from ccr_dist.train.strategies.strategy import Step
from tests import toy
from tests.tiny import TEXTS, tiny_clip_config, tiny_frontend_folder

ROWS, TOKENS = 6, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def values(folder: Path) -> dict[str, Any]:
    """A run config that trains a tiny text tower, on data that is not there."""
    backbone = tiny_clip_config(folder / "clip")
    frontend = {
        "embeddings": tiny_frontend_folder(folder / "words"),
        "rows": "all",
        "start": "scaled",
        "pad": "longest",
    }
    stage = {"steps": 2, "batch": ROWS, "lr": 1e-3}
    return {
        "name": "tiny",
        "backbone": {"kind": "open_clip", "model": backbone.model},
        "method": {"name": "full", "frontend": frontend},
        "data": {
            "train": [{"path": "nowhere"}],
            "val": "nowhere",
            "targets": {"es": "caption.es"},
            "queries": {"es": "caption.es"},
        },
        "stages": {"cla": stage, "cma": stage},
    }


def config(values: dict[str, Any], **runtime: Any) -> RunConfig:
    return from_dict({**values, "runtime": {"cached_features": False, **runtime}}, name="tiny")


def traced(values: dict[str, Any], *, world: int = 1, stage: str = "cma", **runtime: Any) -> Trace:
    return trace(config(values, **runtime), stage, world=world, tokens=TOKENS)


@pytest.fixture(scope="module")
def plain(values: dict[str, Any]) -> Trace:
    return traced(values)


# The meter.


def test_a_linear_layer_is_counted_by_hand() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        layer, x = nn.Linear(8, 16, bias=False), torch.empty(4, 8)
    meter = Meter("here")
    meter.watch(layer.parameters())
    with meter:
        meter.enter("forward")
        y = layer(x)
        meter.enter("backward")
        y.backward(torch.ones_like(y))
        meter.enter("end")
    assert meter.operators.sums("forward") == (2 * 4 * 8 * 16, 4 * (8 * 16 + 4 * 8 + 4 * 16), 1)
    assert meter.operators.sums("backward")[0] == 2 * 4 * 8 * 16  # of the weight; x needs no gradient
    highest = max(live.gradients for live in meter.moments())
    assert highest == 4 * 8 * 16
    assert max(live.activations for live in meter.moments()) == 4 * 4 * 16


def test_what_is_freed_is_no_longer_live() -> None:
    with FakeTensorMode():
        x = torch.empty(1000)
    meter = Meter("here")
    with meter:
        meter.enter("forward")
        for _ in range(5):
            x = x * 2
        meter.enter("losses")
        meter.enter("end")
    highest = {live.phase: live.beside for live in meter.moments()}
    assert highest["opening"] == 2 * 4000  # the one that is read, and the one that is made; no frozen block has run
    assert highest["losses"] == 4000


def test_products_without_a_formula_are_refused() -> None:
    with FakeTensorMode():
        x = torch.empty(4, 8)
    with pytest.raises(ConfigError, match="FLOPs of aten::_cdist_forward cannot be counted"), Meter("a method"):
        torch.cdist(x, x)


def test_a_number_that_decides_shapes_is_not_made_up() -> None:
    with FakeTensorMode():
        number, norm = torch.empty((), dtype=torch.int64), torch.empty(())
    with Meter("a method"):
        assert torch.isfinite(norm)
        with pytest.raises(ConfigError, match="a method: the step asks for a whole number"):
            int(number)


# The trace.


def test_counts_are_those_of_the_step_computed(values: dict[str, Any], plain: Trace) -> None:
    given = config(values)
    method = build_method(given, texts=TEXTS)
    step = Step(method)
    for name, parameter in step.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(method.trainable("cma"))))
    trained = {name: p for name, p in step.named_parameters() if p.requires_grad}
    settings = given.stages["cma"]
    one = type("One", (), {"world": 1, "device": torch.device("cpu")})()
    engine = Single(one, step, trained, lambda some: make_optimizer(settings, some, one.device), settings)
    batch = batch_of(given, method, fields_for(given, given.method.training_stages()["cma"]), "cma", ROWS, TOKENS)
    batch.visual = torch.zeros(batch.visual.shape)
    counter = FlopCounterMode(display=False, custom_mapping=on_cpu())
    with counter:
        outputs = engine("outputs", "cma", batch)
        losses = method.losses("cma", batch, outputs, Context(seed=0, step=0, rows=ROWS))
        engine.backward(torch.stack(list(losses.values())).sum())
    engine.update(1e-3)
    assert plain.trained == sum(p.numel() for p in trained.values())
    assert sum(plain.flops.values()) == counter.get_total_flops()
    parts, held = memory(plain, strategy="single"), engine.held()
    assert parts["optimizer"] == held["optimizer"]
    pictures = [p for name, p in method.backbone.named_parameters() if method.backbone.part_of(name) == "image"]
    assert plain.shared == sum(p.numel() * p.element_size() for p in pictures)  # the teacher has them, too
    assert plain.block_runs == ((1, 0), (1, 0)), "pictures come first: no gradient passes them"
    assert plain.opened and plain.trained_bytes <= plain.used < held["parameters"]
    frozen = sum(p.numel() * p.element_size() for p in step.parameters() if not p.requires_grad)
    assert parts["trained"] + frozen == held["parameters"]


def test_weights_need_not_be_there(values: dict[str, Any], folder: Path, plain: Trace) -> None:
    weights = [*folder.glob("clip/*.safetensors"), *folder.glob("words/*.safetensors")]
    hidden = [(file, file.rename(file.with_suffix(".hidden"))) for file in weights]
    assert len(hidden) == 2
    try:
        assert traced(values) == plain
    finally:
        for file, away in hidden:
            away.rename(file)


def test_features_of_all_ranks_are_gathered(values: dict[str, Any], plain: Trace) -> None:
    four = traced(values, world=4)
    assert (four.rows, plain.rows) == (2, ROWS)  # 6 rows: 2 + 2 + 1 + 1
    assert plain.gathered == 0 and not plain.sent
    assert four.gathered >= 2 * 4 * 16 * ROWS  # two sides, 16 wide
    assert {call.kind for call in four.sent["losses"]} >= {"all_gather"}
    assert not dist.is_initialized()


def test_a_batch_in_parts_takes_a_second_forward_and_less_room(values: dict[str, Any], plain: Trace) -> None:
    cut = traced(values, micro_batch=2)
    assert cut.micro_batches == 3
    assert cut.flops["forward"] == plain.flops["forward"]
    assert cut.flops["backward"] > plain.flops["backward"]
    assert cut.activations < plain.activations


def test_checkpointing_computes_more_and_keeps_less(values: dict[str, Any], plain: Trace) -> None:
    again = traced(values, gradient_checkpointing=True)
    assert again.flops["backward"] > plain.flops["backward"]
    assert again.activations < plain.activations


def test_bf16_halves_what_products_keep(values: dict[str, Any], plain: Trace) -> None:
    half = trace(config(values), "cma", world=1, precision="bf16", tokens=TOKENS)
    assert half.precision == "bf16"
    assert half.flops == plain.flops
    assert half.activations < plain.activations


def test_mem_tracker_sees_the_same_peak(values: dict[str, Any]) -> None:
    asked = trace(config(values), "cma", world=1, tokens=TOKENS, opinion=True)
    assert asked.opinion is not None
    assert asked.opinion == pytest.approx(sum(memory(asked, strategy="single").values()), rel=0.02)
    assert disagreement(asked) is None


def test_longer_captions_take_more(values: dict[str, Any], plain: Trace) -> None:
    long = trace(config(values), "cma", world=1)  # what the tower takes
    assert long.flops["forward"] > plain.flops["forward"]


def test_rows_are_those_of_the_rank_that_has_most() -> None:
    assert largest_rows(10, 4) == [3, 3, 2, 2]
    assert largest_rows(2, 4) == [1, 1, 0, 0]


def test_an_unknown_stage_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no stage 'cmb' to plan; the config has: cla, cma"):
        traced(values, stage="cmb")


def test_a_vocabulary_that_cannot_be_read_is_said(values: dict[str, Any]) -> None:
    method = {**values["method"], "frontend": {**values["method"]["frontend"], "rows": "used"}}
    with pytest.raises(ConfigError, match=r"depends on the words of its training captions, which cannot be read"):
        traced({**values, "method": method})


def test_a_rank_of_a_run_plans_nothing() -> None:
    own = pytest.raises(ConfigError, match="a run is planned in a process of its own")
    with fake_processes(2), own, fake_processes(2):
        pass
    assert not dist.is_initialized()


def test_modules_are_real_again_afterwards(plain: Trace) -> None:
    assert type(nn.Linear(2, 2).weight) is nn.Parameter
    assert plain.stage == "cma"


def test_features_have_the_shape_that_the_dataset_gives_them(tmp_path: Path) -> None:
    """One vector a row is read as one, and not as a picture of one token."""
    given = load_config(toy.dasd(tmp_path), ["data.visual=feature.picture"])
    wide = build_method(given, texts=TEXTS).backbone.dim
    for split in ("train", "val", "test"):
        toy.add_feature(Dataset.open(tmp_path / "data" / split), "feature.picture", np.zeros((30, wide)))
    stage = given.method.training_stages()["cma"]
    batch = batch_of(given, build_method(given, texts=TEXTS), fields_for(given, stage), "cma", ROWS, TOKENS)
    assert batch.visual is not None and batch.visual.shape == (ROWS, wide)
    assert trace(given, "cma", world=2).flops["losses"] > 0


def test_a_model_that_is_not_there_is_named_in_one_sentence_and_weights_are_not_missed(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frontend = {**values["method"]["frontend"], "embeddings": str(tmp_path / "none")}
    lacking = {**values, "method": {**values["method"], "frontend": frontend}}
    with pytest.raises(
        ConfigError, match=r"A plan needs no weights of it, only its config\.json and tokeniser"
    ) as caught:
        traced(lacking)
    assert "\n" not in str(caught.value) and not caplog.records
    with without_weights():
        logging.warning("random weights")
    logging.warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_losses_are_float32_in_every_precision(values: dict[str, Any]) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        found = traced(values, precision=precision).operators
        used = {phase: {kind.precision for kind in found[phase] if kind.flops} for phase in found}
        assert used["forward"] == {precision} and used["losses"] == {"fp32"}
        assert used["backward"] == {precision, "fp32"}, "of the losses, and of the model"
