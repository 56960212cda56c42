"""A stage in closed form, from features on disk to a model folder; stopped and resumed; columns that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ccr_dist
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.stream.matrices import Matrices
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import CcrError, ConfigError, DataError
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.train import commands, loop
from ccr_dist.train.step import fit
from tests import query_side
from tests.nearness import close
from tests.short_runs import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return tensorfile.read(folder / "model.safetensors")[0]


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line.get("event") == name]


def test_from_features_to_a_model(tmp_path: Path) -> None:
    path = query_side.config(tmp_path, penalties=[1e-3, 1e-1, 10.0])
    config = train(path, test=True)
    [solutions] = events(config.folder, "solutions")
    tried = {each["penalty"]: each["value"] for each in solutions["tried"]}
    assert list(tried) == [1e-3, 1e-1, 10.0]
    best = json.loads((config.folder / "best.json").read_text())
    assert best["value"] == max(tried.values()) and best["step"] == 1
    results = json.loads((config.folder / "results" / "test.json").read_text())
    assert {"en", "es"} <= results["languages"].keys()
    assert not (config.folder / "sums").exists()
    model = ccr_dist.load(config.folder)
    x = np.concatenate(
        [
            Dataset.open(tmp_path / "data" / "train").column(name).matrix(s)[0]
            for name in query_side.QUERY.values()
            for s in range(6)
        ]
    ).astype(np.float64)
    y = np.concatenate(
        [
            Dataset.open(tmp_path / "data" / "train").column("feature.en").matrix(s)[0]
            for _ in range(2)
            for s in range(6)
        ]
    ).astype(np.float64)
    means = x.mean(0), y.mean(0)
    system = (x - means[0]).T @ (x - means[0]) / len(x)
    penalty = max(tried, key=lambda each: tried[each]) * np.trace(system) / len(system)
    expected = np.linalg.solve(system + penalty * np.eye(len(system)), (x - means[0]).T @ (y - means[1]) / len(x))
    close(weights(config.folder)["net.map.weight"].T, torch.from_numpy(expected).float(), tolerance=1e-6)
    assert model.encode_text(["una mancha verde"], lang="es").shape == (1, model.text_width)
    assert commands.train([config], test=False, world=None) == 0  # complete: nothing is done again
    assert len(events(config.folder, "solutions")) == 1


def test_captions_are_drawn_alike_however_they_are_read(tmp_path: Path) -> None:
    """Landmarks of `kernel`."""
    found = []
    for batch in (2, 100):
        path = query_side.config(tmp_path, "kernel", landmarks=20, pictures=[0.5], penalties=[0.1])
        config = train(path, f"stages.fit.batch={batch}", f"name=by-{batch}", test=True)
        found.append(weights(config.folder))
        model = ccr_dist.load(config.folder)
        assert model.encode_text(["una mancha verde"], lang="es").shape == (1, model.text_width)
    assert torch.equal(found[0]["net.kernel.landmarks"], found[1]["net.kernel.landmarks"])
    assert int((found[0]["net.kernel.landmarks"].norm(dim=1) > 0.5).sum()) == 20
    close(found[0]["net.kernel.coefficients"], found[1]["net.kernel.coefficients"], tolerance=1e-4)
    other = train(path, "seed=1")
    assert not torch.equal(weights(other.folder)["net.kernel.landmarks"], found[0]["net.kernel.landmarks"])


def test_a_run_that_was_stopped_sums_up_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(query_side.config(tmp_path), "name=whole", "stages.fit.batch=2")
    config = load_config(query_side.config(tmp_path), ["stages.fit.batch=2"])
    read: list[Any] = []
    real = Matrices.read

    def stopping(self: Matrices, block: Any) -> Any:
        read.append(block)
        if len(read) == 5:
            (config.folder / "stop").touch()
        return real(self, block)

    monkeypatch.setattr(Matrices, "read", stopping)
    assert commands.train([config], test=False, world=None) != 0
    [part] = (config.folder / "sums" / "fit").iterdir()
    assert len(read) == 5 and not (config.folder / "model.safetensors").exists()
    (config.folder / "sums" / "fit" / "00000000-damaged.safetensors").write_bytes(part.read_bytes()[:-9])
    (config.folder / "stop").unlink(missing_ok=True)
    assert commands.train([config], test=False, world=None) == 0
    assert len(read) == len(set(read)) == 36  # 2 languages x 6 shards of 5 rows, 2 at a time
    for name, tensor in weights(whole.folder).items():
        close(weights(config.folder)[name], tensor, tolerance=1e-6)


def test_sums_of_other_features_count_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SAVE_S", -1.0)  # a file a block
    config = train(query_side.config(tmp_path), "stages.fit.batch=2")
    kept: dict[str, bytes] = {}
    monkeypatch.setattr(
        loop, "forget", lambda run: kept.update({p.name: p.read_bytes() for p in (run.path / "sums/fit").iterdir()})
    )
    train(query_side.config(tmp_path), "stages.fit.batch=2", "name=other", "seed=3")
    folder = Path(config.out) / "other-s3" / "sums" / "fit"
    assert len(kept) == len(list(folder.iterdir())) == 36


def test_captions_alone_choose_the_penalty_where_no_language_is_measured(tmp_path: Path) -> None:
    path = query_side.config(tmp_path)
    config = train(path, 'data.queries={"en": "caption.en"}')
    [line] = events(config.folder, "validation")
    assert "und/mR" in line and "en/mR" not in line


def test_sums_of_a_start_that_ended_behind_its_checkpoint_are_removed(tmp_path: Path) -> None:
    config = train(query_side.config(tmp_path))
    (config.folder / "model.safetensors").unlink()
    (config.folder / "sums" / "fit").mkdir(parents=True)
    train(query_side.config(tmp_path))
    assert not (config.folder / "sums").exists() and len(events(config.folder, "solutions")) == 1


def test_a_stage_may_read_datasets_of_its_own(tmp_path: Path) -> None:
    path = query_side.config(tmp_path)
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "data" / "more")
    once, more = ({"path": str(tmp_path / "data" / name)} for name in ("train", "more"))
    config = train(path)
    assert events(config.folder, "solutions")[0]["captions"] == {"en": 30, "es": 30}
    twice = train(path, f"stages.fit.train={json.dumps([once, more])}", "name=twice")
    assert events(twice.folder, "solutions")[0]["captions"] == {"en": 60, "es": 60}
    close(weights(twice.folder), weights(config.folder), tolerance=1e-6)
    with pytest.raises(ConfigError, match=r"data\.train gives datasets different weights.*counts every caption once"):
        run(path, f"data.train={json.dumps([once, {**more, 'weight': 2.0}])}", "name=uneven")
    with pytest.raises(ConfigError, match=r"stages\.fit\.train gives datasets different weights"):
        run(path, f"stages.fit.train={json.dumps([once, {**more, 'weight': 2.0}])}", "name=uneven")


@pytest.mark.parametrize("name", ["map", "kernel"])
def test_a_language_without_a_caption_is_named(tmp_path: Path, name: str) -> None:
    path = query_side.config(tmp_path, name, **({"centre": "language"} if name == "map" else {"landmarks": 9}))
    dataset = Dataset.open(tmp_path / "data" / "train")
    made: dict[str, Any] = {"plan": {"by": "this test"}, "provenance": {}}
    captions = create_column(dataset, "caption.fr", kind="texts", extension="json", **made)
    features = create_column(dataset, "feature.q.fr", kind="matrix", extension="npy", **made)
    for shard, rows in enumerate(dataset.shard_rows):
        captions.commit(shard, [None] * rows)
        features.commit_matrix(shard, np.zeros((0, 4), np.float16), [0] * rows)
    with pytest.raises(ConfigError, match=r"stage fit: no caption in fr has text, a vector by the query encoder"):
        run(path, "data.targets.fr=caption.fr", "data.query_features.fr=feature.q.fr")


def test_features_of_other_captions_are_refused(tmp_path: Path) -> None:
    said = r"data\.query_features\.es: .*feature\.q\.es was made of caption\.es\.toy, and data\.targets\.es names"
    with pytest.raises(ConfigError, match=said):
        run(query_side.config(tmp_path), "data.targets.es=caption.es")
    said = r"data\.source_feature: .*feature\.en was made of caption\.en, and data\.source names caption\.en\.toy"
    with pytest.raises(ConfigError, match=said):
        run(query_side.config(tmp_path), "data.source=caption.en.toy", "name=other")


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    path = query_side.config(tmp_path)
    with pytest.raises(
        ConfigError, match=r"data\.query_features\.es: .*feature\.en was made by another encoder.*--encoder query"
    ):
        run(path, "data.query_features.es=feature.en")
    with pytest.raises(ConfigError, match=r"data\.source_feature: .*feature\.q\.en was made by another encoder"):
        run(path, "data.source_feature=feature.q.en", "name=other")


def run(path: Path, *overrides: str) -> None:
    from ccr_dist.train.loop import train_run
    from ccr_dist.train.strategies.strategy import Strategy

    config = load_config(path, overrides)
    train_run(config, Strategy(config.runtime))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.source_feature=null"], "data.source_feature and data.query_features"),
        (["data.query_features={}"], "data.source_feature and data.query_features"),
        (['data.query_features={"en": "feature.q.en", "fr": "feature.q.es"}'], "names fr, but data.targets does not"),
        (["runtime.checkpoint=sharded"], "sharded"),
        (["method.name=kernel", "runtime.cached_features=false"], "image, and a stage in closed form sums up"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(CcrError, match=said):
        run(query_side.config(tmp_path), *overrides)


# Rows that lie in several columns.


COLUMNS = {"en": "caption.en", "q": "feature.q", "f": "feature.f", "v": "feature.v"}


def table(root: Path, **columns: tuple[str, list[Any]]) -> Dataset:
    """A dataset of one shard; columns by name: kind and values."""
    rows = len(next(iter(columns.values()))[1])
    dataset = create_dataset(root, name="t", split="train", keys=[[f"{i}" for i in range(rows)]])
    for key, (kind, values) in columns.items():
        name = COLUMNS[key]
        extension = {"matrix": "npy", "texts": "json"}[kind]
        column = create_column(dataset, name, kind=kind, extension=extension, plan={"by": "test"}, provenance={})
        if kind == "matrix":
            width = max(np.asarray(value).shape[-1] for value in values if value is not None)
            there = [np.asarray(value, np.float16).reshape(-1, width) for value in values if value is not None]
            column.commit_matrix(0, np.concatenate(there), [0 if v is None else len(np.asarray(v)) for v in values])
        else:
            column.commit(0, [None if value is None else column.encode(value) for value in values])
    return dataset


FIELDS = Fields(
    source=COLUMNS["en"], source_feature=COLUMNS["f"], query_features={"en": COLUMNS["q"]}, visual=COLUMNS["v"]
)


def test_only_captions_with_text_and_all_vectors_are_summed_up(tmp_path: Path) -> None:
    dataset = table(
        tmp_path / "d",
        en=("texts", [["a", " ", "b"], ["c"], None, ["d", "e"]]),
        q=("matrix", [[[1], [2], [3]], [[4]], None, [[5], [6]]]),
        f=("matrix", [[[10], [20], [30]], None, None, [[50], [60]]]),
        v=("matrix", [[[100]], [[200]], [[300]], [[400]]]),
    )
    for rows in (1, 2, 3, 100):
        matrices = Matrices([dataset], FIELDS, rows=rows)
        found = [matrices.read(block) for block in matrices.blocks]
        names = ("query", "english", "visual")
        whole = {name: np.concatenate([each[name] for each in found]).ravel().tolist() for name in names}
        assert whole == {"query": [1, 3, 5, 6], "english": [10, 30, 50, 60], "visual": [100, 100, 400, 400]}


def test_columns_that_do_not_fit_are_named(tmp_path: Path) -> None:
    dataset = table(
        tmp_path / "d",
        en=("texts", [["a"], ["b"]]),
        q=("matrix", [[[1]], [[2]]]),
        f=("matrix", [[[1], [2]], [[3]]]),
        v=("matrix", [[[1]], [[2]]]),
    )
    matrices = Matrices([dataset], FIELDS, rows=10)
    with pytest.raises(DataError, match="2 vectors, and 1 are expected"):
        matrices.read(matrices.blocks[0])


def test_vectors_of_another_width_are_named(tmp_path: Path) -> None:
    one, other = (
        table(
            tmp_path / f"{width}",
            en=("texts", [["a"]]),
            **{name: ("matrix", [[[1] * (width if name == "q" else 1)]]) for name in ("q", "f", "v")},
        )
        for width in (2, 3)
    )
    with pytest.raises(DataError, match=r"3/feature\.q: vectors of 3 numbers, and those of .*2/feature\.q have 2"):
        Matrices([one, other], FIELDS, rows=10)


def test_damaged_vectors_are_named(tmp_path: Path) -> None:
    dataset = table(
        tmp_path / "d",
        en=("texts", [["a"], ["b"]]),
        **{name: ("matrix", [[[1]], [[2]]]) for name in ("q", "f", "v")},
    )
    payload = tmp_path / "d" / "feature.f" / "000000.npy"
    data = bytearray(payload.read_bytes())
    data[130:132] = np.array(np.nan, np.float16).tobytes()  # the second value, behind a header of 128 bytes
    payload.write_bytes(data)
    matrices = Matrices([dataset], FIELDS, rows=10)
    with pytest.raises(DataError, match=r"feature\.f.*NaN or infinite"):
        matrices.read(matrices.blocks[0])


def test_captions_and_vectors_have_to_be_aligned(tmp_path: Path) -> None:
    dataset = table(
        tmp_path / "d", en=("texts", [["a"], ["b", "c", "d"]]), q=("matrix", [[[1]], [[2], [3]]]),
        f=("matrix", [[[1]], [[2], [3]]]), v=("matrix", [[[1]], [[2]]]),
    )  # fmt: skip
    matrices = Matrices([dataset], FIELDS, rows=10)
    with pytest.raises(DataError, match=r"3 captions, but feature\.q has 2 vectors"):
        matrices.read(matrices.blocks[0])
