"""Texts that say nothing, and values that are broken, where rows are drawn, swept and asked: never drawn, never a
query, always counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ccr_dist.data.media.text import has_text
from ccr_dist.data.storage.store import sha256_file
from ccr_dist.data.stream.loader import Fields, make_loader, sources
from ccr_dist.data.stream.order import Order
from ccr_dist.data.stream.rows import read_value
from ccr_dist.data.stream.sweep import Gallery, Sweep
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.data.table.inspect import describe
from ccr_dist.errors import DataBudgetError, DataError
from ccr_dist.evaluate.encoding import Encoders, Encoding, EvaluatedColumns
from ccr_dist.evaluate.evaluate import results
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import assemble
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.watch.guards import Guards, samples
from tests import toy

CAPTIONS = [["en 0", "en 1", "en 2"]] * 8
GERMAN = [
    ["de 0", "", "de 2"],
    ["", "\u200b", "de 2"],
    ["de 0", "de 1", "de 2"],
    None,
    ["", " ", "\ufeff"],
    ["de 0", "de 1", ""],
]
GERMAN += [["de 0", "", ""], ["\t", "de 1", "de 2"]]
BACK = [["back 0", "back 1", ""]] * 8  # row 1 has no caption with both


def column(dataset: Dataset, name: str, values: list, kind: str = "texts") -> None:
    made, at = create_column(dataset, name, kind=kind, extension="json", plan={}, provenance={}), 0
    for shard, rows in enumerate(dataset.shard_rows):
        made.commit(shard, [None if v is None else made.encode(v) for v in values[at : at + rows]])
        at += rows


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """8 rows in shards of 4; the second shard of caption.half has nothing."""
    dataset = create_dataset(
        tmp_path_factory.mktemp("blank") / "d", name="d", split="test", keys=[list("abcd"), list("efgh")]
    )
    column(dataset, "caption.en", CAPTIONS)
    column(dataset, "caption.de", GERMAN)
    column(dataset, "caption.en.back", BACK)
    column(dataset, "caption.half", [["half"]] * 4 + [[" "]] * 4)
    column(dataset, "caption.none", [["\u200b"], None, [""]] + [None] * 5)
    column(
        dataset,
        "description.d",
        [{"views": {"a": f"seen {i}", "b": " " if i else "too"}} for i in range(7)] + [{"views": {"a": ""}}],
        "views",
    )
    column(dataset, "label.l", ["same", "same", " ", "\u200b", None, "other", "other", "other"], "label")
    vectors = create_column(dataset, "feature.v", kind="matrix", extension="npy", plan={}, provenance={})
    for shard in range(2):
        vectors.commit_matrix(shard, np.eye(8, dtype=np.float16)[4 * shard : 4 * shard + 4])
    return dataset.root


def batches(dataset: Dataset, fields: Fields, lang: str = "de", steps: int = 12) -> list:
    order = Order(sources([dataset], [1.0], fields, [lang]), batch=4, seed=3, languages={lang: 1.0})
    return list(make_loader(order, [dataset], fields, world=1, rank=0, first=0, last=steps, workers=0))


def test_a_draw_falls_on_the_captions_that_are_there_and_pairs_stay_pairs(root):
    found = batches(Dataset(root), Fields(source="caption.en", targets={"de": "caption.de"}))
    drawn = {
        (item, a, b)
        for batch in found
        for item, a, b in zip(batch.items, batch.source_text, batch.target_text, strict=True)
    }
    assert drawn == {
        (key, f"en {n}", text)
        for key, texts in zip("abcdefgh", GERMAN, strict=True)
        for n, text in enumerate(texts or ())
        if has_text(text)
    }
    assert not any(batch.substituted for batch in found)


def test_a_caption_needs_all_its_companions(root):
    found = batches(
        Dataset(root), Fields(source="caption.en", targets={"de": "caption.de"}, backs={"de": "caption.en.back"})
    )
    assert {batch.target_text[i] for batch in found for i in range(4)} == {"de 0", "de 1"}
    assert all(
        b[-1] == a[-1] == c[-1]
        for batch in found
        for a, b, c in zip(batch.source_text, batch.target_text, batch.back_text, strict=True)
    )
    (broken,) = {
        (record["item"], record["error"].partition(": ")[2]) for batch in found for record in batch.substituted
    }
    assert broken == ("b", "no caption has text in all of caption.en, caption.de, caption.en.back")


def test_without_blanks_the_draw_is_the_slots_number_modulo_the_captions(root):
    """What runs of before have drawn."""
    dataset, fields = Dataset(root), Fields(source="caption.en")
    order = Order(sources([dataset], [1.0], fields, ["en"]), batch=4, seed=3, languages={"en": 1.0})
    for batch in make_loader(order, [dataset], fields, world=1, rank=0, first=0, last=6, workers=0):
        assert batch.source_text == [f"en {slot.draw % 3}" for slot in order.batch(batch.k, batch.slots.tolist()).slots]


def test_a_shard_without_a_row_that_can_be_drawn_is_passed_over(root):
    found = batches(Dataset(root), Fields(source="caption.half"), "en")
    assert {item for batch in found for item in batch.items} == set("abcd") and not any(
        batch.substituted for batch in found
    )


def test_an_order_with_an_empty_shard_is_that_of_the_other_rows(root):
    """The empty shard moves no other row: a pass is the concatenation of its shards' rows, of which it has none."""
    stream = Order(
        sources([Dataset(root)], [1.0], Fields(source="caption.half"), ["en"]), batch=2, seed=0, languages={"en": 1.0}
    ).stream("en", 0)
    for epoch in range(6):
        assert sorted(map(tuple, np.concatenate([stream.window(lane, epoch, 0) for lane in range(stream.lanes)]))) == [
            (0, r) for r in range(4)
        ]
    assert all(len(rows) for lane in range(stream.lanes) for _, rows in stream.run(lane, 0, 20))


