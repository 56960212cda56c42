"""The engine `apertium`: the real one where it is installed, and processes that misbehave."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import EngineError
from ccr_dist.generate.engines.base import make_translator
from tests.translators import SENTENCES

pytestmark = pytest.mark.long

has_apertium = shutil.which("apertium") is not None
apertium = pytest.mark.skipif(
    not has_apertium, reason="apertium is not installed (apt install apertium apertium-eng-spa)"
)


@apertium
def test_apertium_translates_and_takes_any_text() -> None:
    engine = make_translator("apertium", "en", "es", {})
    engine.load()
    assert engine.translate(["A yellow lemon.", "bread"]) == ["Un limón amarillo.", "Pan"]
    odd = ["a [cat] {dog} <b>x</b> ^y$ @z #tag a/b c\\d", "*", "#", "~", "...", "\0\0", "dog’s 😀", ".[][0]", "[]"]
    answers = engine.translate(odd)
    assert len(answers) == len(odd)
    assert answers[0] == "Un [gato] {perro} <b>x</b> ^y$ @z #etiqueta un/b c\\d"
    assert answers[-2:] == [".[][0]", "[]"]


@apertium
def test_apertium_translations_do_not_depend_on_their_neighbours() -> None:
    engine = make_translator("apertium", "en", "es", {})
    texts = SENTENCES * 3
    together = engine.translate(texts)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    assert engine.translate([texts[i] for i in order]) == [together[i] for i in order]
    assert [engine.translate([text])[0] for text in SENTENCES] == together[: len(SENTENCES)]


@apertium
def test_apertium_identity_and_modes() -> None:
    identity = make_translator("apertium", "en", "es", {}).identity()
    assert identity["mode"] == "eng-spa"
    assert len(identity["data"]) == 64
    back = make_translator("apertium", "es", "en", {}).identity()
    assert back["mode"] == "spa-eng" and back["data"] != identity["data"]
    assert make_translator("apertium", "xx", "yy", {"mode": "eng-spa"}).identity() == identity
    with pytest.raises(EngineError, match=r"no mode eng-zho or .* here; there are: .*eng-spa"):
        make_translator("apertium", "eng", "zho", {"mode": "eng-zho or none"})
    with pytest.raises(EngineError, match="has no mode eng-tlh or en-tlh here"):
        make_translator("apertium", "en", "tlh", {})


def fake_apertium(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An `apertium` on the PATH that has the mode eng-spa and otherwise does what `body` (shell) says: the process
    edge.
    """
    script = folder / "apertium"
    script.write_text(f'#!/bin/sh\ncase "$1" in -l) echo "  eng-spa";; *) {body};; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return make_translator("apertium", "en", "es", {"timeout_s": 1})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("tr -d '\\000'", "is not the one to 'a'"),  # units run together
        ("head -c 8", "is not the one to 'b'"),  # the end is missing
        (r"printf 'b.[][1]\0a.[][0]\0'", "is not the one to 'a'"),  # another order
        (r"printf 'a.[][0]\0b.[][1]\0c.[][2]\0'", "2 translations of 2 texts"),  # something more
        (r"printf 'a.[][0]\0'", "is not the one to 'b'"),
        ("true", "is not the one to 'a'"),
        ("echo broken dictionary >&2; exit 3", "code 3: broken dictionary"),
        ("sleep 5", "no result in 1 s"),
    ],
)
def test_apertium_that_misbehaves_is_an_engine_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    engine = fake_apertium(tmp_path, body, monkeypatch)
    with pytest.raises(EngineError, match=message):
        engine.translate(["a", "b"])


def test_apertium_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="engine 'apertium' is not installed; on Debian and Ubuntu: apt install"):
        make_translator("apertium", "en", "es", {})
