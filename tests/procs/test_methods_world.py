"""Methods whose steps need more of the global batch than losses do: gradients know nothing of the world size.

NRCCR normalises over the batch and keeps running statistics; weighted brings its weights to a mean of 1; described and
hybrid read descriptions, hybrid matches slots of all ranks; distill trains blocks of an encoder of its own,
projection and dynamic a network behind one. Fusion trains nothing: its weight and ranks are the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ccr_dist.data.media.decode import encode
from ccr_dist.data.table.dataset import create_column
from ccr_dist.methods.run_config import load_config
from ccr_dist.retriever import model_folder
from ccr_dist.train import commands
from tests import tiny, toy
from tests.nearness import close
from tests.procs import forked

pytestmark = pytest.mark.procs

STEPS, BATCH = 3, 10  # ragged on 3 ranks
STAGE = {"steps": STEPS, "batch": BATCH, "lr": 1e-4, "warmup": 0}  # dropout is off below: masks are drawn for each rank
SLOTS = {"slots": 3, "slot_blocks": 1, "heads": 2, "slot_dropout": 0}
METHODS: dict[str, dict[str, Any]] = {
    "nrccr": {
        "train_from": 1,
        "max_tokens": 20,
        "text_width": 24,
        "image_width": 32,
        "dim": 32,
        "heads": 2,
        "dropout": 0,
        "state_dropout": 0,
    },
    "weighted": {"rank": 4, "confidence": "agreement", "temperature": 0.01},
    "described": {"rank": 4, **SLOTS},
    "hybrid": {"rank": 4, "blocks": 1, **SLOTS},
    "distill": {"stages": ["text", "pictures"], "blocks": 1, "source": 0.5, "scale": 10},
    "projection": {"hidden": 24, "dropout": 0, "pictures": 0.5},
    "dynamic": {"rank": 6, "pairs": "translations"},
}

STAGES = {"nrccr": ["train"], "distill": ["text", "pictures"], "projection": ["align"], "dynamic": ["align"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus with descriptions, and the models."""
    folder = tmp_path_factory.mktemp("world")
    tiny.tiny_frontend_folder(folder / "mbert", toy.ALL_TEXTS)
    tiny.tiny_encoder(folder / "encoder", toy.ALL_TEXTS)
    for split in ("train", "val", "test"):
        dataset = toy.build(folder / "data", split)
        column = create_column(
            dataset, "description.toy", kind="texts", extension="json", plan={"by": "this test"}, provenance={}
        )
        texts = [[f"one sees {toy.ENGLISH[i % len(toy.ENGLISH)]}"] for i in range(dataset.rows)]
        for shard, part in enumerate(toy.chunks(texts, dataset.shard_rows[0])):
            column.commit(shard, [encode("texts", value) for value in part])
        numbers = np.arange(dataset.rows) % len(toy.ENGLISH)
        toy.add_feature(
            dataset, "feature.spread", np.random.default_rng(0).normal(size=(len(toy.ENGLISH), tiny.DIM))[numbers]
        )
    return folder


def trained(folder: Path, name: str) -> tuple[Path, Path]:
    """Its runs on one process and on three."""
    method = {"name": name, **METHODS[name]}
    if name == "nrccr":
        method["encoder"] = str(folder / "encoder")
    elif name in ("distill", "projection", "dynamic"):
        method["query"] = {"text": str(folder / "encoder")}
    else:
        method["frontend"] = {"embeddings": str(folder / "mbert"), "rows": "used"}
    stages = dict.fromkeys(STAGES.get(name, ["cla", "cma"]), STAGE)
    data: dict[str, Any] = {"back_translations": {"es": "caption.en.toy"}, "description": "description.toy"}
    if name == "nrccr":
        # A random tiny CLIP's features differ by 3 % of their size from picture to picture, which a batch normalisation
        # behind them makes up for: gradients then have 1 / 0.03^2 times the rounding. These differ as features of a
        # real one do.
        data["visual"] = "feature.spread"
    config = toy.config(folder, method, stages, data=data, runtime={"trace": "gradients"})
    forked.trainings(config, *((world, [f"name={name}{world}", "--test"]) for world in (1, 3)))
    return folder / "runs" / f"{name}1-s0", folder / "runs" / f"{name}3-s0"


@pytest.mark.parametrize("name", ["nrccr", *(pytest.param(name, marks=pytest.mark.slow) for name in list(METHODS)[1:])])
def test_three_processes_have_the_gradients_of_one(folder: Path, name: str) -> None:
    alone, together = trained(folder, name)
    steps = STEPS * len(STAGES.get(name, ["cla", "cma"]))
    for step in range(steps):
        one, many = (load_file(run / "trace" / f"gradients-{step:08d}.safetensors") for run in (alone, together))
        largest = max(float(np.abs(gradient).max()) for gradient in one.values())
        assert not any("running" in key for key in one) and largest > 1e-3
        # What comes right before a batch normalisation has a gradient of zero; theirs is rounding.
        close(many, one, tolerance=1e-2, msg=f"step {step}:")
    one, many = (load_file(run / "model.safetensors") for run in (alone, together))
    statistics = [key for key in one if "running" in key]
    assert len(statistics) == (4 if name == "nrccr" else 0)
    close({key: many[key] for key in statistics}, {key: one[key] for key in statistics}, tolerance=1e-3)
    assert (together / "results" / "test.json").exists()


@pytest.mark.slow
def test_three_processes_choose_and_measure_a_fusion_as_one_does(folder: Path) -> None:
    method = {"name": "dasd", "rank": 4, "frontend": {"embeddings": str(folder / "mbert"), "rows": "used"}}
    trained = load_config(toy.config(folder, method, {"cla": STAGE, "cma": STAGE}))
    assert commands.train([trained], test=False, world=None) == 0
    of = trained.method.model_dump(mode="json")
    fusion = toy.config(folder, {"name": "fusion", "of": of}, {}, init_from=str(trained.folder))
    forked.trainings(fusion, *((world, [f"name=fusion{world}"]) for world in (1, 3)), command="evaluate")
    alone, together = (folder / "runs" / f"fusion{world}-s0" for world in (1, 3))
    one, many = (json.loads((run / "results/test.json").read_text()) for run in (alone, together))
    assert many["languages"] == one["languages"] and many["meta"]["score"] == one["meta"]["score"]
    one, many = (np.load(run / "results/test.ranks.npz") for run in (alone, together))
    assert all(np.array_equal(one[name], many[name]) for name in one)
    one, many = (model_folder.read(run / "model") for run in (alone, together))
    assert many.fusion == one.fusion and many.files["model.safetensors"] == one.files["model.safetensors"]