def test_descriptions_are_the_views_that_say_something(root):
    dataset = Dataset(root)
    found = batches(dataset, Fields(source="caption.en", description="description.d"), "en")
    assert {text for batch in found for text in batch.description} == {
        "seen 0 too",
        *(f"seen {i}" for i in range(1, 7)),
    }
    items = Gallery(dataset, "feature.v", description="description.d", block_rows=8)[0]
    assert items.description == ["seen 0 too", *(f"seen {i}" for i in range(1, 7)), ""]


def test_a_sweep_counts_what_says_nothing_and_keeps_the_numbers_of_the_others(root):
    dataset = Dataset(root)
    block = Sweep(dataset, "caption.de", block_rows=8)[0]
    kept = [
        (row, part, text) for row, texts in enumerate(GERMAN) for part, text in enumerate(texts or ()) if has_text(text)
    ]
    assert list(zip(block.rows.tolist(), block.parts.tolist(), block.values, strict=True)) == kept
    assert block.blank == 21 - len(kept) and block.without == []
    beside = Sweep(dataset, "caption.de", beside="caption.en.back", block_rows=8)[0]
    kept = [(row, part, text) for row, part, text in kept if part < 2]
    assert list(zip(beside.rows.tolist(), beside.parts.tolist(), beside.values, strict=True)) == kept
    assert (
        beside.beside == [f"back {part}" for _, part, _ in kept]
        and beside.without == [1]
        and beside.blank == 21 - len(kept)
    )
    assert Sweep(dataset, "label.l", block_rows=8)[0].values == ["same", "same", "other", "other", "other"]


def vectors(texts: list[str], lang: str, companion: list[str]) -> dict[str, torch.Tensor]:
    assert all(map(has_text, [*texts, *companion])), "nothing blank is encoded"
    return {"global": torch.ones(len(texts), 8)}


