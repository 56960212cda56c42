"""The loader: the same global batches for any world size, workers and start."""

from __future__ import annotations

import contextlib
import pickle

import pytest
import torch
from PIL import Image

from ccr_dist.data.stream import loader as loader_module
from ccr_dist.data.stream.batch import Batch
from ccr_dist.data.stream.loader import Fields, make_loader
from ccr_dist.data.stream.sweep import sweep
from tests.loading import FIELDS, load, make_order, to_tensor


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


class Flip:
    random = True

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        return torch.full((1,), float(seed % 1000))


def test_random_transforms_get_a_seed_of_the_slot(table):
    fields = Fields(visual="image")
    found, _ = load(table, fields, transform=Flip(), languages=("en",))
    assert found == load(table, fields, transform=Flip(), world=3, languages=("en",))[0]
    assert len({entry[6][0] for slots in found.values() for entry in slots.values()}) > 100


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
