"""What counts as text, and that values which do not are bad items wherever they are read."""

from __future__ import annotations

import json

import pytest

from ccr_dist.data.media.decode import decode, encode, is_present
from ccr_dist.data.media.text import has_text, texts_of, with_text
from ccr_dist.errors import DataError

BLANK = [
    "",
    " ",
    "\t\r\n",
    "\u00a0\u3000\u2028",
    "\u200b\u200d",
    "\ufeff",
    "\u2060\u00ad",
    "\x00\x1f\x85",
    "\u3164",
    "\u2800",
    "\ufe0f",
]
SAID = ["a", " a ", "\ufeffa", "é", "م", "🙂", "👩\u200d🚀", "?", "\u200bक\u200d", "0", "\ufffd"]


@pytest.mark.parametrize("text", BLANK)
def test_blank_in_any_alphabet_is_no_text(text):
    assert not has_text(text)
    assert (
        not is_present("texts", [text])
        and not is_present("views", {"views": {"a": text}})
        and not is_present("label", text)
    )


@pytest.mark.parametrize("text", SAID)
def test_one_visible_character_is_a_text(text):
    assert has_text(text)
    assert (
        is_present("texts", ["", text])
        and is_present("views", {"views": {"a": " ", "b": text}})
        and is_present("label", text)
    )


@pytest.mark.parametrize("value", [None, 3, float("nan"), ["a"], b"a", "half of a pair \ud83d"])
def test_what_is_no_string_of_valid_unicode_is_no_text(value):
    assert not has_text(value)


def test_texts_keep_their_places_and_pairs_need_both():
    assert (
        texts_of(None) == []
        and texts_of(["a", ""]) == ["a", ""]
        and texts_of({"views": {"z": "last", "b": ""}}) == ["", "last"]
    )
    assert with_text(["a", "", "b"]) == [0, 2]
    assert with_text(["a", "b", "c"], ["x", "", " "]) == [0]
    assert with_text(["a", ""], ["", "y"]) == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [("texts", ["fine", "half \ud800"]), ("views", {"views": {"a": "\ud83d"}}), ("views", {"views": {"\ud83d": "a"}})],
)
def test_reading_is_as_strict_as_writing(kind, value):
    with pytest.raises(DataError, match=r"row 7.*Unicode"):
        encode(kind, value, "row 7")
    with pytest.raises(DataError, match=r"row 7.*Unicode"):
        decode(kind, json.dumps(value).encode(), "row 7")  # JSON can write it


def test_a_whole_pair_and_other_escapes_are_read():
    assert decode("texts", b'["\\ud83d\\ude42 \\u00e9 \\\\ud800"]') == ["🙂 é \\ud800"]
    assert decode("texts", b'{"a": "ok", "b": "\\ud800"}', field="a") == ["ok"]


@pytest.mark.parametrize(
    "data", [b'["a", 3]', b'["a", NaN]', b"[null]", b'"a"', b"NaN", b"[" * 100_000, b'["caf\xe9"]', b'{"a": 1']
)
def test_other_values_are_bad_items_with_a_name(data):
    with pytest.raises(DataError, match="row 7"):
        decode("texts", data, "row 7")


def test_a_byte_order_mark_is_no_part_of_a_text():
    assert decode("texts", b"\xef\xbb\xbfa dog \r\n", extension="txt") == ["a dog"]
    assert decode("texts", b'\xef\xbb\xbf["a dog"]') == ["a dog"]
