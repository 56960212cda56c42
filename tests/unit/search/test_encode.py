"""What the retriever is given of files and of rows of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.errors import DataError, NonFiniteError
from ccr_dist.search.encode import Prepared, RowVectors, Vectors, read_file
from ccr_dist.search.index import Index, begin
from ccr_dist.search.update import JobSettings
from tests.searching import Colours, encoded, picture, put

TOKENS = "feature.x.image.tokens"


class Reads(Colours):
    """Reads tokens and descriptions; keeps what it was given."""

    reads_descriptions = reads_tokens = True

    def __init__(self) -> None:
        super().__init__("reads")
        self.config.data.visual, self.config.data.description = TOKENS, "description.m"
        self.given: list = []

    def encode_pixels(self, pixels, mask=None, description=(), *, counted=True):
        self.given.append((np.array(pixels), mask, list(description)))
        rows = np.zeros((len(pixels), self.visual_width), np.float32)
        rows[:, 0], rows[:, 1] = pixels.reshape(len(pixels), -1)[:, 0], 1
        return rows


def test_tokens_are_padded_and_descriptions_joined(tmp_path: Path) -> None:
    data = create_dataset(tmp_path / "d", name="d", split="test", keys=[["a", "b", "c"]])
    tokens = create_column(data, TOKENS, kind="matrix", extension="npy", plan={}, provenance={})
    said = create_column(data, "description.m", kind="views", extension="json", plan={}, provenance={})
    vectors = np.arange(8, dtype=np.float16).reshape(4, 2)
    tokens.commit_matrix(0, vectors, [3, 0, 1])
    said.commit(0, [said.encode({"views": {"b": "two", "a": "one", "c": " "}}), None, None])
    retriever = Reads()
    index = Index.build(tmp_path / "i", retriever, tmp_path / "d", progress=False)
    ((given, mask, description),) = retriever.given
    assert given.dtype == np.float32 and given.shape == (2, 3, 2)
    assert np.array_equal(given[0], vectors[:3]) and np.array_equal(given[1], [vectors[3], [0, 0], [0, 0]])
    assert mask.tolist() == [[True, True, True], [True, False, False]] and description == ["one two", ""]
    assert [index.named(int(n)).key for n in index.numbers()] == ["a", "c"]
    with pytest.raises(DataError, match="has no picture or video there, only features"):
        index.picture(0)


def test_it_is_said_that_files_have_no_descriptions(tmp_path: Path) -> None:
    put(tmp_path / "p" / "a.png", encoded(picture("red")))
    index, retriever = begin(tmp_path / "i", Reads()), Reads()
    done = index.update(retriever, [str(tmp_path / "p")], settings=JobSettings(progress=False))
    assert done.notes == ["reads reads a description of each picture; files have none, so they are encoded without"]
    assert retriever.given[-1][2] == [""]


def test_features_of_another_column_are_refused(tmp_path: Path) -> None:
    data = create_dataset(tmp_path / "d", name="d", split="test", keys=[["a"]])
    create_column(data, "feature.y", kind="matrix", extension="npy", plan={}, provenance={}).commit_matrix(
        0, np.ones((1, 2))
    )
    from ccr_dist.search.sources import sources_of

    with pytest.raises(DataError, match=r"feature\.y: the model reads image; features of another column"):
        sources_of([str(tmp_path / "d")], tmp_path, Colours(), column="feature.y")
    with pytest.raises(DataError, match="no column 'image'"):
        sources_of([str(tmp_path / "d")], tmp_path, Colours())


def test_a_model_of_one_vector_refuses_several() -> None:
    processor = Vectors(Colours(), frames=8)
    with pytest.raises(DataError, match="2 vectors; the model reads one an item"):
        processor.process([Prepared(np.ones((2, 48), np.float32))])


def test_a_picture_whose_row_is_not_finite_is_a_bad_item() -> None:
    class Overflows(Colours):
        def encode_pixels(self, pixels, *rest, **more):
            if pixels.max() > 5:
                raise NonFiniteError("the row of item 0 is not finite")
            return super().encode_pixels(pixels, *rest, **more)

    processor = Vectors(Overflows(), frames=8)
    items = [Prepared(np.full((3, 4, 4), value, np.float32)) for value in (1, 9, 2)]
    outcomes = processor._processed(items, worked=False)
    assert [outcome.error for outcome in outcomes] == [None, "the row of item 0 is not finite", None]
    assert outcomes[0].value.shape == (1, 48) and outcomes[0].value.dtype == np.float32


def test_a_column_of_texts_is_no_column_of_pictures(tmp_path: Path) -> None:
    data = create_dataset(tmp_path / "d", name="d", split="test", keys=[["a"]])
    create_column(data, "caption.en", kind="texts", extension="json", plan={}, provenance={}).commit(0, [b'["x"]'])
    with pytest.raises(DataError, match=r"caption\.en: a texts column; pictures, videos or features are indexed"):
        RowVectors(Colours(), 8, "caption.en", None).check(data)


def test_failing_storage_ends_the_job_and_a_missing_file_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"not as it was listed: .*a\.png: No such file"):
        read_file(str(tmp_path / "a.png"))

    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    (tmp_path / "a.png").write_bytes(encoded(picture("red")))
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_file(str(tmp_path / "a.png"))


def test_a_film_is_prepared_small_and_keeps_its_description(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from tests.generation import video

    data = create_dataset(tmp_path / "d", name="d", split="test", keys=[["a"]])
    create_column(data, "video", kind="video", extension="mp4", plan={}, provenance={}).commit(0, [video(12)])
    said = create_column(data, "description.m", kind="texts", extension="json", plan={}, provenance={})
    said.commit(0, [said.encode(["a grey film"])])
    processor = RowVectors(retriever := Reads(), 4, "video", "description.m")
    processor.check(data)
    item = processor.preparer()("a", {name: data.column(name).value(0, 0) for name in processor.inputs})
    assert item.value.shape == (4, 3, 4, 4) and item.description == "a grey film"
    processor.process([item])
    assert retriever.given[0][2] == ["a grey film"]