def items(visual: torch.Tensor, mask: torch.Tensor | None, description: list[str]) -> dict[str, torch.Tensor]:
    return {"global": visual}


@pytest.mark.parametrize(("companions", "asked", "blank"), [({}, 11, 10), ({"de": "caption.en.back"}, 7, 14)])
@pytest.mark.parametrize("batch", [1, 3, 256])
def test_blank_captions_are_no_queries_and_are_counted(root, companions, asked, blank, batch):
    queries = {"de": "caption.de", "en": "caption.half"}
    columns = EvaluatedColumns(
        queries, "feature.v", description="description.d", companions=companions, group="label.l"
    )
    encoded = Encoding(Encoders(vectors, items), Dataset(root), columns, batch=batch).run()
    found = results(encoded, replicates=10, examples=3, english_column="caption.half")
    counts = found["de"].result.counts
    assert counts["captions"] == asked and counts["captions_blank"] == blank and encoded.undescribed == 1
    assert {example.query for example in found["de"].result.examples} <= {"de 0", "de 1", "de 2"}
    numbers = [
        int(text[-1])
        for row, texts in enumerate(GERMAN)
        for text in texts or ()
        if has_text(text) and (not companions or text != "de 2")
    ]
    assert found["de"].ranks["part"].tolist() == numbers
    assert (found["en"].result.counts["captions"], found["en"].result.counts["captions_blank"]) == (4, 4)
    assert counts["groups"] == 5, "a blank label is none: rows c, d and e are alone"
    assert {example.english for each in found.values() for example in each.result.examples} == {"half", None}


def test_a_column_that_says_nothing_is_refused(root):
    with pytest.raises(DataError, match=r"no captions of language 'cs'.*caption\.none.*is empty"):
        columns = EvaluatedColumns({"cs": "caption.none"}, "feature.v")
        Encoding(Encoders(vectors, items), Dataset(root), columns).run()


