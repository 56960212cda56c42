"""Prompt files: what is shipped, and what is wrong with others."""

from __future__ import annotations

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.generate.jobs import describe, llm_translate
from ccr_dist.generate.jobs.prompts import load_prompt, shipped


def test_shipped_ones_fit_their_jobs():
    assert shipped() == ["detail", "translate", "video", "views"]
    for name in ("detail", "video", "views"):
        prompt = load_prompt(name, describe.FIELDS)
        assert prompt.uses("media") and not prompt.uses("captions")
    assert list(load_prompt("views", describe.FIELDS).views) == ["detail", "objects", "actions", "scene", "attributes"]
    assert list(load_prompt("detail", describe.FIELDS).views) == ["detail"]
    prompt = load_prompt("translate", llm_translate.FIELDS)
    system, text = prompt.fill(
        "translation", {"text": "Ein {Hund}.", "source_language": "German", "target_language": "English"}
    )
    assert (
        system
        and text.startswith("Translate this image caption from German into English.")
        and text.endswith("\n\nEin {Hund}.")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "views:\n  a:\n    text: hm\n    max_token: 3\n",
            r"my\.yaml:4: unknown key 'views\.a\.max_token'; did you mean 'max_tokens'\?",
        ),
        ("view:\n  a: {text: hm}\n", r"my\.yaml:1: unknown key 'view'; did you mean 'views'\?"),
        ("views:\n  a:\n    text: hm\n    max_tokens: 0\n", r"my\.yaml:4: views\.a\.max_tokens: expected more than 0"),
        (
            "views:\n  a:\n    text: What is in {medium}?\n",
            r"my\.yaml:3: \{medium\} is no field; did you mean \{media\}\?",
        ),
        (
            "views:\n  a:\n    text: From {text}?\n",
            r"my\.yaml:3: \{text\} is a field of another kind of job; this job knows media, captions",
        ),
        ("system: Mind {x}.\nviews:\n  a: {text: hm}\n", r"my\.yaml:1: \{x\} is no field"),
        ('views:\n  a:\n    text: "As {json"\n', r"my\.yaml:3: .*other braces are doubled"),
        ("views:\n  a/b: {text: hm}\n", r"my\.yaml:2: view 'a/b': expected letters"),
        ("views: {}\n", r"views: expected something here; it is empty"),
        (
            "views:\n  a: {text: hm}\nfilters: {min_word: 3}\n",
            r"my\.yaml:3: unknown key 'filters\.min_word'; did you mean 'min_words'\?",
        ),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, content, message):
    file = tmp_path / "my.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_prompt(str(file), describe.FIELDS)


def test_unknown_names(tmp_path):
    with pytest.raises(
        ConfigError, match=r"prompt 'detial': none of that name comes with ccr-dist; did you mean 'detail'\?"
    ):
        load_prompt("detial", describe.FIELDS)
    with pytest.raises(ConfigError, match="no such file"):
        load_prompt(str(tmp_path / "none.yaml"), describe.FIELDS)
