"""What a retriever gives: rows, scores as evaluation has them, languages, and errors that name the input."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ccr_dist
from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError, NonFiniteError
from ccr_dist.methods.run_config import load_config
from ccr_dist.retriever.language import detect, detect_any
from ccr_dist.retriever.load import load_model
from ccr_dist.train import commands
from tests import exporting, generation, query_side, retrievers, tiny, toy


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory):
    return retrievers.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory):
    return retrievers.hybrid(tmp_path_factory.mktemp("hybrid"))


def trained(path: Path):
    config = load_config(path)
    assert commands.train([config], test=True, world=None) == 0
    return config


def leccr(folder: Path) -> Path:
    """A run whose score has two parts, min-max normalised, and whose weights validation chooses."""
    encoder = tiny.tiny_frontend_folder(folder / "encoder", toy.ALL_TEXTS)
    method = {"name": "leccr", "text_encoder": encoder, "dim": 8, "heads": 2, "alpha": "validation", "minmax": True}
    stage = {"train": {"steps": 2, "batch": 10, "lr": 1e-3}}
    data = {"description": "caption.en.toy", "group": None}
    return toy.config(folder, method, stage, data=data)


@pytest.mark.parametrize("make", [toy.dasd, leccr])
def test_scores_rank_as_evaluation_does(make, tmp_path: Path) -> None:
    config = trained(make(tmp_path))
    retriever = ccr_dist.load(config.folder)
    test = Dataset.open(config.data.test)
    places = [(shard, row) for shard, count in enumerate(test.shard_rows) for row in range(count)]

    def column(name: str) -> list:
        return [test.column(name).value(*place) for place in places]

    pixels = torch.stack([retriever.image_transform()(decode_image(data)) for data in column("image")])
    visual = retriever.encode_pixels(pixels, description=[texts[0] for texts in column("caption.en.toy")])
    scores = retriever.similarity(retriever.encode_text([texts[0] for texts in column("caption.es")], "es"), visual)
    kept = np.load(config.folder / "results/test.ranks.npz")
    label = np.array(column("label.concept") if config.data.group else range(len(places)))
    right = label[:, None] == label
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    found = 1 + ((scores >= best) & ~right).sum(1)
    # min-max by the ranges of validation is another scale than by those of the test: nearly the same order
    same = (found == kept["es/t2v"]).mean()
    assert same == 1.0 if make is toy.dasd else same > 0.6
    assert retriever.cosine == (make is toy.dasd)
    if make is leccr:
        assert set(retriever.fusion.ranges) == {name for name, weight in retriever.fusion.weights.items() if weight}


def test_a_score_does_not_depend_on_the_others(hybrid) -> None:
    text = hybrid.encode_text(toy.ENGLISH[:3], "en")
    visual = hybrid.encode_images([Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")])
    whole = hybrid.similarity(text, visual)
    alone = [[hybrid.similarity(text[i : i + 1], visual[j : j + 1])[0, 0] for j in range(3)] for i in range(3)]
    assert np.allclose(whole, alone, rtol=0, atol=1e-6)
    assert hybrid.similarity(text[:0], visual).shape == (0, 3)


def test_cosine_rows_have_unit_length_and_scores_are_dot_products(clip) -> None:
    text = clip.encode_text(toy.ENGLISH[:3], "en")
    visual = clip.encode_images([Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")])
    assert text.dtype == visual.dtype == np.float32
    assert np.allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)
    assert np.allclose(clip.similarity(text, visual), text @ visual.T, atol=1e-6)
    assert np.allclose(np.diag(clip.visual_similarity(visual, visual)), 1, atol=1e-6)


def test_a_picture_gives_the_same_row_as_path_object_and_array(clip, tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(toy.picture(3))
    with Image.open(path) as image:
        rows = clip.encode_images([path, str(path), image, np.asarray(image.convert("RGB"))])
    assert all(np.array_equal(rows[0], row) for row in rows)
    assert clip.encode_images([]).shape == (0, clip.visual_width)
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert np.array_equal(*clip.encode_images([clear, Image.new("RGB", (32, 32), "white")]))


def test_the_batch_changes_nothing_but_the_last_bits(clip) -> None:
    texts = [*toy.ENGLISH[:7]]
    assert np.allclose(clip.encode_text(texts, "en"), clip.encode_text(texts, "en", batch=2), atol=1e-6)


def test_videos_are_the_mean_of_their_frames_or_all_of_them(clip, hybrid, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(generation.video())
    assert clip.encode_videos([path], frames=3).shape == (1, clip.visual_width)
    one = Image.new("RGB", (64, 48), "gray")
    assert np.allclose(clip.encode_frames([one, one, one]), clip.encode_images([one])[0], atol=1e-6)
    assert hybrid.encode_videos([path], frames=3).shape == (1, hybrid.visual_width)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_broken_picture_or_video_is_named(content: bytes, clip, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    for encode in (clip.encode_images, clip.encode_videos):
        with pytest.raises(DataError, match=r"broken\.jpg"):
            encode([path])
        with pytest.raises(DataError, match=r"nothing\.jpg.*cannot be read"):
            encode([tmp_path / "nothing.jpg"])
    with pytest.raises(DataError, match="uint8"):
        clip.encode_images([np.zeros((4, 4))])


def test_languages(hybrid) -> None:
    assert hybrid.languages == ("en", "es")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = hybrid.encode_text(toy.SPANISH[:2], "es-MX")
    assert np.array_equal(rows, hybrid.encode_text(toy.SPANISH[:2], "es"))
    with pytest.warns(UserWarning, match="not trained for language 'de'"), pytest.raises(ConfigError, match="'de'"):
        hybrid.encode_text(["ein roter Fleck"], "de")


def test_a_language_that_the_method_can_encode_is_a_warning(clip) -> None:
    with pytest.warns(UserWarning, match="not trained for language 'pt'"):
        assert clip.encode_text(["um barco pequeno"], "pt").shape == (1, clip.text_width)


def test_languages_are_detected_for_each_text(hybrid) -> None:
    texts = ["el perro juega con la pelota en el jardín", "the dog plays with a ball in the garden of the house"]
    assert [hybrid.detect(text) for text in texts] == [("es", True), ("en", True)]
    rows = hybrid.encode_text(texts)
    assert np.allclose(rows[:1], hybrid.encode_text(texts[:1], "es"), atol=1e-6)
    assert np.allclose(rows[1:], hybrid.encode_text(texts[1:], "en"), atol=1e-6)
    assert not hybrid.detect("x").sure


def test_detection_knows_regions_and_unknown_languages() -> None:
    assert detect("um limão amarelo na mesa da cozinha", ("en", "pt-BR")).lang == "pt-BR"
    assert detect("anything at all", ("to",)) == ("to", True), "not known to the identifier"
    assert detect("the dog plays with a ball in the garden", ("en",)) == ("en", True)
    assert detect("coração vermelho", ("en",)) == ("en", False), "clearly another one"
    assert detect("anything", ("to", "en")) == ("to", False), "one of them is not known to the identifier"


def test_a_query_in_a_language_that_was_not_trained_is_not_taken_for_english() -> None:
    """For models that encode any language: English alone goes through the English tower."""
    for among in (("en",), ("en", "es", "pt-BR")):
        for text, lang in (("ein rotes Fahrrad im Schnee", "de"), ("красная машина", "ru"), ("roter Ball", "de")):
            assert detect(text, among).lang == "en" and detect_any(text, among).lang == lang
        assert detect_any("two dogs playing in the snow", among) == ("en", True)
        assert not detect_any("roter Ball", among).sure
    assert detect_any("um limão amarelo", ("en", "pt-BR")) == ("pt-BR", True)
    assert detect_any("un limón amarillo", ("en", "es", "pt")) == ("es", True), "alone, Galician is likelier"


def test_a_method_with_a_query_encoder_takes_any_language(tmp_path: Path) -> None:
    asked = retrievers.retriever(query_side.config(tmp_path))
    german = "ein rotes Fahrrad im Schnee"
    assert asked.languages == ("en", "es") and asked.detect(german) == ("de", True)
    assert np.allclose(asked.encode_text([german]), asked.encode_text([german], "es"), atol=1e-6)
    assert not np.allclose(asked.encode_text([german]), asked.encode_text([german], "en"), atol=1e-2)


def test_a_language_that_was_not_trained_is_no_warning_where_any_can_be_asked(tmp_path: Path) -> None:
    model = exporting.loaded(exporting.model(tmp_path, "map", "clip"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.encode_text(["ein rotes Fahrrad im Schnee"], "de").shape == (1, model.text_width)
    with pytest.raises(ConfigError, match="BCP 47 tag"):
        model.encode_text(["ein rotes Fahrrad"], "?!")


def test_bad_input(clip) -> None:
    for blank in ("", "  ", "\u200b"):
        with pytest.raises(DataError, match="text 1 is blank"):
            clip.encode_text(["a dog", blank], "en")
    with pytest.raises(TypeError, match="list of texts"):
        clip.encode_text("a dog", "en")
    with pytest.raises(DataError, match="rows of shape"):
        clip.similarity(np.zeros((1, 3), np.float32), np.zeros((1, clip.visual_width), np.float32))
    for shape in ((0, 3, 32, 32), (1, 4, 32, 32), (1, 1, 1, 1, 1), (3,)):
        with pytest.raises(DataError, match="items of shape"):
            clip.encode_pixels(np.zeros(shape, np.float32))
    with pytest.raises(DataError, match="a mask of shape"):
        clip.encode_pixels(np.zeros((2, 3, 4), np.float32), np.ones((2, 4), bool))
    with pytest.raises(DataError, match="3 descriptions for 1 items"):
        clip.encode_pixels(np.zeros((1, 3, 32, 32), np.float32), description=["a", "b", "c"])
    with pytest.raises(NonFiniteError, match="item 0 is not finite"):
        clip.encode_pixels(np.full((1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), np.nan, np.float32))


def test_queries_typed_with_separate_marks_are_the_same(clip) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert np.array_equal(clip.encode_text([composed], "en"), clip.encode_text([apart], "en"))


def test_a_picture_in_memory_is_seen_as_its_file_is(clip, tmp_path: Path) -> None:
    turned, grey = tmp_path / "turned.jpg", tmp_path / "grey.png"
    exif = Image.Exif()
    exif[274] = 6
    half = np.zeros((32, 32, 3), np.uint8)
    half[:16] = (250, 10, 10)
    Image.fromarray(half).save(turned, exif=exif)
    Image.fromarray(np.arange(0, 65536, 64, np.uint16).reshape(32, 32)).save(grey)
    for path in (turned, grey):
        assert np.array_equal(clip.encode_images([path]), clip.encode_images([Image.open(path)]))


@pytest.mark.parametrize(("ask", "error", "message"), [
    (lambda model: model.encode_text(["red"], batch=-1), ConfigError, "batch -1: expected a whole number, at least 1"),
    (lambda model: model.encode_images([], batch=0), ConfigError, "batch 0"),
    (lambda model: model.encode_images("a.png"), TypeError, "images: expected a list of images, not one str"),
    (lambda model: model.encode_videos(Path("a.mp4")), TypeError, "paths: expected a list of paths, not one"),
    (lambda model: model.encode_images([None]), TypeError, "picture 0: expected a path, a PIL picture or a uint8"),
    (lambda model: model.encode_images(["a\0.png"]), DataError, "cannot be read"),
    (lambda model: model.encode_images([np.zeros((0, 4, 3), np.uint8)]), DataError, "picture 0: 4 x 0 pixels"),
])  # fmt: skip
def test_what_is_no_list_of_inputs_is_refused(clip, ask, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ask(clip)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_here_is_named_before_anything_is_loaded(device: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
        load_model(tmp_path, device=device)
