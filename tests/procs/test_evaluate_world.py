"""Evaluation on one, two and three real processes: the same ranks bit for bit, every caption encoded by one process
exactly once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import DataError
from ccr_dist.evaluate.encoding import Encoded, Encoders, Encoding, EvaluatedColumns

pytestmark = pytest.mark.procs

WORKER = Path(__file__).with_name("evaluate_worker.py")
SIZES = (7, 0, 9, 4)  # rows a shard
NO_PICTURE, NO_GERMAN, NO_LABEL = {5}, {2, 11, 19}, {0, 7}


def german(row: int) -> list[str] | None:
    return None if row in NO_GERMAN else [f"{row} Bild <{n}> & mehr" for n in range(row % 4 + 1)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """20 items; captions per item vary, some have none; one has no feature; concepts are shared."""
    numbers = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    made = create_dataset(
        tmp_path_factory.mktemp("toy"),
        name="toy",
        split="test",
        keys=[[f"item{n:02d}" for n in shard] for shard in numbers],
    )

    def column(name: str, kind: str, value) -> None:
        made_column = create_column(made, name, kind=kind, extension="json", plan={}, provenance={})
        for shard, rows in enumerate(numbers):
            values = (value(int(row)) for row in rows)
            made_column.commit(shard, [None if v is None else made_column.encode(v) for v in values])

    column("caption.de", "texts", german)
    column("caption.fr", "texts", lambda row: [f"{row} image"])
    column("caption.en", "texts", lambda row: [f"{row} picture"])
    column("caption.cs", "texts", lambda row: None)
    column("label.concept", "label", lambda row: None if row in NO_LABEL else f"concept {row % 17}")
    features = create_column(made, "feature.toy", kind="matrix", extension="npy", plan={}, provenance={})
    for shard, rows in enumerate(numbers):
        vectors = [
            torch.randn(8, generator=torch.Generator().manual_seed(int(row))).numpy()
            for row in rows
            if row not in NO_PICTURE
        ]
        nulls = [at for at, row in enumerate(rows) if row in NO_PICTURE]
        features.commit_matrix(shard, np.array(vectors, dtype=np.float16).reshape(len(vectors), 8), nulls=nulls)
    return made


def run(dataset: Dataset, world: int, out: Path, batch: int = 3) -> list[dict]:
    launch = [sys.executable]
    if world > 1:
        launch += [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(world),
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            "localhost:0",
        ]
    target = out / f"{world}.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(WORKER), str(dataset.root), str(target), str(batch)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def alone(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run(dataset, 1, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize(
    ("world", "batch"),
    [pytest.param(2, 3, marks=pytest.mark.slow), pytest.param(3, 3, marks=pytest.mark.slow), (3, 12)],
)  # the last: two blocks of rows for three processes
def test_any_world_size_gives_the_same_ranks(
    dataset: Dataset, alone: dict, tmp_path: Path, world: int, batch: int
) -> None:
    ranks = run(dataset, world, tmp_path, batch)
    assert len({rank["pid"] for rank in ranks}) == world
    for rank in ranks:
        assert rank["ranks"] == alone["ranks"]
        assert rank["results"] == alone["results"]
    for what in ("encoded", "pictures"):  # nothing twice, nothing left out
        assert sorted(value for rank in ranks for value in rank[what]) == sorted(alone[what])
    assert len(ranks[0]["encoded"]) < len(alone["encoded"]), "the work was not shared"


def test_every_caption_is_counted(alone: dict) -> None:
    captions = [f"de: {text}" for row in range(20) for text in german(row) or []] + [
        f"fr: {row} image" for row in range(20)
    ]
    assert sorted(alone["encoded"]) == sorted(captions)
    counts = alone["results"]["de"]["counts"]
    without = len(german(5) or [])
    assert counts["captions"] + without == sum(len(german(row) or []) for row in range(20))
    assert counts["captions_without_item"] == without and counts["items"] == 19 and counts["items_without_caption"] == 3
    # Item 2 has no caption, but item 19 (same concept) has none either; 11 is alone: three items are no queries.
    assert counts["queries_v2t"] == 16
    # 19 pictures: 17 concepts, less item 5's, items 0 and 7 alone; item 17 keeps concept 0.
    assert counts["groups"] == len({row % 17 for row in range(20) if row not in NO_PICTURE | NO_LABEL}) + len(NO_LABEL)
    assert all(all(rank > 0 for rank in language[0]) for language in alone["ranks"])


def test_examples_are_the_best_items(alone: dict) -> None:
    for result in alone["results"].values():
        assert len(result["examples"]) == 2
        for example in result["examples"]:
            assert len(example["top"]) == 5 and example["item"].startswith("item")
            assert example["english"] == f"{int(example['item'][4:])} picture"
            right = [n for n, hit in enumerate(example["top"], 1) if hit["correct"]]
            assert right[0] == example["rank"] if right else example["rank"] > 5


def test_a_language_without_captions_is_an_error(dataset: Dataset) -> None:
    def never(*_):
        raise AssertionError("nothing is encoded before the columns are checked")

    with pytest.raises(DataError, match=r"(?s)no captions of language 'cs'.*caption\.cs.*toy/test"):
        Encoding(Encoders(never, never), dataset, EvaluatedColumns({"cs": "caption.cs"}, "feature.toy")).run()
    with pytest.raises(DataError, match=r"caption\.ja"):
        Encoding(Encoders(never, never), dataset, EvaluatedColumns({"ja": "caption.ja"}, "feature.toy")).run()


def test_companions_go_along_with_their_captions_and_must_be_aligned(dataset: Dataset) -> None:
    """German has one caption an item less or more than French: not aligned. French beside English is."""
    seen = []

    def texts(captions, lang, companion):
        seen.extend(zip(captions, companion, strict=True))
        return {"global": torch.ones(len(captions), 2), "companion": torch.ones(len(captions), 3)}

    def items(visual, mask, description):
        return {"global": visual[:, :2]}

    def encoded(companion: str) -> Encoded:
        columns = EvaluatedColumns({"fr": "caption.fr"}, "feature.toy", companions={"fr": companion})
        return Encoding(Encoders(texts, items), dataset, columns, batch=3).run()

    found = encoded("caption.en")
    assert found.queries["fr"].bank["companion"].shape == (19, 3) and len(seen) == 20
    assert all(french.split()[0] == english.split()[0] and english.endswith("picture") for french, english in seen)
    with pytest.raises(DataError, match=r"caption\.fr and caption\.de are not aligned"):
        encoded("caption.de")
