"""Runs of a study after what they stood on was made again, or deleted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from ccr_dist.data.media.decode import encode
from ccr_dist.data.storage.checked import read_checked, with_digest
from ccr_dist.data.storage.store import pretty_json
from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.errors import DONE, ConfigError, DataError
from ccr_dist.methods.run_config import load_config
from ccr_dist.study.plan import StudyPlan, load_plan, states
from ccr_dist.study.runner import run_study
from ccr_dist.study.summary import summarise
from ccr_dist.train import commands
from tests import toy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with study.yaml, whose runs are complete: without training, with it, from that, and their fusion."""
    folder = tmp_path_factory.mktemp("outdated")
    files = [
        toy.config(folder, {"name": "clip"}, {}),
        toy.dasd(folder, cla=2, cma=2),
        toy.config(folder, {"name": "fusion"}, {}),
    ]
    clip, dasd, fusion = (file.name for file in files)
    rows = [
        {"name": "zero", "config": clip},
        {"name": "dasd", "config": dasd},
        {"name": "next", "config": dasd, "start_from": "dasd"},
        {"name": "fused", "config": fusion, "start_from": "dasd"},
    ]
    study = {"name": "old", "title": "Old", "out": str(folder / "out"), "seeds": [0], "rows": rows}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    for run in plan_of(folder).runs:
        file, *overrides = (each for each in run.arguments[1:] if each != "--test")
        config = load_config(file, overrides)
        if run.config.stages:
            assert commands.train([config], test=True, world=None) == DONE
        else:
            assert commands.evaluate([config], split="test", again=False, world=None) == DONE
    return folder


def plan_of(folder: Path) -> StudyPlan:
    return load_plan(folder / "study.yaml")


def outdated(folder: Path) -> dict[str, list[str]]:
    """Row -> what has changed, without the folder in it."""
    found = states(plan_of(folder).runs)
    assert {kind for kind, _ in found.values()} <= {"complete", "outdated"}
    assert all((kind == "outdated") == bool(changed) for kind, changed in found.values())
    return {
        name.removesuffix("-s0"): [each.replace(f"{folder}/", "") for each in changed]
        for name, (kind, changed) in found.items()
        if changed
    }