def broken_indexed(root: Path, values: list[bytes], nulls: list[int]) -> Dataset:
    """One shard, whose payload, index and record were written by a version that was less strict."""
    dataset = create_dataset(root, name="b", split="test", keys=[[f"k{i}" for i in range(len(values))]])
    made = create_column(dataset, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    made.commit(0, [b'["%s"]' % (b"x" * (len(value) - 4)) for value in values])
    payload = made.path(0).read_bytes()
    for value in values:
        payload = payload.replace(b'["%s"]' % (b"x" * (len(value) - 4)), value, 1)
    made.path(0).chmod(0o644)
    made.path(0).write_bytes(payload)
    index, record = (json.loads(made.path(0, what).read_text()) for what in ("index", "record"))
    made.path(0, "index").write_text(json.dumps({**index, "nulls": nulls}))
    kept = {key: record[key] for key in ("rows", "bytes", "plan", "keys")}
    made.path(0, "record").write_text(json.dumps({**kept, "sha256": sha256_file(made.path(0)), "nulls": len(nulls)}))
    return Dataset(root)


def test_half_of_a_surrogate_pair_is_a_bad_item_in_training_and_named_in_a_sweep(tmp_path):
    dataset = broken_indexed(tmp_path / "d", [b'["one"]', b'["\\ud800"]', b'["three"]'], [])
    found = batches(dataset, Fields(source="caption.en"), "en")
    assert {item for batch in found for item in batch.items} == {"k0", "k2"}
    assert {record["item"] for batch in found for record in batch.substituted} == {"k1"}
    with pytest.raises(DataError, match=r"item 'k1'.*not valid Unicode"):
        Sweep(dataset, "caption.en")[0]


def test_a_look_at_a_dataset_shows_a_broken_value_as_one(tmp_path):
    dataset = broken_indexed(tmp_path / "d", [b'["one"]', b'["\\ud800"]', b'["three"]'], [])
    shown = [row["values"]["caption.en"] for row in describe(dataset.root, rows=3)["datasets"][0]["shown"]]
    assert shown[0] == ["one"] and shown[1].startswith("broken: caption.en/000000 item 'k1'") and shown[2] == ["three"]


def test_a_broken_value_that_the_index_counts_as_null_is_not_asked(tmp_path):
    dataset = broken_indexed(tmp_path / "d", [b'["one"]', b'["\\ud800"]', b'["three"]'], [1])
    block = Sweep(dataset, "caption.en")[0]
    assert block.values == ["one", "three"] and block.without == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_bad_items_with_a_name(tmp_path, value):
    dataset = create_dataset(tmp_path / "d", name="d", split="test", keys=[["a", "b"]])
    made = create_column(dataset, "feature.v", kind="matrix", extension="npy", plan={}, provenance={})
    with made.path(0).open("wb") as file:
        np.save(file, np.array([[1, 2], [3, value], [5, 6]], np.float16))
        np.save(file, np.array([1, 2], np.int32))
    made.commit_matrix(0, np.zeros((3, 2)), [1, 2])  # adopts what is there
    assert read_value(made, 0, 0).tolist() == [[1, 2]]
    with pytest.raises(
        DataError, match=r"feature\.v/000000 item 'b'.*1 of 2 vectors have values that are NaN or infinite"
    ):
        read_value(made, 0, 1)


def test_vocabularies_are_made_of_texts_and_a_bad_item_does_not_end_the_run(tmp_path, monkeypatch):
    broken_indexed(tmp_path / "d", [b'["one"]', b'["\\ud800"]', b'["", "three"]'], [])
    method = SimpleNamespace(training_stages=lambda: {"s": SimpleNamespace(needs={"target_text"})})
    method.learner = lambda: method
    config = SimpleNamespace(method=method, data=SimpleNamespace(targets={"en": "caption.en"}))
    monkeypatch.setattr(assemble, "train_sets", lambda config, stage: [SimpleNamespace(path=tmp_path / "d")])
    assert list(assemble.training_texts(config)) == ["one", "three"]


def test_the_budget_of_broken_samples_grows_with_the_run(tmp_path):

    path = toy.dasd(tmp_path, runtime={"bad_samples": 3, "bad_fraction": 0.1})
    config = load_config(path)  # batches of 10; six steps of cla come before cma
    assert samples(config, RunProgress(step=8, stage="cma", stage_step=2)) == 80
    processes = SimpleNamespace(all=lambda value: [value], together=lambda work: work(), main=False)
    batch = SimpleNamespace(substituted=[])

    def counted(step: int, before: int, now: int, config=config) -> None:
        done = RunProgress(step=step, stage="cla", stage_step=step, substituted=before)
        Guards(config, processes, SimpleNamespace(path=tmp_path), lambda *_: None).substituted(done, batch, now)

    counted(1, 0, 3)
    with pytest.raises(
        DataBudgetError,
        match=r"4 of 10 samples were broken.*bad_samples allows 3, runtime\.bad_fraction 10\.00% of the samples",
    ):
        counted(1, 0, 4)
    counted(6, 3, 3)
    with pytest.raises(DataBudgetError, match="7 of 60 samples"):
        counted(6, 3, 4)
    with pytest.raises(DataBudgetError, match="bad_samples allows 0;"):
        counted(6, 0, 1, load_config(path, ["runtime.bad_samples=0"]))


def test_a_column_of_queries_without_one_is_said_before_the_first_step(tmp_path):
    toy.corpus(tmp_path / "data")
    for split in ("val", "test"):
        dataset = Dataset(tmp_path / "data" / split)
        column(dataset, "caption.es.none", [["\u200b"]] * dataset.rows)
    config = load_config(toy.dasd(tmp_path, data={"queries": {"en": "caption.en", "es": "caption.es.none"}}))
    with pytest.raises(DataError, match=r"data\.queries\.es: .*no row of column caption\.es\.none has a value"):
        assemble.check_columns(config)
