"""Ends of sentences in all scripts: by Unicode's property Sentence_Terminal; in Thai and Lao also by spaces."""

from __future__ import annotations

import re
import unicodedata

# Code points of Sentence_Terminal in Unicode 17; then the ellipsis, and marks of Tibetan, Thai and Greek that are not
# in it.
_TERMINALS = """
0021 002E 003F 0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B 1362 1367-1368 166E
1735-1736 17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 2024
203C-203D 2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F
A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59
10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9
113D4-113D5 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C
11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88 2026
0F0D-0F12 0E5A-0E5B 037E
"""
_SPACED = re.compile("[\u0e00-\u0eff]")  # Thai and Lao end sentences with a space
# Written without spaces between words: kana, Han, Thai, Lao, Tibetan, Burmese, Khmer.
_UNSPACED = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"
)
_LETTERS_A_WORD = 16  # on average; more means a script without spaces that is not listed above


def _terminals() -> frozenset[str]:
    marks = set()
    for part in _TERMINALS.split():
        first, _, last = part.partition("-")
        marks |= {chr(code) for code in range(int(first, 16), int(last or first, 16) + 1)}
    return frozenset(marks)


TERMINALS = _terminals()
_TERMINAL = re.compile(f"[{''.join(map(re.escape, sorted(TERMINALS)))}]+")


def closes(character: str) -> bool:
    """Whether a character is a bracket or quotation mark that may follow the end of a sentence."""
    return character in "\"'”’»›“‘" or unicodedata.category(character) in ("Pe", "Pf")


def ends(text: str) -> list[int]:
    """Positions after the ends of sentences, closing quotation marks and brackets included.

    An ASCII mark ends a sentence only before a space or the end of the text, unlike in "3.5".
    """
    found = []
    for match in _TERMINAL.finditer(text):
        end = match.end()
        while end < len(text) and closes(text[end]):
            end += 1
        if not match.group().isascii() or end == len(text) or text[end].isspace():
            found.append(end)
    return found


def whole(text: str) -> str:
    """The text up to the end of its last whole sentence, or "".

    In Thai and Lao texts without any mark, the last space ends the last whole sentence.
    """
    found = ends(text)
    if not found and _SPACED.search(text):
        return text.rstrip().rpartition(" ")[0].rstrip()
    return text[: found[-1]] if found else ""


def unspaced(text: str) -> bool:
    """Whether the text is mainly in a script without spaces between words."""
    words = text.split()
    letters = sum(map(len, words))
    return letters > _LETTERS_A_WORD * len(words) or 4 * len(_UNSPACED.findall(text)) > letters
