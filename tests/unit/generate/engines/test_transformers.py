"""The engine `transformers`: Hugging Face models with random weights translate as the library does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines.base import make_translator
from tests.tiny import TEXTS
from tests.translators import loaded

pytestmark = pytest.mark.long


def unprompted(folder: Path, **options: Any) -> Any:
    """From English to Spanish, by a T5 that is told no direction."""
    return loaded(folder, "es", **{"prefix": "", **options})


def test_transformers_generates_as_the_library_does(t5: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(t5), AutoModelForSeq2SeqLM.from_pretrained(t5)
    expected = []
    for text in TEXTS:
        output = model.generate(
            **tokenizer(f"say: {text}", return_tensors="pt"), max_new_tokens=8, num_beams=2, do_sample=False
        )
        expected.append(tokenizer.decode(output[0], skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    for texts in (1, 3, 32):  # texts a batch: order is restored, padding is masked
        assert unprompted(t5, beams=2, prefix="say: ", texts=texts).translate(list(TEXTS)) == expected
    assert unprompted(t5, beams=2).translate(list(TEXTS)) != expected
    assert len(unprompted(t5, dtype="bfloat16").translate(list(TEXTS))) == len(TEXTS)


def test_transformers_text_too_long_is_an_item_error(t5: Path) -> None:
    answers = unprompted(t5).translate(["a lemon", "lemon dogs " * 60, "two dogs"])
    assert isinstance(answers[1], DataError) and "takes 64" in str(answers[1])
    assert isinstance(answers[0], str) and isinstance(answers[2], str)


def test_transformers_identity_follows_weights_and_options(t5: Path, tmp_path: Path) -> None:
    copy = tmp_path / t5.name
    shutil.copytree(t5, copy)
    # where it lies and how it is batched is no part of it
    assert unprompted(copy).identity() == unprompted(t5, texts=3).identity()
    assert unprompted(t5, beams=2).identity() != unprompted(t5).identity()
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert unprompted(copy).identity() != unprompted(t5).identity()
    assert json.dumps(unprompted(t5).identity())
    with pytest.raises(
        EngineError, match="'no/such-model' is neither a local folder nor a Hugging Face id that can be found"
    ):
        make_translator("transformers", "en", "es", {"model": "no/such-model"}).identity()


def test_a_translation_that_ends_at_the_limit_says_so(t5: Path) -> None:
    engine = unprompted(t5)
    ends, limit = next(iter(engine._ends)), 8
    assert type(engine._text([1] + [9] * limit)).__name__ == "Cut"
    assert type(engine._text([1] + [9] * 5 + [ends] * 3)) is str and type(engine._text([1] + [9] * 5)) is str
