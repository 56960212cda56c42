"""A trained model on a GPU is the model on the CPU: rows, scores, ranks, results, and features that jobs write."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ccr_dist
from ccr_dist.evaluate import retrieval
from ccr_dist.generate.jobs.featurise import Featurise
from ccr_dist.generate.runner import run as job
from ccr_dist.methods.run_config import load_config
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.train import commands
from tests import toy
from tests.gpu.on import DEVICE, needs_gpu, on_cpu
from tests.nearness import close

pytestmark = needs_gpu
EVALUATE = """
import sys
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
sys.exit(commands.evaluate([load_config(sys.argv[1])], split="test", again=True, world=None))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run, trained on the device."""
    path = toy.dasd(tmp_path_factory.mktemp("run"), cla=10, cma=10)
    assert commands.train([load_config(path)], test=True, world=None) == 0
    return path


def test_rows_and_scores_are_those_of_the_cpu(trained: Path) -> None:
    pictures = [Image.open(io.BytesIO(toy.picture(number))) for number in range(8)]
    found = []
    for device in (DEVICE, "cpu"):
        model = ccr_dist.load(load_config(trained).folder, device=device)
        assert model.device.type == device
        rows = [
            model.encode_text(toy.SPANISH, "es"),
            model.encode_text(toy.ENGLISH, "en"),
            model.encode_images(pictures),
        ]
        found.append([*rows, model.similarity(rows[0], rows[2]), model.visual_similarity(rows[2], rows[2])])
    close(*found, tolerance=1e-3)


def test_results_are_those_of_the_cpu(trained: Path) -> None:
    folder = load_config(trained).folder / "results"
    mine = json.loads((folder / "test.json").read_text())
    ranks = dict(np.load(folder / "test.ranks.npz"))
    on_cpu(EVALUATE, trained)
    there = json.loads((folder / "test.json").read_text())
    assert mine["languages"].keys() == there["languages"].keys()
    for name, expected in np.load(folder / "test.ranks.npz").items():
        # Scores differ in their last digits, and pictures of one concept are equal: a few ranks may be off by one.
        assert np.mean(np.abs(ranks[name].astype(float) - expected)) <= 0.5, name


def test_ranks_of_the_same_rows_are_those_of_the_cpu() -> None:
    dice = torch.Generator().manual_seed(0)
    text, visual = (torch.randn(rows, 16, generator=dice) for rows in (60, 30))
    item, group = torch.arange(60) % 30, torch.arange(30) // 2
    found = [
        retrieval.ranks({"global": text.to(device)}, {"global": visual.to(device)}, item, group)
        for device in (DEVICE, "cpu")
    ]
    for name in ("text_to_visual", "visual_to_text", "visual_to_text_items"):
        assert torch.equal(*(getattr(each, name).cpu() for each in found)), name
    best = [
        retrieval.top_k({"global": text.to(device)}, {"global": visual.to(device)}, torch.arange(60), 5)
        for device in (DEVICE, "cpu")
    ]
    assert torch.equal(best[0][0], best[1][0])
    close(best[0][1], best[1][1])


@pytest.mark.parametrize("source", ["image", "caption.en"])
def test_features_that_a_job_writes_are_those_of_the_cpu(tmp_path: Path, source: str) -> None:
    config = load_config(toy.config(tmp_path, {"name": "clip"}, {}))
    found = []
    for device in (DEVICE, "cpu"):
        dataset = toy.build(tmp_path / device, "test", rows=10)
        make = Featurise(lambda: build_backbone(config.backbone), source, device=device)
        job(dataset, make, "feature.made", progress=False)
        column = dataset.column("feature.made")
        found.append(np.stack([column.value(shard, row) for shard in range(2) for row in range(5)]))
    close(*found, tolerance=5e-3)  # of float16
