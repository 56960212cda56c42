"""Datasets, tars and videos as sources; what an index refuses; items, pictures, labels."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccr_dist.errors import ConfigError, DataError
from ccr_dist.search.index import Index, begin
from ccr_dist.search.update import JobSettings
from tests.generation import video
from tests.searching import NAMES, Colours, dataset, encoded, half, picture, put

QUIET = JobSettings(progress=False)


def ask(index: Index, retriever: Colours, query: str, k: int = 1, **more) -> list[str]:
    numbers, _ = index.search(retriever.encode_text([query]), k, **more)
    return [index.named(number).name for number in numbers[0].tolist()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index, Colours]:
    folder, retriever = tmp_path_factory.mktemp("dataset"), Colours()
    dataset(folder / "d")
    return folder, Index.build(folder / "i", retriever, folder / "d", progress=False), retriever


def test_a_dataset_is_searched_with_its_keys_captions_and_labels(built: tuple[Path, Index, Colours]) -> None:
    folder, index, retriever = built
    assert index.items == len(NAMES) - 1
    assert ask(index, retriever, "verde") == ["green"]
    number = int(index.search(retriever.encode_text(["blue"]), 1)[0][0, 0])
    item = index.item(number)
    assert (item.key, item.kind, item.path) == ("blue", "image", str(folder / "d"))
    assert item.captions == {"pt": ["cor blue"]} and item.labels == {"tone": "dark"}
    assert index.picture(number) == encoded(picture("blue"))
    assert np.array_equal(index.rows([number]), retriever.encode_text(["blue"]))


def test_where_keeps_items_with_a_label(built: tuple[Path, Index, Colours]) -> None:
    _, index, retriever = built
    assert set(ask(index, retriever, "red", 9, where={"tone": "dark"})) == {"black", "blue"}
    with pytest.raises(DataError, match=r"no item has tone='loud'; there are: 'bright', 'dark'"):
        ask(index, retriever, "red", where={"tone": "loud"})
    with pytest.raises(DataError, match="no label 'mood'; files have the label folder"):
        ask(index, retriever, "red", where={"mood": "dark"})


def test_a_dataset_is_indexed_once_and_anew_when_it_is_another(tmp_path: Path) -> None:
    retriever = Colours()
    dataset(tmp_path / "d", NAMES[:4])
    index = Index.build(tmp_path / "i", retriever, tmp_path / "d", progress=False)
    assert index.update(retriever, [str(tmp_path / "d")], settings=QUIET).encoded == 0
    (tmp_path / "d").rename(tmp_path / "old")
    dataset(tmp_path / "d", NAMES[:6])
    done = index.update(retriever, [str(tmp_path / "d")], settings=QUIET)
    assert (done.new, done.changed, done.removed, index.items) == (3, 3, 0, 5)  # a row without a picture is no item
    assert ask(index, retriever, "white", 5)[0] == "white"


def test_tars_made_elsewhere_are_indexed_without_a_copy(tmp_path: Path) -> None:
    retriever, place = Colours(), tmp_path / "tars"
    place.mkdir()
    for number, some in enumerate((NAMES[:2], NAMES[2:4])):
        with tarfile.open(place / f"{number:05d}.tar", "w") as tar:
            for colour in some:
                for name, data in ((f"{colour}.png", encoded(picture(colour))), (f"{colour}.txt", b"a colour")):
                    about = tarfile.TarInfo(name)
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
    index = Index.build(tmp_path / "i", retriever, str(place / "*.tar"), progress=False)
    assert index.items == 4 and ask(index, retriever, "yellow") == ["yellow"]
    assert index.update(retriever, [str(place / "*.tar")], settings=QUIET).encoded == 0
    with pytest.raises(DataError, match=r"no pictures or videos; tars are named one by one or by a pattern"):
        Index.build(tmp_path / "j", retriever, place, progress=False)


def test_videos_are_found_by_their_frames(tmp_path: Path) -> None:
    pytest.importorskip("av")
    retriever = Colours()
    put(tmp_path / "p" / "film.MP4", video(12))
    put(tmp_path / "p" / "cut off.mp4", video(12)[:900])
    put(tmp_path / "p" / "red.png", encoded(picture("red")))
    index = begin(tmp_path / "i", retriever, frames=4)
    done = index.update(retriever, [str(tmp_path / "p")], settings=QUIET)
    assert {Path(path).name for path in done.bad} == {"cut off.mp4"}
    kinds = {index.item(int(number)).name: index.item(int(number)).kind for number in index.numbers()}
    assert kinds == {"film.MP4": "video", "red.png": "image"}
    with pytest.raises(ConfigError, match="an index with frames 4, and not 8"):
        Index.build(tmp_path / "i", retriever, tmp_path / "p", frames=8, progress=False)


def test_an_index_of_another_model_or_type_is_refused(built: tuple[Path, Index, Colours]) -> None:
    folder, index, _ = built
    with pytest.raises(ConfigError, match=r"an index of the model colours \(.*not of colours \(.*two models cannot"):
        Index.build(folder / "i", Colours(seed="other"), folder / "d", progress=False)
    with pytest.raises(ConfigError, match="an index with dtype float32, and not int8: leave the option out"):
        Index.build(folder / "i", Colours(), folder / "d", dtype="int8", progress=False)
    with pytest.raises(ConfigError, match="not an index, and not empty"):
        Index.build(folder / "d", Colours(), folder / "d", progress=False)
    assert Index.open(index.path).items == index.items, "nothing was lost"


def test_fewer_bytes_give_the_same_answers(tmp_path: Path) -> None:
    dice, retriever = np.random.default_rng(0), Colours()
    for number in range(50):
        put(tmp_path / "p" / f"{number}.png", encoded(Image.fromarray(dice.integers(0, 255, (4, 4, 3), np.uint8))))
    queries = retriever.encode_pixels(dice.standard_normal((30, 3, 4, 4)).astype(np.float32))
    answers = []
    for dtype in ("float32", "float16", "int8"):
        index = Index.build(tmp_path / dtype, retriever, tmp_path / "p", dtype=dtype, progress=False)
        put(tmp_path / "p" / "copy.png", (tmp_path / "p" / "3.png").read_bytes())
        index.update(retriever, [str(tmp_path / "p")], settings=QUIET)  # a segment of which nothing is encoded
        (tmp_path / "p" / "copy.png").unlink()
        answers.append(index.search(queries, 7))
    assert index.items == 50 and {path.name for path in (tmp_path / "int8").rglob("search/*")} == {
        "search.json", "values.npy", "errors.npy", "scales.npy"
    }  # fmt: skip
    exact = np.sort(queries.astype(np.float64) @ index.rows(index.numbers()).astype(np.float64).T)[:, ::-1][:, :7]
    assert np.allclose(answers[0][1], exact, atol=1e-6)
    for numbers, scores in answers[1:]:
        assert np.array_equal(numbers, answers[0][0]) and np.array_equal(scores, answers[0][1])
    for broken in ("values", "search"):
        path = next((tmp_path / "int8").rglob(f"search/{broken}.*"))
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DataError, match=r"search.*damaged"):
            Index.open(tmp_path / "int8")
        shutil.rmtree(path.parent)
        index = Index.build(tmp_path / "int8", retriever, tmp_path / "p", progress=False)
        assert np.array_equal(index.search(queries, 7)[1], answers[0][1])


def test_other_pictures_are_added_or_take_the_place(tmp_path: Path) -> None:
    retriever = Colours()
    put(tmp_path / "a" / "red.png", encoded(picture("red")))
    put(tmp_path / "b" / "blue.png", encoded(picture("blue")))
    index = Index.build(tmp_path / "i", retriever, tmp_path / "a", progress=False)
    with pytest.raises(ConfigError, match=r"an index of .*/a, and not of .*/b\. With --add .* --instead"):
        index.update(retriever, [str(tmp_path / "b")], settings=QUIET)
    assert index.add(tmp_path / "b", retriever, progress=False).encoded == 1
    assert index.items == 2 and ask(index, retriever, "red") == ["red.png"]
    (tmp_path / "a").rename(tmp_path / "c")  # the folder was moved: nothing of it is encoded again
    words = [str(tmp_path / "b"), str(tmp_path / "c")]
    done = index.update(retriever, words, others="drop", settings=QUIET)
    assert done.encoded == 0 and index.items == 2
    assert index.picture(int(index.search(retriever.encode_text(["red"]), 1)[0][0, 0])) == encoded(picture("red"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "no pictures or videos$"),
        (lambda root: put(root / "a.txt", b"x"), "no pictures or videos; files that are neither: 1\n.*a.txt: neither"),
        (lambda root: put(root / "a.jpg", b"x"), r"none of 1 pictures can be read\. The first ones:\n.*a\.jpg: broken"),
        (lambda root: put(root, b"x"), "a file; name the folder that holds the pictures"),
    ],
)
def test_where_there_are_no_pictures_it_is_an_error(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "p")
    with pytest.raises((ConfigError, DataError), match=message):
        Index.build(tmp_path / "i", Colours(), tmp_path / "p", progress=False)


def test_a_picture_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    retriever = Colours()
    path = put(tmp_path / "p" / "red.png", encoded(picture("red")))
    secret = put(tmp_path / "secret.png", encoded(half("red")))
    index = Index.build(tmp_path / "i", retriever, tmp_path / "p", progress=False)
    path.unlink()
    with pytest.raises(DataError, match=r"red\.png: cannot be read \(No such file"):
        index.picture(0)
    path.symlink_to(secret)
    with pytest.raises(DataError, match="leads out of the folder"):
        index.picture(0)


def test_who_has_opened_an_index_goes_on_while_it_is_updated(tmp_path: Path) -> None:
    retriever = Colours()
    put(tmp_path / "p" / "red.png", encoded(picture("red")))
    writer = Index.build(tmp_path / "i", retriever, tmp_path / "p", progress=False)
    reader = Index.open(tmp_path / "i")
    (tmp_path / "p" / "red.png").rename(tmp_path / "p" / "rot.png")
    put(tmp_path / "p" / "blue.png", encoded(picture("blue")))
    writer.update(retriever, [str(tmp_path / "p")], settings=QUIET)
    assert ask(reader, retriever, "blue") == ["red.png"] and reader.item(0).name == "red.png"
    reader.reload()
    assert ask(reader, retriever, "blue") == ["blue.png"] and reader.item(0).name == "rot.png"


def test_damage_is_said(tmp_path: Path) -> None:
    put(tmp_path / "p" / "red.png", encoded(picture("red")))
    index = Index.build(tmp_path / "i", Colours(), tmp_path / "p", progress=False)
    with pytest.raises(DataError, match=r"not an index \(no index.json\)"):
        Index.open(tmp_path / "p")
    names = next((tmp_path / "i" / "names").glob("*.jsonl"))
    names.write_bytes(names.read_bytes().replace(b"red", b"rot"))
    with pytest.raises(DataError, match="damaged: it is not the recorded file"):
        index.update(Colours(), [str(tmp_path / "p")], settings=QUIET)
    state = next((tmp_path / "i" / "states").glob("*.json"))
    state.write_text(state.read_text().replace('"items": 1', '"items": 2'))
    with pytest.raises(DataError, match="does not match its digest"):
        Index.open(tmp_path / "i")


def test_a_segment_that_is_gone_is_said(tmp_path: Path) -> None:
    put(tmp_path / "p" / "red.png", encoded(picture("red")))
    Index.build(tmp_path / "i", Colours(), tmp_path / "p", progress=False)
    shutil.rmtree(tmp_path / "i" / "segments")
    with pytest.raises(DataError, match="segments/000000: a part of the index is gone; bring it back from a copy"):
        Index.open(tmp_path / "i")
