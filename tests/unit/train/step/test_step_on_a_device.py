"""Steps of a stage on a device that is not there (`fake_device.py`): nothing of them is left on the CPU."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch

from ccr_dist.methods.build import build_method
from ccr_dist.methods.run_config import load_config
from ccr_dist.train.assemble import fields_for, open_datasets, training_texts
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.step.stage import StageRun
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.watch.signals import StopRequest
from tests import fake_device, toy
from tests.benchmarks.methods import order

# It changes torch's devices for as long as the process lives; tests/procs/test_fake_devices.py gives it one of its own.
pytestmark = pytest.mark.skipif("FAKE_DEVICE" not in os.environ, reason="run by tests/procs/test_fake_devices.py")
STAGE = "cma"


@pytest.mark.parametrize("micro_batch", ["null", "4"])
def test_no_step_leaves_a_tensor_behind(tmp_path: Path, micro_batch: str) -> None:
    """Discriminator, losses, backward, clipping, optimiser and moving average: two of three steps, since the last one
    is logged with its times, which are made up here.
    """
    options = [f"stages.{STAGE}.ema=0.9", f"runtime.micro_batch={micro_batch}", "runtime.log_every=9"]
    config = load_config(toy.dasd(tmp_path, cla=3, cma=3), options)
    method, strategy = build_method(config, texts=training_texts(config)), Strategy(config.runtime)
    fields, folder = fields_for(config, config.method.training_stages()[STAGE]), RunFolder(config.folder)
    folder.path.mkdir(parents=True)
    with fake_device.device() as device:
        strategy.device = torch.device(device)
        step = Step(method).to(strategy.device)
        method.aux.to(strategy.device)
        stage = StageRun(
            STAGE, config=config, step=step, strategy=strategy, folder=folder, stop=StopRequest(folder.path),
            order=order(config, STAGE, fields), datasets=open_datasets(config.data.train), fields=fields,
        )  # fmt: skip
        assert len(list(itertools.islice(stage.steps(RunProgress()), 2))) == 2
        state = stage.engine.optimizer.state
        assert state and stage.ema is not None
        held = [value for values in state.values() for value in values.values() if value.ndim]
        held += [*stage.engine.trained.values(), *method.aux.parameters()]
        assert {tensor.device.type for tensor in held} == {device}
