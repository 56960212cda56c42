"""A payload, index or record that is gone or damaged is not "there already": the same command makes it again, `verify
--repair` helps.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from ccr_dist.data.cli import shards_app
from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.storage import store
from ccr_dist.data.stream.fields import Fields, sources
from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.data.table.inspect import describe, render
from ccr_dist.data.table.repair import repair
from ccr_dist.data.table.sealing import seal_columns
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import DataError
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from tests.corpus import folder_recipe, tree
from tests.jobs import Shout, captions, content

XX = "caption.xx.shout"


def gone(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    """Another value, of the same length: nothing but the digest tells."""
    data = path.read_bytes()
    assert b"ONE" in data
    path.write_bytes(data.replace(b"ONE", b"TEN"))


def shout(dataset, engine=None):
    return run(Dataset(dataset.root), Translate(engine or Shout(), "caption.en"), XX, progress=False)


@pytest.fixture
def job(tmp_path):
    """A dataset with a finished job column, and the bytes of that column."""
    dataset = captions(tmp_path / "d", rows=(3, 4))
    shout(dataset)
    return dataset, content(dataset.root / XX)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("damage", [gone, cut])
def test_a_job_makes_a_lost_payload_again(job, damage, sealed):
    dataset, before = job
    if sealed:
        seal_columns(Dataset(dataset.root))
    damage(dataset.root / XX / "000001.tar")
    column = Dataset(dataset.root).column(XX)
    assert column.finished() == {0} and column.missing() == [1] and "000001.tar" in column.lost()[1]
    with pytest.raises(
        DataError, match=r"1 of 2 shards are missing \(000001\); 1 with a lost payload or record.*000001\.tar"
    ):
        column.require_complete()
    with pytest.raises((DataError, FileNotFoundError)):
        column.value(1, 0)
    assert any(
        "000001.tar" in str(problem) and "make it again" in str(problem) for problem in verify(dataset.root, fast=True)
    )
    described = next(column for column in describe(dataset.root)["datasets"][0]["columns"] if column["name"] == XX)
    assert (described["complete"], list(described["lost"])) == (False, ["000001"])
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(render(describe(dataset.root)))
    assert f"{XX}: lost shards: {dataset.root / XX}/000001.tar: " in console.export_text()
    done = shout(dataset)
    assert (done.done, done.skipped, done.rows) == (1, 1, 4)
    (dataset.root / XX / "000001.tar.damaged").unlink(missing_ok=True)
    (dataset.root / XX / "sealed.npy").unlink(missing_ok=True)
    assert content(dataset.root / XX) == before
    assert verify(dataset.root) == []


def test_a_job_needs_no_engine_for_an_index_that_is_gone(job):
    dataset, before = job
    (dataset.root / XX / "000001.index.json").unlink()
    engine = Shout()
    done = shout(dataset, engine)
    assert (done.done, done.rows, engine.calls) == (1, 0, [])
    assert content(dataset.root / XX) == before


def test_a_lost_matrix_is_made_again(tmp_path):
    dataset = captions(tmp_path / "d", rows=(3, 4))
    column = create_column(dataset, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    for shard, rows in enumerate((3, 4)):
        column.commit_matrix(shard, np.full((rows, 2), shard))
    cut(column.path(1))
    fresh = Dataset(dataset.root).column("feature.x")
    assert fresh.missing() == [1]
    assert fresh.commit_matrix(1, np.full((4, 2), 7))
    assert fresh.value(1, 3).tolist() == [[7, 7]] and verify(dataset.root) == []


@pytest.mark.parametrize("damage", [gone, cut])
def test_a_build_makes_a_lost_payload_again(tmp_path, damage):
    recipe = load_recipe(folder_recipe(tmp_path / "in"))
    done = build(recipe, tmp_path / "out", workers=0, progress=False)
    before = tree(tmp_path / "out")
    payload = next(path for path in sorted((tmp_path / "out").rglob("image/*.tar")))
    damage(payload)
    again = build(recipe, tmp_path / "out", workers=0, progress=False)
    assert (again.built, again.there) == (1, done.built - 1)
    payload.with_name(f"{payload.name}.damaged").unlink(missing_ok=True)
    assert tree(tmp_path / "out") == before


def command(*arguments):
    return CliRunner().invoke(shards_app, ["verify", *map(str, arguments), "--quiet"])


def test_verify_repair_sets_a_damaged_payload_aside_and_the_job_makes_it_again(job):
    dataset, before = job
    payload = dataset.root / XX / "000000.tar"
    flipped(payload)
    damaged = payload.read_bytes()
    assert shout(dataset).skipped == 2  # sizes do not tell
    assert "`shards verify --repair`, then " in str(command(dataset.root).exception)
    result = command(dataset.root, "--repair")
    assert "the shard is set aside (kept as 000000.tar.damaged); to make it again: " in result.output.replace("\n", " ")
    assert isinstance(result.exception, DataError) and "1 of 2 shards are not finished: 000000; to make them: " in str(
        result.exception
    )
    assert shout(dataset).done == 1
    assert payload.with_name("000000.tar.damaged").read_bytes() == damaged
    payload.with_name("000000.tar.damaged").unlink()
    assert content(dataset.root / XX) == before and verify(dataset.root) == []


def change(**values):
    def edit(path):
        path.write_text(json.dumps({**store.read_json(path), **values}))

    return edit


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "name, damage",
    [
        (f"{XX}/000000.json", change(nulls=1)),
        (f"{XX}/000000.json", lambda path: path.write_text("[]")),
        (f"{XX}/000000.index.json", change(nulls=[0])),
        (f"{XX}/000000.index.json", gone),
        ("keys/000001.txt", lambda path: path.write_text("x\n")),
        (f"{XX}/sealed.json", lambda path: path.write_text("null")),
    ],
)
def test_what_the_dataset_itself_tells_is_put_right(job, name, damage, sealed):
    dataset, before = job
    if sealed or "sealed" in name:
        seal_columns(Dataset(dataset.root))
    damage(dataset.root / name)
    problems = verify(dataset.root)
    assert problems and any(problem.damage for problem in problems)
    said = list(repair(problems))
    assert said
    # nothing tells the payload's digest any more
    if name.endswith("000000.json") and not sealed and damage.__name__ == "<lambda>":
        assert "set aside" in said[0] and shout(dataset).done == 1
        (dataset.root / XX / "000000.tar.damaged").unlink()
    left = {k: v for k, v in content(dataset.root / XX).items() if not k.startswith("sealed")}
    assert left == before and verify(dataset.root) == []


@pytest.mark.parametrize("stop", range(2, 8))
def test_setting_aside_can_be_interrupted_anywhere(job, monkeypatch, stop):
    """After `stop` file operations it ends; the payload is never taken for good, and the next call goes on."""
    dataset, before = job
    column, done = Dataset(dataset.root).column(XX), []
    cls = type(column.folder)

    def counted(real):
        def operation(*arguments, **options):
            done.append(real)
            if len(done) > stop:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return operation

    flipped(column.path(0))
    with monkeypatch.context() as patch:
        for name in ("unlink", "replace"):
            patch.setattr(cls, name, counted(getattr(cls, name)))
        try:
            column.set_aside(0)
        except KeyboardInterrupt:
            assert Dataset(dataset.root).column(XX).missing() == [0]
    assert shout(dataset).done == 1
    (dataset.root / XX / "000000.tar.damaged").unlink()
    assert content(dataset.root / XX) == before


def test_a_column_made_from_what_is_no_longer_there_is_found(job):
    dataset, _ = job
    for path in (dataset.root / "caption.en").glob("000000*"):
        path.unlink()
    english = Dataset(dataset.root).column("caption.en")
    english.commit(0, [english.encode(["other"])] * 3)
    assert any(
        "made from caption.en, whose content has changed" in problem.what for problem in verify(dataset.root, fast=True)
    )
    fields = Fields(source="caption.en", targets={"xx": XX})
    with pytest.raises(
        DataError, match=rf"{XX}: made from caption\.en, whose content has changed.*Make the column again: remove"
    ):
        sources([Dataset(dataset.root)], [1.0], fields, ["xx"])


def test_a_damaged_column_json_says_what_to_do_and_its_shards_are_kept(job):
    dataset, before = job
    meta = dataset.root / XX / "column.json"
    meta.write_text("null")
    with pytest.raises(
        DataError, match=r"column\.json.*remove the file and run the command that makes the column again"
    ):
        shout(dataset)
    meta.unlink()
    assert shout(dataset).skipped == 2 and content(dataset.root / XX) == before


def test_data_of_an_earlier_version_is_read_as_it_is(job):
    dataset, _ = job
    for path in (*dataset.root.glob("*/0?????.json"), *dataset.root.glob("*/column.json")):
        path.write_bytes(
            store.pretty_json({k: v for k, v in store.read_json(path).items() if k not in ("index", "digest")})
        )
    assert verify(dataset.root) == [] and shout(dataset).skipped == 2
    seal_columns(Dataset(dataset.root))
    assert Dataset(dataset.root).column(XX).value(0, 0) == ["0-0 ONE", "0-0 TWO"]
