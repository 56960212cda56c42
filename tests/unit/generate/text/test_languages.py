"""Language tags as everybody writes them, and which of a model's codes one means."""

from __future__ import annotations

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.generate.jobs.translate import check_direction
from ccr_dist.generate.text import languages


@pytest.mark.parametrize(
    ("tag", "normal", "name", "three"),
    [
        ("pt-BR", "pt-BR", "Brazilian Portuguese", "por"),
        ("pt_br", "pt-BR", "Brazilian Portuguese", "por"),
        ("por", "pt", "Portuguese", "por"),
        ("pob", "pt-BR", "Brazilian Portuguese", "por"),
        ("zh-CN", "zh-CN", "Simplified Chinese", "zho"),
        ("zho_Hant", "zh-Hant", "Traditional Chinese", "zho"),
        ("zh_TW", "zh-TW", "Traditional Chinese (Taiwan)", "zho"),
        ("nn", "nn", "Norwegian Nynorsk", "nno"),
        ("no", "no", "Norwegian", "nor"),
        ("iw", "he", "Hebrew", "heb"),
        ("eng_Latn", "en-Latn", "English", "eng"),
        ("pt_XX", "pt", "Portuguese", "por"),
        ("de-AT", "de-AT", "German (Austria)", "deu"),
        ("sr-Latn", "sr-Latn", "Serbian (Latin script)", "srp"),
        ("tl", "fil", "Filipino", "fil"),
        ("quz", "quz", "Cusco Quechua", "quz"),
        ("tlh", "tlh", None, "tlh"),
    ],
)
def test_tags(tag: str, normal: str, name: str | None, three: str) -> None:
    assert (languages.normal(tag), languages.name(tag), languages.three(tag)) == (normal, name, three)
    assert languages.normal(normal) == normal


@pytest.mark.parametrize("tag", ["", "x", "German", "de de", "../de", "pt-Brazil!", "日本語", "123"])
def test_what_is_no_tag(tag: str) -> None:
    if tag == "German":
        assert not languages.known(tag)  # it could be one
        return
    with pytest.raises(ConfigError, match="expected a BCP 47 tag"):
        languages.parse(tag)


def test_one_language_in_one_script() -> None:
    for one, other in (("pt", "pt-BR"), ("zh", "zh-CN"), ("no", "nb"), ("deu", "de-AT"), ("zh-TW", "zh-Hant")):
        assert languages.same(one, other)
    for one, other in (("zh-Hans", "zh-Hant"), ("nb", "nn"), ("no", "nn"), ("sr", "sr-Latn"), ("de", "nl")):
        assert not languages.same(one, other)
    assert languages.known("gmh") is False and languages.known("ROMANCE") is False and languages.known("deu")


def test_codes_of_real_models() -> None:
    transformers = pytest.importorskip("transformers")
    assert transformers
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as m2m
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as mbart
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as nllb

    without = {tag for tag in languages.codes() if languages.choose(tag, nllb)[0] is None}
    assert without == {"ak", "br", "quz"}
    assert {code.split("_")[0] for code in mbart if languages.choose(code.split("_")[0], mbart)[0] != code} == set()
    for tag in ("en", "zh", "ko", "ja", "ar", "fa", "he"):
        assert all(languages.choose(tag, codes)[0] for codes in (nllb, mbart, m2m["m2m100"]))
    assert languages.choose("ceb", nllb)[0] == "ceb_Latn" and languages.choose("ace", nllb) == (
        None,
        ["ace_Arab", "ace_Latn"],
    )
    assert languages.choose("zh-Hant", m2m["m2m100"])[0] is None and languages.choose("nn", m2m["m2m100"])[0] is None


def test_a_language_is_not_translated_into_itself() -> None:
    check_direction("pt", "pt-BR")
    with pytest.raises(ConfigError, match="from 'pt_BR' into 'pt-br': the same language"):
        check_direction("pt_BR", "pt-br")
