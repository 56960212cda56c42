"""Languages by BCP 47 tags in all common spellings (pt-BR, pt_BR, por, zh-CN, zh-Hant, iw, no), and which of a model's
own codes a tag means.

Pure functions over `language_table.py`. Each engine keeps its model's list of codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ccr_dist.errors import ConfigError
from ccr_dist.generate.text.language_table import (
    NAMES,
    REGIONS,
    REPLACED,
    SAME_LANGUAGE,
    SCRIPT_OF_REGION,
    SCRIPTS,
    TAGS,
    TITLES,
    USUAL_SCRIPT,
)


class Language(NamedTuple):
    """The parts of a tag.

    Attributes:
        language: The shortest code (de, not deu).
        script: ISO 15924, or "" if the tag has none.
        region: ISO 3166 or UN M.49, or "" if the tag has none.
    """

    language: str
    script: str = ""
    region: str = ""

    def __str__(self) -> str:
        return "-".join(part for part in self if part)

    @property
    def writing(self) -> str:
        """The tag's own script, or the one its region implies, or the language's usual one; "" if unknown."""
        return self.script or SCRIPT_OF_REGION.get((self.language, self.region)) or USUAL_SCRIPT.get(self.language, "")


def parse(tag: str) -> Language:
    """Split a tag: pt_BR, pt-br and por_BR are (pt, BR), eng_Latn is (en, Latn), pt_XX is (pt).

    Raises:
        ConfigError: This cannot be a language tag.
    """
    parts = tag.strip().replace("_", "-").split("-")
    first = parts[0].lower()
    if not (
        first.isascii()
        and first.isalpha()
        and 2 <= len(first) <= 8
        and all(part.isascii() and part.isalnum() for part in parts)
    ):
        raise ConfigError(f"language {tag!r}: expected a BCP 47 tag, such as de, pt-BR or zh-Hant")
    language, script, region = (*REPLACED.get(first, first).split("-"), "", "")[:3]
    if len(script) == 2:
        script, region = "", script
    for part in parts[1:]:
        if len(part) == 4 and part.isalpha():
            script = part.title()
        elif (len(part) == 2 and part.isalpha()) or (len(part) == 3 and part.isdigit()):
            region = "" if part.upper() == "XX" else part.upper()
    return Language(TAGS.get(language, language), script, region)


def normal(tag: str) -> str:
    """The tag in BCP 47's spelling: pt_br is pt-BR, zho_hant is zh-Hant, iw is he."""
    return str(parse(tag))


def same(one: str, other: str) -> bool:
    """Whether two tags mean the same language in the same script.

    True for pt and pt-BR, zh and zh-CN, no and nb; false for zh-Hans and zh-Hant, nb and nn.
    """
    return near(one, other) and parse(one).writing == parse(other).writing


def near(one: str, other: str) -> bool:
    """Whether two tags mean the same language, in any script."""
    a, b = parse(one).language, parse(other).language
    return a == b or {a, b} in SAME_LANGUAGE


def known(tag: str) -> bool:
    """Whether the tag is of a language in the table; false for groups, such as ROMANCE or gmw."""
    try:
        return parse(tag).language in TITLES
    except ConfigError:
        return False


def name(tag: str) -> str | None:
    """The English name, for prompts: pt_BR is "Brazilian Portuguese", de-AT "German (Austria)"; None if unknown."""
    one = parse(tag)
    if one.language not in TITLES:
        return None
    if (special := NAMES.get(str(one))) is not None:
        return special
    if one.language == "zh" and (one.region or one.script):
        place = f" ({REGIONS[one.region]})" if one.region in REGIONS and one.region != "CN" else ""
        return NAMES[f"zh-{one.writing}"] + place if f"zh-{one.writing}" in NAMES else "Chinese"
    about = []
    if one.region:
        about.append(REGIONS.get(one.region, one.region))
    if one.script and one.script != USUAL_SCRIPT[one.language]:
        about.append(f"{SCRIPTS.get(one.script, one.script)} script")
    return TITLES[one.language][0] + (f" ({', '.join(about)})" if about else "")


def titles(tag: str) -> list[str]:
    """Its English name and its own: es is Spanish, Español; empty if unknown."""
    return list(TITLES.get(parse(tag).language, ()))


def codes() -> list[str]:
    """The tags of all languages in the table, sorted."""
    return sorted(TITLES)


def three(tag: str) -> str:
    """The ISO 639-3 code of the tag's language: pt-BR is por; the language itself if it has none."""
    language = parse(tag).language
    return next((code for code, tag in TAGS.items() if tag == language and len(code) == 3), language)


def choose(wanted: str, there: Iterable[str] | Mapping[str, object]) -> tuple[str | None, list[str]]:
    """Find the one of a model's codes that means a language, such as por_Latn for pt-BR.

    An identical code wins. Otherwise language and script must agree (without a script, the usual one); of several
    such codes the one with the wanted region wins, then the one without a region.

    Args:
        wanted: A language tag.
        there: The model's codes.

    Returns:
        The code, or None if none or more than one fits; and all candidates.

    Raises:
        ConfigError: `wanted` is not a language tag.
    """
    names = list(there)
    if wanted in names:
        return wanted, [wanted]
    parsed = {}
    for code in names:
        try:
            parsed[code] = parse(code)
        except ConfigError:
            continue
    asked = parse(wanted)
    written = {code: one for code, one in parsed.items() if asked.writing in ("", one.writing)}
    found = [code for code, one in written.items() if one.language == asked.language]
    found = found or [code for code, one in written.items() if {one.language, asked.language} in SAME_LANGUAGE]
    for regions in ({asked.region}, {""}):
        if len(exact := [code for code in found if parsed[code].region in regions]) == 1:
            return exact[0], found
    return (found[0] if len(found) == 1 else None), found
