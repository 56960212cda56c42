"""Nothing is left on the CPU: forward, losses, backward and encoding of every method on a device that is not there
(`fake_device.py`). `bash tests/gpu/fake.sh` runs the same with torch's CUDA build.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ccr_dist.losses.context import Context
from ccr_dist.methods import registry
from ccr_dist.methods.base import Method
from ccr_dist.train.strategies.strategy import Step
from tests import every_method, fake_device, leccr, small

# It changes torch's devices for as long as the process lives; tests/procs/test_fake_devices.py gives it one of its own.
pytestmark = pytest.mark.skipif("FAKE_DEVICE" not in os.environ, reason="run by tests/procs/test_fake_devices.py")
DEVICE = os.environ.get("FAKE_DEVICE", fake_device.GADGET)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def there(tensors: Mapping[str, Tensor]) -> None:
    assert tensors
    left = {name: tensor.device for name, tensor in tensors.items() if tensor.device.type != DEVICE}
    assert not left, left


def moved(method: Method, device: str) -> Step:
    """As training and evaluation move it."""
    step = Step(method).to(device)
    method.aux.to(device)
    return step


def encode(method: Method, visual: Tensor | None, mask: Tensor | None = None) -> None:
    """Captions of every language that it learns and English ones, items, and the parts of their scores."""
    texts, other = list(small.SPANISH), list(small.ENGLISH)
    assert visual is not None
    items = method.encode_visual(visual, mask, leccr.DESCRIPTIONS[: len(visual)])
    there(items)
    for lang in (*small.LANGUAGES, "en"):
        found = method.encode_text(texts, lang, other)
        there(found)
        there(method.scores(found, items))


def steps(method: Method) -> list[str]:
    """Names of the stages that have steps."""
    closed = type(method).statistics is not Method.statistics
    return [] if closed else list(method.options.training_stages())


@pytest.mark.parametrize("name", registry.names())
def test_no_method_leaves_a_tensor_behind(models: Path, name: str) -> None:
    method = every_method.build(models, name)
    batches = {stage: every_method.batch(method, stage) for stage in ("", *steps(method))}
    with fake_device.device(DEVICE) as device:
        step = moved(method, device)
        visual = batches.pop("").to(device).visual
        with torch.no_grad():
            encode(method, visual)
        for stage, batch in batches.items():
            here = batch.to(device)
            outputs = step("outputs", stage, here)
            there(outputs)
            losses = method.losses(stage, here, outputs, Context(seed=0, step=0, rows=len(batch), device=device))
            there(losses)
            if DEVICE == fake_device.GADGET:  # CUDA's backward asks for a driver
                torch.stack(list(losses.values())).sum().backward()
                there({name: p.grad for name, p in step.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("loss", ["gathered", "tiled", "ring"])
@pytest.mark.parametrize("groups", [False, True])
def test_no_contrastive_loss_leaves_a_tensor_behind(loss: str, groups: bool) -> None:
    with fake_device.device(DEVICE) as device:
        x, y, scale = torch.randn(6, 4, device=device), torch.randn(6, 4, device=device), torch.ones(1, device=device)
        group = torch.arange(6, device=device) // 2 if groups else None
        context = Context(seed=0, step=0, rows=6, device=device, loss=loss)
        there({"loss": context.contrastive(x, y, scale=scale, group=group)})
        there({"matching": context.matching(x @ y.T, group=group, chunk=3)})
        there({"paired": context.permute(x)})


@pytest.mark.parametrize("name", ["kernel", "map"])
def test_no_stage_in_closed_form_leaves_a_tensor_behind(models: Path, name: str) -> None:
    method = every_method.build(models, name)
    batch = every_method.batch(method, "fit")
    with fake_device.device(DEVICE) as device:
        moved(method, device)
        here = batch.to(device)
        assert here.query_feature is not None and here.source_feature is not None and here.visual is not None
        with torch.no_grad():
            method.begin("fit", here.query_feature)
            pictures = method.encode_visual(here.visual)["global"]
            rows = {"query": here.query_feature, "english": here.source_feature, "visual": pictures}
            sums = method.statistics("fit", "es", rows)
        there({name: total for name, total in sums.items() if not name.startswith("n")})  # of rows: counted on the CPU


@pytest.mark.parametrize(("name", "visual"), [("leccr", "video"), ("nrccr", "frames")])
def test_no_frame_is_left_behind(models: Path, name: str, visual: str) -> None:
    method, clips = every_method.build(models, name, visual=visual, frame_width=leccr.FRAMES), leccr.clips()
    batch = every_method.batch(method, "train", visual=clips.visual, visual_mask=clips.visual_mask)
    with fake_device.device(DEVICE) as device:
        step, here = moved(method, device), batch.to(device)
        with torch.no_grad():
            encode(method, here.visual, here.visual_mask)
        outputs = step("outputs", "train", here)
        there(method.losses("train", here, outputs, Context(seed=0, step=0, rows=len(batch), device=device)))


# Not open_clip's own path of a BERT: it asks where padding is, which has a shape that depends on values.
@pytest.mark.parametrize(
    ("kind", "pad"),
    [
        ("clip", "packed"),
        pytest.param("custom", "packed", marks=pytest.mark.slow),
        pytest.param("siglip", "context", marks=pytest.mark.slow),
        pytest.param("xlm-roberta", "longest", marks=pytest.mark.slow),
        ("dual", "longest"),
    ],
)
def test_no_backbone_leaves_a_tensor_behind(models: Path, kind: str, pad: str) -> None:
    method = every_method.build(models, "dasd", kind=kind, pad=pad)
    batch = every_method.batch(method)
    with fake_device.device(DEVICE) as device:
        moved(method, device)
        visual = batch.to(device).visual
        with torch.no_grad():
            encode(method, visual)
            there({"tokens": method.backbone.image_tokens(visual)})


def test_what_is_left_behind_is_found(models: Path) -> None:
    method = every_method.build(models, "dasd")
    batch = every_method.batch(method, "cma")
    with fake_device.device(DEVICE) as device:
        step, here = moved(method, device), batch.to(device)
        outputs = step("outputs", "cma", here)
        context = Context(seed=0, step=0, rows=len(batch), device=device)
        with pytest.raises(RuntimeError, match=r"two.* devices"):  # a batch that was not moved
            method.losses("cma", batch, outputs, context)
        linear = method.net["front_end"].linear
        linear.bias = torch.nn.Parameter(torch.zeros(linear.bias.shape))  # a weight that was not
        with pytest.raises(RuntimeError, match=r"two.* devices"):
            step("outputs", "cma", here)
