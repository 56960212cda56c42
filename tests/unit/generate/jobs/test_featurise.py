"""Featurising with a tiny torch model: pictures give one vector, texts one each; null, broken and overflowing rows."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from PIL import Image  # noqa: E402

from ccr_dist.data.media import text  # noqa: E402
from ccr_dist.data.media.pictures import VERSION  # noqa: E402
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset  # noqa: E402
from ccr_dist.errors import DataBudgetError, DataError  # noqa: E402
from ccr_dist.generate.jobs.featurise import Featurise  # noqa: E402
from ccr_dist.generate.runner import Budget, run  # noqa: E402


class Mean(torch.nn.Module):  # type: ignore[name-defined]
    """Mean colour (3) and [length, first letter] (2): features that a reader can check by head."""

    name = "mean"
    sees = True

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
        return (
            torch.tensor([[float(len(t)), float(ord(t[0])) if t else 0.0] for t in texts])
            * self.scale
            * (1e6 if "huge" in texts else 1)
        )


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(out, "PNG")
    return out.getvalue()


def dataset(root: Path, kind: str, values: list[list[Any]]) -> Dataset:
    made = create_dataset(
        root, name="toy", split="train", keys=[[f"{s}-{i}" for i in range(len(rows))] for s, rows in enumerate(values)]
    )
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


def test_a_picture_that_a_resize_would_need_gigabytes_for_is_a_bad_item(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("1", (1, 60_000)).save(out, "PNG")
    made = dataset(tmp_path, "image", [[picture("red"), out.getvalue()]])
    summary = run(made, Featurise(Mean, "image", device="cpu"), "feature.x", progress=False)
    assert (summary.done, summary.bad) == (1, 1)
    assert (
        "0-1: 1 x 60000 pixels; expected one side at most 200 times the other"
        in (made.root / "feature.x/000000.errors.jsonl").read_text()
    )
    assert made.column("feature.x").plan["pictures"] == VERSION
    with pytest.raises(DataBudgetError, match="0-1: 1 x 60000 pixels"):
        run(made, Featurise(Mean, "image", device="cpu"), "feature.y", budget=Budget(0, 0), progress=False)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_texts_give_one_vector_each(tmp_path: Path, batch: int) -> None:
    made = dataset(tmp_path, "texts", [[["a", "bcd", ""], None, ["zz"]], [["", "\u200b"], None]])
    run(made, Featurise(Mean, "caption.en", precision="bf16"), "feature.x", batch=batch, progress=False)
    column = made.column("feature.x")
    assert column.value(0, 0).tolist() == [[1, 97], [3, 98], [0, 0]]  # vector i belongs to caption i, blank ones too
    assert column.value(0, 1) is None
    assert column.value(0, 2).tolist() == [[2, 122]]
    assert column.matrix(1)[0].shape == (0, 2)  # a shard of nothing still has the width
    assert column.plan["precision"] == "bf16"
    assert column.plan["texts"] == text.VERSION and "pictures" not in column.plan


def test_features_of_before_blank_rows_were_null_are_read_and_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dataset(tmp_path, "texts", [[["a"], ["b"]], [["c"], [""]]])
    plan = Featurise.plan
    with monkeypatch.context() as before:
        before.setattr(
            Featurise, "plan", lambda self: {key: value for key, value in plan(self).items() if key != "texts"}
        )
        run(made, Featurise(Mean, "caption.en"), "feature.x", progress=False)
    column = Dataset(made.root).column("feature.x")
    column.require_complete()
    assert column.value(0, 1).tolist() == [[1, 98]]
    with pytest.raises(
        DataError, match=r"what counts as text was decided by rule 0, it now is by rule 1 .*is not continued"
    ):
        run(made, Featurise(Mean, "caption.en"), "feature.x", progress=False)


def test_vectors_that_float16_cannot_hold_are_bad_items(tmp_path: Path) -> None:
    made = dataset(tmp_path, "texts", [[["huge"], ["a"]]])
    summary = run(made, Featurise(Mean, "caption.en"), "feature.x", batch=1, budget=Budget(1, 0), progress=False)
    assert summary.bad == 1
    assert made.column("feature.x").value(0, 0) is None


@pytest.mark.parametrize(("pool", "shape"), [("mean", (1, 3)), ("none", (4, 3))])
def test_videos(tmp_path: Path, pool: Any, shape: tuple[int, int]) -> None:
    pytest.importorskip("av")
    from tests.generation import video

    made = create_dataset(tmp_path, name="toy", split="train", keys=[["a", "b", "c"]])
    column = create_column(made, "video", kind="video", extension="mp4", plan={}, provenance={})
    column.commit(0, [video(20), None, b"no film"])
    processor = Featurise(Mean, "video", device="cpu", frames=4, pool=pool)
    summary = run(made, processor, processor.default_column(), progress=False)
    assert (summary.column, summary.bad, processor.batch) == ("feature.mean.video", 1, 16)
    features = made.column("feature.mean.video")
    assert features.plan["frames"] == 4 and features.plan["pool"] == pool
    assert features.value(0, 0).shape == shape and features.value(0, 1) is None and features.value(0, 2) is None
    # frames 2, 7, 12, 17 of brightness 20, 70, 120, 170, give or take one
    assert abs(float(features.value(0, 0).mean()) - 97.5) < 8


def test_pictures_are_prepared_in_processes_as_in_threads(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    from open_clip.transform import PreprocessCfg

    from ccr_dist.generate.jobs.featurise import Pixels

    transform = open_clip.transform.image_transform_v2(PreprocessCfg(size=8), is_train=False)
    pixels = Pixels("image", transform, 0)
    there = pickle.loads(pickle.dumps(pixels))("k", {"image": picture("red")})
    assert there.shape == (1, 3, 8, 8) and np.array_equal(there, pixels("k", {"image": picture("red")}))


def test_views_of_descriptions_are_texts(tmp_path: Path) -> None:
    made = create_dataset(tmp_path, name="toy", split="train", keys=[["a", "b"]])
    column = create_column(made, "description.x", kind="views", extension="json", plan={}, provenance={})
    column.commit(
        0,
        [
            column.encode({"views": {"scene": "here", "detail": "a"}}),
            column.encode({"views": {}, "finish": {"detail": "short"}}),
        ],
    )
    run(made, Featurise(Mean, "description.x", device="cpu"), "feature.x", progress=False)
    assert made.column("feature.x").value(0, 0).tolist() == [[1, 97], [4, 104]]  # detail, scene
    assert made.column("feature.x").value(0, 1) is None


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    made = dataset(tmp_path, "texts", [[["a"]]])
    run(made, Featurise(Mean, "caption.en"), "feature.x", progress=False)
    with pytest.raises(
        DataError, match=r"feature\.x: a column of kind matrix; featurise takes image, video, texts, views\."
    ):
        run(made, Featurise(Mean, "feature.x"), "feature.y", progress=False)
