"""Fields: what a batch holds belongs together, whichever columns it is read from; requests that cannot be met."""

from __future__ import annotations

import pytest

from ccr_dist.data.stream.loader import Fields, content_digests, make_loader, sources
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError
from tests.loading import FIELDS, ROWS, SHARDS, captions, load, make_order


def test_source_target_feature_and_description_belong_together(undisturbed):
    seen = set()
    for slots in undisturbed[0].values():
        for lang, item, group, source, target, description, visual, feature in slots.values():
            shard, row = int(item[1]), int(item[3:])
            number = int(source.split()[-1])
            assert source == f"en {item} {number}" and target == f"{lang} {item} {number}"
            assert feature == [shard, row, number] and visual[0][0][0] == (shard * ROWS + row) * 4 % 256
            assert description == f"a {item} b {item}"  # all views, in order of their names
            seen |= {("caption", captions(row), number), ("group", row // 2, group)}
    assert {entry for entry in seen if entry[0] == "caption"} == {
        ("caption", n, i) for n in (1, 2, 3) for i in range(n)
    }
    groups = [entry[2] for entry in seen if entry[0] == "group"]
    assert len(groups) == len(set(groups)) == 5 and min(groups) >= 0


def test_descriptions_can_be_the_source_texts(table):
    column = create_column(table, "caption.de.described", kind="texts", extension="json", plan={}, provenance={})
    for shard in range(SHARDS):
        column.commit(shard, [column.encode([f"de a s{shard}r{row}", f"de b s{shard}r{row}"]) for row in range(ROWS)])
    fields = Fields(source="description.llm", targets={"de": "caption.de.described"})
    found, _ = load(table, fields, languages=("de",), transform=None)
    pairs = [(source, target) for slots in found.values() for _, _, _, source, target, _ in slots.values()]
    assert all(target == f"de {source}" for source, target in pairs)
    assert {source[0] for source, _ in pairs} == {"a", "b"}


@pytest.mark.parametrize("world", [1, 20])  # 20: some ranks hold no row
def test_rows_with_several_vectors_are_padded_and_masked(table, world):
    fields = Fields(visual="feature.en", many=True)
    order = make_order(table, fields, languages=("en",))
    seen = 0
    for rank in range(world):
        for batch in make_loader(order, [table], fields, world=world, rank=rank, first=0, last=3, workers=0):
            assert (
                batch.visual.shape[:2] == batch.visual_mask.shape
                and batch.visual.shape[2] == 3
                and len(batch.visual) == len(batch)
            )
            for item, rows, mask in zip(batch.items, batch.visual, batch.visual_mask, strict=True):
                shard, row = int(item[1]), int(item[3:])
                assert rows[mask].tolist() == [[shard, row, i] for i in range(captions(row))] and not rows[~mask].any()
                seen += 1
    assert seen == 3 * 12


def test_back_translations_belong_to_the_chosen_caption(table):
    fields = Fields(
        source="caption.en",
        targets={"de": "caption.de.mt"},
        backs={"de": "caption.en"},
        back_features={"de": "feature.en"},
    )
    loader = make_loader(
        make_order(table, fields, languages=("de",)), [table], fields, world=1, rank=0, first=0, last=3, workers=0
    )
    for batch in loader:
        assert batch.back_text == batch.source_text
        assert [vector[2] for vector in batch.back_feature.tolist()] == [
            int(text.split()[-1]) for text in batch.target_text
        ]
    with pytest.raises(ConfigError, match="no back-translation column for language 'de'"):
        sources(
            [table],
            [1],
            Fields(source="caption.en", targets={"de": "caption.de.mt"}, backs={"cs": "caption.en"}),
            ["de"],
        )


def test_a_feature_column_can_stand_for_the_picture_and_fields_can_be_left_out(table):
    found, substituted = load(table, Fields(visual="feature.image"), transform=None, languages=("en",), steps=(0, 5))
    rows = [entry for slots in found.values() for entry in slots.values()]
    assert (
        sorted(entry[1] for entry in rows) == sorted(f"s{s}r{r}" for s in range(SHARDS) for r in range(ROWS))
        and not substituted
    )
    assert all(
        entry[6] == [int(entry[1][1]), int(entry[1][3:])] and entry[3] is entry[4] is entry[5] is None for entry in rows
    )
    assert len({entry[2] for entry in rows}) == len(rows), "without labels each row is its own group"


def test_mixtures_may_lack_a_language(table, tmp_path):
    other = create_dataset(tmp_path / "other", name="other", split="train", keys=[["a", "b", "c", "d", "e"]])
    for name in ("caption.en", "caption.cs.mt"):
        column = create_column(other, name, kind="texts", extension="json", plan={}, provenance={})
        column.commit(0, [column.encode([f"{name} {i}"]) for i in range(5)])
    fields = Fields(source="caption.en", targets=FIELDS.targets)
    order = Order(sources([other, table], [1, 1], fields, ["de", "cs"]), batch=8, seed=0, languages={"de": 1, "cs": 1})
    drawn = {"de": set(), "cs": set()}
    for batch in make_loader(order, [other, table], fields, world=1, rank=0, first=0, last=6, workers=0):
        drawn[batch.lang] |= {len(item) > 1 for item in batch.items}
    assert drawn == {"de": {True}, "cs": {True, False}}
    assert set(content_digests([other, table], fields, ["de"])) == {"toy/train/caption.en", "toy/train/caption.de.mt"}
    with pytest.raises(ConfigError, match="not the sources of the order"):
        make_loader(order, [table, other], fields, world=1, rank=0, first=0, last=6, workers=0)


def test_wrong_requests_are_named(table):
    with pytest.raises(ConfigError, match=r"'none' has no row.*caption.en: 60 of 60, caption.none: 0 of 60"):
        sources([table], [1], Fields(source="caption.en", targets={"none": "caption.none"}), ["none"])
    with pytest.raises(DataError, match=r"no column 'caption.cs.nt'.*caption.cs.mt"):
        sources([table], [1], Fields(targets={"cs": "caption.cs.nt"}), ["cs"])
    with pytest.raises(ConfigError, match="no target column for language 'ja'"):
        sources([table], [1], FIELDS, ["ja"])
    with pytest.raises(ConfigError, match=r"'caption.en' is of kind 'texts'; as visual it must be image or matrix"):
        sources([table], [1], Fields(visual="caption.en"), ["en"])
    with pytest.raises(ConfigError, match="at least one column"):
        sources([table], [1], Fields(), ["en"])
    with pytest.raises(ConfigError, match="source_feature"):
        sources([table], [1], Fields(source_feature="feature.en"), ["en"])
    with pytest.raises(ConfigError, match="transform"):
        load(table, transform=None)