@contextmanager
def set_aside(path: Path) -> Iterator[None]:
    """The folder is moved away for a while; what is made in its place goes."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
        away.rename(path)


def make_again(root: Path, name: str, texts: list[str]) -> None:
    dataset = Dataset.open(root)
    column = create_column(dataset, name, kind="texts", extension="json", plan={"by": "again"}, provenance={})
    for shard, part in enumerate(toy.chunks([[text] for text in texts], dataset.shard_rows[0])):
        column.commit(shard, [encode("texts", value) for value in part])


@pytest.mark.parametrize(
    ("split", "column", "rows"),
    [
        ("train", "caption.es.toy", {"dasd", "next"}),
        ("val", "caption.es", {"dasd", "next", "fused"}),
        ("test", "caption.es", {"zero", "dasd", "next", "fused"}),
    ],
)
def test_a_column_that_was_made_again_outdates_the_runs_that_read_it(
    made: Path, split: str, column: str, rows: set[str]
) -> None:
    assert outdated(made) == {}
    with set_aside(made / "data" / split / column):
        assert outdated(made) == {}  # gone: the results stand
        make_again(made / "data" / split, column, [text.upper() for text in toy.SPANISH])
        assert outdated(made) == {row: [f"column {column} of data/{split}"] for row in rows}
        said: list[str] = []
        assert run_study(plan_of(made), jobs=1, dry_run=True, say=said.append) == DONE
        assert f"{len(rows | {'fused'})} of them outdated" in said[-1]  # it stands on dasd
        assert sum(f"changed since: column {column} of {made}/data/{split}" in line for line in said) == len(rows)
        with pytest.raises(ConfigError, match=rf"(?s)2 runs were trained .*out/dasd-s0: column {column}.*delete"):
            run_study(plan_of(made), jobs=1, say=said.append)
        if len(rows) == 4:
            with pytest.raises(DataError, match=r"(?s)no run .* complete.*\n  zero-s0: outdated: column caption.es"):
                summarise(plan_of(made), replicates=20)
        else:
            summary = summarise(plan_of(made), replicates=20)
            assert set(summary.outdated) == set(summary.missing) == {f"{row}-s0" for row in rows}
    assert outdated(made) == {}


@pytest.mark.parametrize(
    ("named", "rows"),
    [("mbert/tokenizer.json", {"dasd", "next"}), ("mbert/model.safetensors", {"dasd", "next"})],
)
def test_any_file_of_local_weights_counts(made: Path, named: str, rows: set[str]) -> None:
    file = made / named
    before = file.read_bytes()
    (made / "mbert" / "README.md").write_text("for people")
    (made / "mbert" / ".cache").write_text("of a tool")
    assert outdated(made) == {}
    file.write_bytes(before + b" ")
    try:
        assert outdated(made) == {row: ["method.frontend.embeddings"] for row in rows}
        with pytest.raises(ConfigError, match=r"(?s)trained under another config.*weights.files.method.frontend"):
            commands.evaluate([plan_of(made).runs[1].config], split="test", again=True, world=None)
    finally:
        file.write_bytes(before)


def test_a_run_without_training_is_measured_again_with_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(toy.config(tmp_path, {"name": "clip"}, {}))
    reads = []
    for change in (b"", b"", b" "):
        with (tmp_path / "clip" / "open_clip_config.json").open("ab") as file:
            file.write(change)
        assert commands.evaluate([config], split="test", again=False, world=None) == DONE
        reads.append(json.loads((config.folder / "results/test.json").read_text())["test_reads"])
    assert reads == [1, 1, 2] and "measured with another content of base weights" in capsys.readouterr().out


def earlier(run: Path, begun: str | None) -> None:
    """The record of a run as earlier versions wrote it."""
    values, _ = read_checked(run / "identity.json")
    values["weights"].pop("init_from_is")
    if begun is not None:
        values["weights"]["init_from"] = begun
    (run / "identity.json").write_bytes(pretty_json(with_digest(values)))


@pytest.mark.parametrize("record", ["of today", "of an earlier version"])
@pytest.mark.parametrize("what", ["checkpoints", "its content"])
def test_deleted_checkpoints_of_a_source_are_no_other_weights(made: Path, record: str, what: str) -> None:
    source, run = made / "out" / "dasd-s0", made / "out" / "next-s0"
    before = (run / "identity.json").read_bytes()
    try:
        if record != "of today":
            earlier(run, None)
        assert outdated(made) == {}
        with set_aside(source / "checkpoints"):
            if what == "its content":
                (source / "checkpoints").mkdir()
            assert outdated(made) == {}
            with set_aside(run / "checkpoints"):  # it may begin again from the model that is left
                (run / "checkpoints").mkdir()
                with set_aside(run / "model"):
                    for name in ("model.safetensors", "best.json"):
                        (run / name).rename(run / f"{name}.away")
                    assert commands.train([plan_of(made).runs[2].config], test=False, world=None) == DONE
                    for name in ("model.safetensors", "best.json"):
                        (run / f"{name}.away").replace(run / name)
        if record != "of today":
            earlier_digest = "0" * 64  # other weights were selected there
            (run / "identity.json").write_bytes(before)
            earlier(run, earlier_digest)
            assert outdated(made) == {"next": ["init_from"]}
    finally:
        (run / "identity.json").write_bytes(before)


def test_a_source_that_was_trained_again_is_noticed_without_its_checkpoints(made: Path) -> None:
    source, run = made / "out" / "dasd-s0", made / "out" / "next-s0"
    before = (run / "identity.json").read_bytes()
    values, _ = read_checked(run / "identity.json")
    assert set(values["weights"]["init_from_is"]) == {"checkpoint", "model"}
    values["weights"]["init_from_is"]["model"] = "0" * 64
    (run / "identity.json").write_bytes(pretty_json(with_digest(values)))
    try:
        assert outdated(made) == {}  # the same checkpoint is selected
        with set_aside(source / "checkpoints"):
            assert outdated(made) == {"next": ["init_from"]}
    finally:
        (run / "identity.json").write_bytes(before)
