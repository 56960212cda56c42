"""The loader: the same global batches for any world size and workers, stand-ins for broken rows, none for a storage
that hiccups.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.stream import loader as loader_module
from ccr_dist.data.stream.batch import Batch
from ccr_dist.data.stream.loader import Fields, content_digests, make_loader, sources
from ccr_dist.data.stream.order import Order
from ccr_dist.data.stream.sweep import Gallery, Sweep, gallery, sweep
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError, StorageError

SHARDS, ROWS = 6, 10
FIELDS = Fields(
    visual="image",
    source="caption.en",
    targets={"de": "caption.de.mt", "cs": "caption.cs.mt"},
    source_feature="feature.en",
    description="description.llm",
    group="label.concept",
)
BROKEN = (2, 3)  # (shard, row) of a picture that is cut short
NULLS = {"de": {(0, 1), (4, 7)}, "cs": {(5, row) for row in range(5)}}


def picture(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (24, 24), (number * 4 % 256, 0, 0)).save(data, "PNG")
    return data.getvalue()


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[:, :4, :4].copy())


class Flip:
    random = True

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        return torch.full((1,), float(seed % 1000))


def captions(row: int) -> int:
    return row % 3 + 1


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """60 rows in 6 shards, 1 to 3 captions a row; everything a value says names its row and caption."""
    dataset = create_dataset(
        tmp_path_factory.mktemp("data") / "toy",
        name="toy",
        split="train",
        keys=[[f"s{s}r{r}" for r in range(ROWS)] for s in range(SHARDS)],
    )

    def column(name: str, kind: str, value) -> None:
        made = create_column(
            dataset, name, kind=kind, extension="png" if kind == "image" else "json", plan={}, provenance={}
        )
        for shard in range(SHARDS):
            values = [value(shard, row) for row in range(ROWS)]
            made.commit(shard, [v if kind == "image" or v is None else made.encode(v) for v in values])

    column("image", "image", lambda s, r: picture(s * ROWS + r)[: 60 if (s, r) == BROKEN else None])
    column("caption.en", "texts", lambda s, r: [f"en s{s}r{r} {i}" for i in range(captions(r))])
    for lang, nulls in NULLS.items():
        column(
            f"caption.{lang}.mt",
            "texts",
            lambda s, r, lang=lang, nulls=nulls: (
                None if (s, r) in nulls else [f"{lang} s{s}r{r} {i}" for i in range(captions(r))]
            ),
        )
    column("caption.bad", "texts", lambda s, r: ["", "x"] if r == 1 else [f"bad s{s}r{r}"] * (captions(r) + (r == 2)))
    column("caption.wrong", "texts", lambda s, r: ["wrong"] * (captions(r) + 1))
    column("caption.none", "texts", lambda s, r: None)
    column("description.llm", "views", lambda s, r: {"views": {"b": f"b s{s}r{r}", "a": f"a s{s}r{r}"}})
    column("label.concept", "label", lambda s, r: f"concept {r // 2}")
    feature = create_column(dataset, "feature.en", kind="matrix", extension="npy", plan={}, provenance={})
    pooled = create_column(dataset, "feature.image", kind="matrix", extension="npy", plan={}, provenance={})
    for shard in range(SHARDS):
        vectors = [[shard, row, i] for row in range(ROWS) for i in range(captions(row))]
        feature.commit_matrix(shard, np.array(vectors, np.float16), [captions(row) for row in range(ROWS)])
        pooled.commit_matrix(shard, np.array([[shard, row] for row in range(ROWS)], np.float16))
    return str(dataset.root)


@pytest.fixture
def table(root):
    forget_files()
    return Dataset.open(root)


def make_order(table: Dataset, fields: Fields = FIELDS, batch: int = 12, languages=("de", "cs")) -> Order:
    return Order(
        sources([table], [1.0], fields, languages),
        batch=batch,
        seed=11,
        lanes=4,
        languages=dict.fromkeys(languages, 1.0),
        window_rows=4,
    )


def load(
    table, fields=FIELDS, *, batch=12, world=1, workers=0, steps=(0, 12), transform=to_tensor, languages=("de", "cs")
):
    """{k: {slot: all that was loaded for it}} over all ranks, and the substitutions of all ranks."""
    order = make_order(table, fields, batch, languages)
    found: dict[int, dict[int, tuple]] = {}
    substituted = []
    for rank in range(world):
        options = {
            "world": world,
            "rank": rank,
            "first": steps[0],
            "last": steps[1],
            "workers": workers,
            "transform": transform,
        }
        loader = make_loader(order, [table], fields, **options)
        assert len(loader) == steps[1] - steps[0]
        for expected, got in zip(range(*steps), loader, strict=True):
            assert got.k == expected and len(got) == len(got.slots) == len(got.group)
            for tensor in (got.visual, got.source_feature):
                assert tensor is None or (len(tensor) == len(got) and tensor.dtype == torch.float32)
            columns = [got.items, got.group.tolist(), got.source_text, got.target_text, got.description]
            columns += [tensor.tolist() for tensor in (got.visual, got.source_feature) if tensor is not None]
            for i, slot in enumerate(got.slots.tolist()):
                assert slot not in found.setdefault(got.k, {})
                found[got.k][slot] = (got.lang, *[column[i] if column else None for column in columns])
            substituted += got.substituted
    return found, sorted(substituted, key=lambda record: (record["k"], record["slot"]))


@pytest.fixture(scope="module")
def undisturbed(root):
    return load(Dataset.open(root))


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (3, 0), (3, 2), (5, 0), (14, 0)])
def test_any_world_size_and_workers_give_the_same_batches_and_stand_ins(table, undisturbed, world, workers):
    assert load(table, world=world, workers=workers) == undisturbed
    assert all(len(slots) == 12 for slots in undisturbed[0].values())


@pytest.mark.parametrize(
    ("world", "workers", "first"), [(1, 0, 7), (1, 2, 5), (2, 2, 1), (3, 0, 11), (4, 1, 6), (13, 0, 3)]
)
def test_a_start_in_the_middle_gives_the_same_batches_to_any_world(table, undisturbed, world, workers, first):
    found, substituted = load(table, world=world, workers=workers, steps=(first, 12))
    assert found == {k: undisturbed[0][k] for k in range(first, 12)}
    assert substituted == [record for record in undisturbed[1] if record["k"] >= first]


@pytest.mark.parametrize(("world", "size"), [(1, 5), (2, 4), (5, 2), (13, 1)])
def test_micro_batches_of_all_ranks_are_the_global_batch(table, undisturbed, world, size):
    order, found = make_order(table), {}
    for rank in range(world):
        for batch in make_loader(
            order, [table], FIELDS, world=world, rank=rank, first=2, last=5, workers=0, transform=to_tensor
        ):
            parts = batch.parts(size)
            assert all(len(part) <= size for _, part in parts) and len(parts) == max(1, -(-len(batch) // size))
            for _, part in parts:
                for i, slot in enumerate(part.slots.tolist()):
                    texts = (part.source_text[i], part.target_text[i], part.description[i])
                    row = (
                        part.lang,
                        part.items[i],
                        int(part.group[i]),
                        *texts,
                        part.visual[i].tolist(),
                        part.source_feature[i].tolist(),
                    )
                    assert found.setdefault(part.k, {}).setdefault(slot, row) is row
    assert found == {k: undisturbed[0][k] for k in range(2, 5)}


def test_batches_are_moved_one_ahead_of_their_use(table, monkeypatch):
    """With a stand-in for CUDA; tests/gpu has the real one."""
    batches = list(
        make_loader(
            make_order(table), [table], FIELDS, world=1, rank=0, first=0, last=4, workers=0, transform=to_tensor
        )
    )
    assert [batch.k for batch in loader_module.on_device(batches, torch.device("cpu"))] == [0, 1, 2, 3]
    log = []

    class Stream:
        def __init__(self, device):
            pass

        def record_event(self):
            return "event"

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Batch, "to", lambda self, device: log.append(("copy", self.k)) or self)
    monkeypatch.setattr(loader_module, "_arrived", lambda batch, event: log.append((event, batch.k)) or batch)
    for batch in loader_module.on_device(iter(batches), torch.device("cuda")):
        log.append(("use", batch.k))
    steps = [[("copy", k + 1)] * (k < 3) + [("event", k), ("use", k)] for k in range(4)]
    assert log == [("copy", 0), *(entry for step in steps for entry in step)]
    assert list(loader_module.on_device([], torch.device("cuda"))) == []


def test_ragged_ranks_and_a_rank_without_rows(table):
    order = make_order(table, batch=4)
    loaders = [
        make_loader(order, [table], FIELDS, world=6, rank=r, first=0, last=2, workers=0, transform=to_tensor)
        for r in range(6)
    ]
    batches = [next(iter(loader)) for loader in loaders]
    assert [len(batch) for batch in batches] == [1, 1, 1, 1, 0, 0]
    empty = pickle.loads(pickle.dumps(batches[5]))
    assert (empty.k, empty.lang) == (0, batches[0].lang)
    assert empty.visual.shape == (0, *batches[0].visual.shape[1:]) and empty.source_feature.shape == (0, 3)
    assert empty.slots.shape == empty.group.shape == (0,) and empty.group.dtype == torch.int64
    assert empty.items == empty.source_text == empty.target_text == empty.description == empty.substituted == []
    assert empty.to("cpu").visual.shape == empty.visual.shape


def test_descriptions_can_be_the_source_texts(table):
    column = create_column(table, "caption.de.described", kind="texts", extension="json", plan={}, provenance={})
    for shard in range(SHARDS):
        column.commit(shard, [column.encode([f"de a s{shard}r{row}", f"de b s{shard}r{row}"]) for row in range(ROWS)])
    fields = Fields(source="description.llm", targets={"de": "caption.de.described"})
    found, _ = load(table, fields, languages=("de",), transform=None)
    pairs = [(source, target) for slots in found.values() for _, _, _, source, target, _ in slots.values()]
    assert all(target == f"de {source}" for source, target in pairs)
    assert {source[0] for source, _ in pairs} == {"a", "b"}


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


def test_null_rows_are_never_drawn_and_all_others_are(table):
    found, _ = load(table, steps=(0, 40))
    for lang, nulls in NULLS.items():
        drawn = {entry[1] for slots in found.values() for entry in slots.values() if entry[0] == lang}
        assert drawn == {f"s{s}r{r}" for s in range(SHARDS) for r in range(ROWS) if (s, r) not in nulls | {BROKEN}}


def test_a_broken_picture_is_substituted_and_listed(undisturbed):
    found, substituted = undisturbed
    assert substituted, "the broken picture must be met"
    for record in substituted:
        assert (record["dataset"], record["shard"], record["row"], record["item"]) == ("toy/train", "000002", 3, "s2r3")
        assert "broken picture" in record["error"] and "s2r3" in record["error"]
        assert found[record["k"]][record["slot"]][1] == record["stand_in"] != "s2r3"
        assert record["stand_in"].startswith("s2")
    assert all(entry[1] != "s2r3" for slots in found.values() for entry in slots.values())


def test_misaligned_captions_are_substituted_and_blank_ones_not_drawn(table):
    fields = Fields(source="caption.en", targets={"bad": "caption.bad"})
    found, substituted = load(table, fields, languages=("bad",), steps=(0, 20))
    assert {record["row"] for record in substituted} == {2} and all(
        "aligned" in record["error"] for record in substituted
    )
    drawn = {entry[4]: entry[3] for slots in found.values() for entry in slots.values() if entry[1] == "s0r1"}
    assert drawn == {"x": "en s0r1 1"}, "the caption that the translation belongs to"
    kept = {entry[4] for slots in found.values() for entry in slots.values()}
    assert kept == {f"bad s{s}r{r}" for s in range(SHARDS) for r in range(ROWS) if r not in (1, 2)} | {"x"}


def test_too_many_broken_rows_end_the_run(table):
    fields = Fields(source="caption.en", targets={"wrong": "caption.wrong"})
    with pytest.raises(
        DataError, match=r"batch 0, slot 0: 9 broken rows in a row; the first: caption.wrong/.* aligned"
    ):
        load(table, fields, languages=("wrong",))


def test_a_visual_matrix_has_one_vector_a_row(table):
    _, substituted = load(table, Fields(visual="feature.en"), languages=("en",), steps=(0, 5))
    assert {record["row"] for record in substituted} == {1, 2, 4, 5, 7, 8}
    assert all("vectors, but this method takes one per row" in record["error"] for record in substituted)


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


@pytest.mark.parametrize("world", [1, 3, 20])
def test_a_gallery_is_every_item_once_with_its_description(table, world):
    def read(**options):
        return [block for r in range(world) for block in gallery(table, world=world, rank=r, block_rows=7, **options)]

    blocks = [b for b in read(visual="feature.en", many=True, description="description.llm") if len(b.rows)]
    assert [row for block in blocks for row in block.rows.tolist()] == list(range(60))
    for block in blocks:
        for row, vectors, mask, text in zip(
            block.rows.tolist(), block.visual, block.mask, block.description, strict=True
        ):
            shard, at = divmod(row, ROWS)
            assert (
                vectors[mask].tolist() == [[shard, at, i] for i in range(captions(at))]
                and text == f"a s{shard}r{at} b s{shard}r{at}"
            )
    plain = [block for block in read(visual="feature.image") if len(block.rows)]
    assert (
        torch.cat([block.visual for block in plain]).shape == (60, 2)
        and plain[0].mask is None
        and plain[0].description == []
    )


def test_a_gallery_refuses_what_it_cannot_show(table):
    with pytest.raises(DataError, match=r"s0r1.*2 vectors;"):
        Gallery(table, "feature.en")[0]
    with pytest.raises(ConfigError, match="pictures or vectors, this is a texts column"):
        Gallery(table, "caption.en")


class FlakyReads:
    """os.pread that fails `times` times for each (offset) of the image tars, then works."""

    def __init__(self, times: float) -> None:
        self.times, self.real = times, os.pread
        self.failed: dict[tuple[int, int], int] = {}

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        if "image" in path and offset % 3 == 0:
            self.failed[path, offset] = self.failed.get((path, offset), 0) + 1
            if self.failed[path, offset] <= self.times:
                raise OSError(5, "Input/output error", path)
        return self.real(fd, size, offset)


@pytest.mark.parametrize("workers", [0, 2])
def test_reads_that_fail_twice_change_nothing(table, undisturbed, monkeypatch, workers):
    flaky = FlakyReads(2)
    monkeypatch.setattr(os, "pread", flaky)
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    assert load(table, world=2, workers=workers) == undisturbed
    assert workers or (len(flaky.failed) > 5 and min(flaky.failed.values()) >= 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_reads_that_keep_failing_end_the_run(table, monkeypatch, workers):
    monkeypatch.setattr(os, "pread", FlakyReads(float("inf")))
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match=r"image/.*Input/output error") as caught:
        load(table, workers=workers)
    assert caught.value.exit_code == 5


def test_random_transforms_get_a_seed_of_the_slot(table):
    fields = Fields(visual="image")
    found, _ = load(table, fields, transform=Flip(), languages=("en",))
    assert found == load(table, fields, transform=Flip(), world=3, languages=("en",))[0]
    assert len({entry[6][0] for slots in found.values() for entry in slots.values()}) > 100


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


def test_loading_leaves_torchs_random_state_alone(table):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load(table, world=2)
    list(sweep(table, "caption.en"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_dataset_survives_pickling_as_spawned_workers_need(table, undisturbed):
    order = make_order(table)
    loader = make_loader(order, [table], FIELDS, world=1, rank=0, first=0, last=1, workers=0, transform=to_tensor)
    next(iter(loader))
    again = pickle.loads(pickle.dumps(loader.dataset))[5]
    assert again.items == [undisturbed[0][5][slot][1] for slot in again.slots.tolist()] and len(again) == 12


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


@pytest.mark.parametrize(
    ("column", "number"), [("caption.de.mt", 110), ("feature.en", 114), ("feature.image", 60), ("description.llm", 120)]
)
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 0), (2, 1), (20, 0)])
def test_a_sweep_reads_every_value_once_in_blocks_that_ignore_the_world(table, column, number, world, workers):
    def read(world, workers=0):
        return [
            block
            for r in range(world)
            for block in sweep(table, column, world=world, rank=r, block_rows=7, workers=workers)
        ]

    blocks = read(world, workers)
    assert len(blocks) == 9
    for block, alone in zip(blocks, read(1), strict=True):
        assert (
            torch.equal(block.rows, alone.rows)
            and torch.equal(block.parts, alone.parts)
            and len(block.values) == len(block.rows)
        )
        assert (
            torch.equal(block.values, alone.values)
            if isinstance(block.values, torch.Tensor)
            else block.values == alone.values
        )
    places = [
        (int(row), int(part), value) for b in blocks for row, part, value in zip(b.rows, b.parts, b.values, strict=True)
    ]
    assert len(places) == number and [place[:2] for place in places] == sorted(place[:2] for place in places)
    for row, part, value in places:
        shard, at = divmod(row, ROWS)
        expected = {
            "caption.de.mt": f"de s{shard}r{at} {part}",
            "feature.en": [shard, at, part],
            "feature.image": [shard, at],
            "description.llm": f"{'ab'[part % 2]} s{shard}r{at}",
        }[column]
        assert (value.tolist() if isinstance(value, torch.Tensor) else value) == expected


def test_a_sweep_of_pictures_refuses_a_broken_one(table):
    pictures = Sweep(table, "image", transform=to_tensor, block_rows=8)
    assert pictures[0].values.shape == (8, 3, 4, 4) and len(pictures) == 8 and len(pictures[7].rows) == 4
    with pytest.raises(DataError, match="s2r3"):
        pictures[2]
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Sweep(table, "image", world=2, rank=2)
