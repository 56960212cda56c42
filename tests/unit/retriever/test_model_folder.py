"""A run's model folder: written when the run ends, and the same wherever it is copied."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import ccr_dist
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.export.folder import export
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.retriever import model_folder
from ccr_dist.train import commands
from tests import exporting, toy

QUERIES = [*toy.SPANISH[:3], *toy.ENGLISH[:2]]


def trained(path: Path, *overrides: str, test: bool = False):
    config = load_config(path, overrides)
    assert commands.train([config], test=test, world=None) == 0
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """(run config, folder) of a complete DASD run, tested."""
    folder = tmp_path_factory.mktemp("model")
    return trained(toy.dasd(folder, cla=4, cma=2), test=True), folder


def pictures(folder: Path, count: int = 4) -> list[Path]:
    folder.mkdir(exist_ok=True)
    made = []
    for number in range(count):
        made.append(folder / f"{number}.png")
        made[-1].write_bytes(toy.picture(number))
    return made


def rows(retriever, images) -> list[np.ndarray]:
    return [retriever.encode_text(toy.SPANISH[:3], "es"), retriever.encode_text(toy.ENGLISH[:3], "en"),
            retriever.encode_images(images)]  # fmt: skip


def result(path: Path) -> dict:
    values = json.loads(path.read_text())
    return {lang: each["metrics"] | each["counts"] for lang, each in values["languages"].items()}


def test_a_copy_gives_the_same_bits_when_all_else_is_gone(run, tmp_path: Path) -> None:
    config, folder = run
    images = pictures(tmp_path / "pictures")
    before = ccr_dist.load(config.folder)
    kept, copy = rows(before, images), tmp_path / "elsewhere" / "renamed"
    shutil.copytree(config.folder / "model", copy)
    gone = [folder / "clip", folder / "mbert", config.folder]
    for path in gone:
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        after = ccr_dist.load(str(copy))
        assert [np.array_equal(*pair) for pair in zip(kept, rows(after, images), strict=True)] == [True] * 3
        assert after.digest == before.digest and after.name == "dasd-s0" and after.languages == ("en", "es")
        subject = commands.measured(copy, [])
        assert commands.evaluate_all([subject], split="test", again=True, world=None) == 0
    finally:
        for path in gone:
            path.with_name(f"{path.name}.away").rename(path)
    assert result(copy / "results/test.json") == result(config.folder / "results/test.json")
    assert (copy / "results/test.ranks.npz").read_bytes() == (config.folder / "results/test.ranks.npz").read_bytes()


def test_results_go_with_the_model(run) -> None:
    config, _ = run
    name = "results/test.json"
    assert (config.folder / "model" / name).read_bytes() == (config.folder / name).read_bytes()


def test_a_run_folder_moves_under_another_name(run, tmp_path: Path) -> None:
    config, _ = run
    moved = tmp_path / "my-run"
    shutil.copytree(config.folder, moved)
    shutil.rmtree(moved / "model")  # as an earlier version left it
    assert ccr_dist.load(moved).digest == ccr_dist.load(config.folder).digest
    assert model_folder.is_model(moved / "model")


def test_every_file_is_covered(run, tmp_path: Path) -> None:
    config, _ = run
    copy = tmp_path / "m"
    shutil.copytree(config.folder / "model", copy)
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and "results" not in path.parts):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="damaged"):
            ccr_dist.load(copy)
        path.unlink()
        with pytest.raises((CheckpointError, ConfigError), match=r"missing|no model.json|neither"):
            ccr_dist.load(copy)
        path.write_bytes(whole)
    assert ccr_dist.load(copy).name == "dasd-s0"


def test_other_base_weights_are_noticed(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = run
    copy = tmp_path / "m"
    shutil.copytree(config.folder / "model", copy)
    record = model_folder.read(copy)
    monkeypatch.setattr(model_folder, "read", lambda path: model_folder.Record(**{**vars(record), "base": "0" * 64}))
    with pytest.raises(CheckpointError, match="other weights"):
        ccr_dist.load(copy)


def test_training_again_makes_a_missing_model_folder_and_leaves_a_sound_one(run) -> None:
    config, _ = run
    record = config.folder / "model/model.json"
    before = record.stat().st_mtime_ns, record.read_bytes()
    commands.train([config], test=False, world=None)
    assert (record.stat().st_mtime_ns, record.read_bytes()) == before
    shutil.rmtree(config.folder / "model")
    commands.train([config], test=False, world=None)
    made = json.loads(record.read_text())
    assert {**made, "facts": None, "digest": None} == {**json.loads(before[1]), "facts": None, "digest": None}


def test_what_a_killed_process_left_is_removed(run) -> None:
    config, _ = run
    for kind in ("new", "old"):
        (config.folder / f".model.{kind}").mkdir()
        (config.folder / f".model.{kind}/file").write_text("")
    commands.train([config], test=False, world=None)
    assert not list(config.folder.glob(".model.*")) and model_folder.is_model(config.folder / "model")


def test_a_run_starts_from_a_model_folder(run, tmp_path: Path) -> None:
    config, folder = run
    digests = []
    for name, source in (("run", config.folder), ("folder", config.folder / "model")):
        path = toy.dasd(folder, cla=1, cma=1, init_from=str(source), name=f"from-{name}", out=str(tmp_path))
        digests.append(ccr_dist.load(trained(path).folder).digest)
    assert digests[0] == digests[1]


def test_backbone_weights_come_from_a_model_folder(run, tmp_path: Path) -> None:
    _, folder = run
    method = {"name": "full", "frontend": {"embeddings": str(folder / "mbert")}}
    stages = {name: {"steps": 1, "batch": 10, "lr": 1e-3} for name in ("cla", "cma")}
    full = trained(toy.config(folder, method, stages))
    texts = ccr_dist.load(full.folder).encode_text(toy.ENGLISH[:3], "en")
    backbone = {**yaml.safe_load((folder / "full.yaml").read_text())["backbone"], "weights": str(full.folder / "model")}
    config = load_config(toy.config(folder, {"name": "clip"}, {}, backbone=backbone))
    assert commands.evaluate([config], split="test", again=False, world=None) == 0
    retriever = ccr_dist.load(config.folder)
    assert np.array_equal(retriever.encode_text(toy.ENGLISH[:3], "en"), texts)
    assert retriever.folder == config.folder / "model"


def test_untrained_methods_are_measured_again_on_other_weights(run, tmp_path: Path) -> None:
    _, folder = run
    tensors = build_backbone(load_config(folder / "dasd.yaml").backbone).state_dict()
    name = next(name for name in tensors if "text_projection" in name)
    backbone = {**yaml.safe_load((folder / "dasd.yaml").read_text())["backbone"], "weights": str(tmp_path / "w")}
    digests = []
    for factor in (1, -1, -1):
        tensorfile.write(tmp_path / "w", {f"backbone.{name}": factor * tensors[name]})
        config = load_config(toy.config(folder, {"name": "clip"}, {}, backbone=backbone, out=str(tmp_path)))
        assert commands.evaluate([config], split="test", again=False, world=None) == 0
        measured = json.loads((config.folder / "results/test.json").read_text())
        digests.append((measured["test_reads"], ccr_dist.load(config.folder).digest))
    assert [reads for reads, _ in digests] == [1, 2, 2]
    assert digests[0][1] != digests[1][1] == digests[2][1]


def test_overrides_of_a_model_change_data_alone(run) -> None:
    config, _ = run
    with pytest.raises(ConfigError, match=r"only `data\.…`"):
        commands.measured(config.folder, ["method.rank=8"])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run folder"):
        ccr_dist.load(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        ccr_dist.load(tmp_path / "nothing")
    path = toy.dasd(tmp_path)
    with pytest.raises(ConfigError, match="has to be trained"):
        ccr_dist.load(path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/file").write_text("")
    with pytest.raises(ConfigError, match="no model folder"):
        model_folder.write(tmp_path / "model", None, {}, {})
    assert (tmp_path / "model/file").exists()


def test_an_untrained_method_loads_from_its_config(tmp_path: Path) -> None:
    retriever = ccr_dist.load(toy.config(tmp_path, {"name": "clip"}, {}))
    image = Image.new("RGB", (40, 30), "red")
    assert retriever.encode_images([image]).shape == (1, retriever.visual_width) == (1, 16)


def test_copies_of_base_models_keep_their_names(run) -> None:
    """Columns of features are found by the name of the backbone that made them."""
    config, folder = run
    retriever = ccr_dist.load(config.folder)
    copied = retriever.record.copied
    assert copied == {
        "backbone.model": "base/backbone.model/clip",
        "method.frontend.embeddings": "base/method.frontend.embeddings/mbert",
    }
    own = build_backbone(config.backbone)
    assert retriever.method.backbone.feature_identity("image") == own.feature_identity("image")
    decisive = [retriever.record.config[section] for section in ("backbone", "method")]
    assert str(folder) not in json.dumps(decisive), "paths of this machine say nothing elsewhere"


def test_a_text_encoder_described_by_another_folder_is_carried_along(tmp_path: Path) -> None:
    """open_clip's JSON names a folder of transformers, by its path on this machine."""
    place = exporting.model(tmp_path / "here", "clip", "xlm-roberta")
    before = exporting.loaded(place)
    rows = before.encode_text(toy.ENGLISH[:3], "en")
    shutil.copytree(place, tmp_path / "copy")
    (tmp_path / "here").rename(tmp_path / "gone")
    for file in filter(Path.is_file, (tmp_path / "copy/base").rglob("*.json")):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    after = exporting.loaded(tmp_path / "copy")
    assert after.digest == before.digest
    assert np.array_equal(after.encode_text(toy.ENGLISH[:3], "en"), rows)
    with pytest.raises(ConfigError, match="its text encoder is described by a folder"):
        export(after, "open_clip", tmp_path / "out", check=str(tmp_path / "gone/data/val"))
