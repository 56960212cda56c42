"""`ccr-dist evaluate … --mteb`: which models and results it means, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("mteb")

from ccr_dist.commands import tree, uses_of
from ccr_dist.declare import Folder, Run, Table
from ccr_dist.errors import ConfigError, DataError, StorageError
from ccr_dist.retriever.retriever import Retriever
from ccr_dist.standard.command import evaluate, measure, model_at
from ccr_dist.standard.encoder import RetrieverEncoder
from ccr_dist.standard.own_tasks import own_task
from tests import retrievers, toy

pytestmark = pytest.mark.long  # mteb and its libraries take seconds to import


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return retrievers.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def run(*words: object) -> None:
    tree()([str(word) for word in words], standalone_mode=False)


def small(root: Path, spanish: str = "dos") -> Path:
    pictures = [toy.picture(0), toy.picture(7)]
    captions = {"caption.en": [["one"], ["two"]], "caption.es": [["uno"], [spanish]]}
    retrievers.dataset(root, {"image": pictures, **captions})
    return root


def test_a_config_is_measured_and_its_files_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method that has nothing to train; the table and the file are printed, and nothing else lies around."""
    config = toy.config(tmp_path, {"name": "clip"}, {})
    data = small(tmp_path / "small")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    run("evaluate", config, "--mteb", f"T2V={data}", "--langs", "en")
    said = capsys.readouterr().out
    [file] = (tmp_path / "runs" / "clip-s0" / "results" / "mteb").rglob("smallT2IRetrieval.json")
    assert "smallT2IRetrieval: clip-s0" in said and str(file) in said
    kept = json.loads(file.read_text())
    assert [row["hf_subset"] for row in kept["scores"]["test"]] == ["en"]
    assert kept["dataset_revision"] == own_task("T2V", data).metadata.revision
    assert json.loads((file.parent / "model_meta.json").read_text())["revision"] == file.parent.name
    assert not list(temporary.iterdir())


def test_a_result_is_completed_kept_and_made_again(
    clip: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, data, out = RetrieverEncoder(clip), small(tmp_path / "small"), tmp_path / "out"
    task = own_task("V2T", data)
    task.hf_subsets = ["en"]
    measure(encoder, task, out)
    task.hf_subsets = ["en", "es"]
    _, file = measure(encoder, task, out)
    assert "measured" not in capsys.readouterr().out
    found = file.read_text()
    assert [row["hf_subset"] for row in json.loads(found)["scores"]["test"]] == ["en", "es"]
    measure(encoder, task, out)
    assert file.read_text() == found and "measured already" in capsys.readouterr().out
    other = own_task("V2T", small(tmp_path / "other", spanish="otro"))
    result, _ = measure(encoder, other, out)
    assert "on other data; measuring again" in capsys.readouterr().out
    assert result.dataset_revision == other.metadata.revision != task.metadata.revision
    file.write_text("{")
    with pytest.raises(DataError, match=r"damaged .*--again"):
        measure(encoder, other, out)
    again, _ = measure(encoder, other, out, again=True)
    assert again.get_score() == result.get_score() and json.loads(file.read_text())["scores"]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--out FOLDER"):
        evaluate([model_at("hf://someone/model")], "XM3600T2IRetrieval")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        evaluate([model_at(tmp_path)], "XM3600T2IRetrieval", out=tmp_path)


def test_a_model_of_a_hub(tmp_path: Path) -> None:
    """Its id is a path to the command line. Here there is no hub."""
    with pytest.raises(StorageError, match="hf://org/name@main"):
        run("evaluate", "hf://org/name@main", "--mteb", "WITT2IRetrieval", "--out", tmp_path)
    with pytest.raises(
        ConfigError, match="hf://org/name: --mteb takes a run or model as it is, without seed=1 --seeds 0"
    ):
        run("evaluate", "hf://org/name", "seed=1", "--seeds", "0", "--mteb", "WITT2IRetrieval", "--out", tmp_path)


def test_a_step_of_a_pipeline_says_what_it_reads_and_makes(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path)
    uses = uses_of(["evaluate", str(config), "--mteb", f"XM3600T2IRetrieval,T2V={tmp_path}", "--seeds", "0,1"], "step")
    runs = [str(tmp_path / "runs" / f"dasd-s{seed}") for seed in (0, 1)]
    assert {*map(Run, runs), Table(str(tmp_path))} <= set(uses.reads)
    assert uses.makes == tuple(Folder(f"{name}/results/mteb") for name in runs) and "mteb" in uses.packages
    model = tmp_path / "copied"
    model.mkdir()
    uses = uses_of(["evaluate", str(model), "--mteb", "WITT2IRetrieval", "--out", "there"], "step")
    assert (uses.reads, uses.makes) == ((Folder(str(model)),), (Folder("there"),))
    uses = uses_of(["evaluate", "hf://org/name", "--mteb", "WITT2IRetrieval", "--out", "there"], "step")
    assert (uses.reads, uses.makes) == ((), (Folder("there"),))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--langs", "de"], "--langs"),
        (["--out", "x"], "--out"),
        (["--mteb", "WITT2IRetrieval", "--split", "val"], "--split"),
        (["--mteb", "WITT2IRetrieval", "--world", "2"], "--world"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        run("evaluate", toy.config(tmp_path, {"name": "clip"}, {}), *options)
