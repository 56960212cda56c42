"""Featurising with a tiny torch model: pictures give one vector, texts one each; null, broken and overflowing rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from PIL import Image  # noqa: E402

from ccr_dist.data.table import Dataset, create_column, create_dataset  # noqa: E402
from ccr_dist.errors import DataError  # noqa: E402
from ccr_dist.generate.featurise import Featurise  # noqa: E402
from ccr_dist.generate.runner import Budget, run  # noqa: E402


class Mean(torch.nn.Module):
    """Mean colour (3) and [length, first letter] (2): features that a reader can check by head."""

    name = "mean"

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    device = property(lambda self: self.scale.device)

    def feature_identity(self, side: str) -> dict[str, Any]:
        return {"name": self.name, "side": side}

    def image_transform(self) -> Any:
        return lambda image: torch.from_numpy(np.asarray(image.resize((2, 2)), np.float32)).permute(2, 0, 1)

    def image_features(self, pixels: Any) -> Any:
        return pixels.mean((2, 3)) * self.scale

    def text_features(self, texts: list[str]) -> Any:
        return torch.tensor([[float(len(t)), float(ord(t[0])) if t else 0.0] for t in texts]) * self.scale * (1e6 if "huge" in texts else 1)


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(out, "PNG")
    return out.getvalue()


def dataset(root: Path, kind: str, values: list[list[Any]]) -> Dataset:
    made = create_dataset(root, name="toy", split="train", keys=[[f"{s}-{i}" for i in range(len(rows))] for s, rows in enumerate(values)])
    name, extension = ("image", "png") if kind == "image" else ("caption.en", "json")
    column = create_column(made, name, kind=kind, extension=extension, plan={}, provenance={})
    for shard, rows in enumerate(values):
        column.commit(shard, [None if value is None else column.encode(value) for value in rows])
    return made


def test_pictures(tmp_path: Path) -> None:
    made = dataset(tmp_path, "image", [[picture("red"), None, b"no picture"], [picture("lime")]])
    built = []
    processor = Featurise(lambda: built.append(1) or Mean(), "image", device="cpu")
    name = processor.default_column()
    summary = run(made, processor, name, progress=False)
    assert (name, summary.done, summary.bad, built) == ("feature.mean.image", 2, 1, [1])
    column = made.column(name)
    assert column.plan["backbone"] == {"name": "mean", "side": "image"}
    assert column.value(0, 0).tolist() == [[255, 0, 0]]
    assert column.value(0, 1) is None and column.value(0, 2) is None
    assert column.value(1, 0).dtype == np.float16
    assert "0-2: broken picture of 10 bytes" in (column.folder / "000000.errors.jsonl").read_text()


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_texts_give_one_vector_each(tmp_path: Path, batch: int) -> None:
    made = dataset(tmp_path, "texts", [[["a", "bcd", ""], None, ["zz"]], [[], None]])
    run(made, Featurise(Mean, "caption.en", precision="bf16"), "feature.x", batch=batch, progress=False)
    column = made.column("feature.x")
    assert column.value(0, 0).tolist() == [[1, 97], [3, 98], [0, 0]]  # vector i belongs to caption i, blank ones too
    assert column.value(0, 1) is None
    assert column.value(0, 2).tolist() == [[2, 122]]
    assert column.matrix(1)[0].shape == (0, 2)  # a shard of nothing still has the width
    assert column.plan["precision"] == "bf16"


def test_vectors_that_float16_cannot_hold_are_bad_items(tmp_path: Path) -> None:
    made = dataset(tmp_path, "texts", [[["huge"], ["a"]]])
    summary = run(made, Featurise(Mean, "caption.en"), "feature.x", batch=1, budget=Budget(1, 0), progress=False)
    assert summary.bad == 1
    assert made.column("feature.x").value(0, 0) is None


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    made = dataset(tmp_path, "texts", [[["a"]]])
    run(made, Featurise(Mean, "caption.en"), "feature.x", progress=False)
    with pytest.raises(DataError, match=r"feature\.x: a matrix column; featurise takes image or texts"):
        run(made, Featurise(Mean, "feature.x"), "feature.y", progress=False)
